"""The exercises of lesson 04: right answers pass, the usual mistakes are told apart."""

import math

import pytest
import torch
import torch.nn.functional as F

from kdlab.exercises import attention as module
from kdlab.exercises import find


def verdict(name, answer):
    return find(name).judge(answer)


def scores(query, key):
    return query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5


def attention(query, key, mask):
    return scores(query, key).masked_fill(~mask[:, None, None], float("-inf")).softmax(dim=-1)


def by_pytorch(query, key, mask):
    """The same by PyTorch's own attention: with the unit vectors as values it gives its weights."""
    units = torch.eye(key.shape[-2]).expand(*key.shape[:2], -1, -1)
    return F.scaled_dot_product_attention(query, key, units, attn_mask=mask[:, None, None])


@pytest.mark.parametrize("answer", [attention, by_pytorch])
def test_right_attention_passes(answer):
    assert verdict("attention", answer).status == "right"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda q, k, m: attention(q * q.shape[-1] ** 0.5, k, m), "root of the size"),
        (lambda q, k, m: attention(q / q.shape[-1] ** 0.5, k, m), "not by the size"),
        (lambda q, k, m: scores(q, k).softmax(-1), "padding is read"),
        (lambda q, k, m: attention(q, k, ~m), "hides the tokens"),
        (
            lambda q, k, m: scores(q, k).masked_fill(m[:, None, None], -1e9).softmax(-1),
            "hides the tokens",
        ),
        (lambda q, k, m: scores(q, k).softmax(-1) * m[:, None, None], "no longer sum to 1"),
        (lambda q, k, m: (scores(q, k) * m[:, None, None]).softmax(-1), "exp(0) is 1"),
        (lambda q, k, m: attention(k, q, m).mT, "last axis"),
        (
            lambda q, k, m: (
                scores(q, k).masked_fill(~m[:, None, None], -1e9).softmax(-2) * m[:, None, None]
            ),
            "last axis",
        ),
        (lambda q, k, m: scores(q, k).masked_fill(~m[:, None, None], -math.inf), "softmax is"),
        (lambda q, k, m: attention(q, k, m) * m[:, None, :, None], "leave the rows"),
        (lambda q, k, m: attention(q, k, m).square(), "differs"),
        (lambda q, k, m: attention(q, k, m).mean(1), "shape (3, 5, 5)"),
    ],
)
def test_mistaken_attention_is_told_what_it_is(answer, said):
    given = verdict("attention", answer)
    assert given.status == "wrong" and said in given.message


def mean(rows, mask):
    return torch.stack([row[kept].mean() for row, kept in zip(rows, mask, strict=True)]).mean()


def test_a_right_mean_passes():
    assert verdict("mean over tokens", mean).status == "right"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda rows, mask: rows.mean(), "counts like a token"),
        (lambda rows, mask: rows.where(mask, 0).mean(), "length with padding"),
        (lambda rows, mask: rows[mask].mean(), "each text counts once"),
        (lambda rows, mask: rows.where(mask, 0).sum(1) / mask.sum(1), "take their mean"),
        (lambda rows, mask: 3 * mean(rows, mask), "B times too large"),
        (lambda rows, mask: mean(rows, mask) + 1, "differs"),
    ],
)
def test_a_mistaken_mean_is_told_what_it_is(answer, said):
    given = verdict("mean over tokens", answer)
    assert given.status == "wrong" and said in given.message


def test_a_mean_without_a_gradient_is_close():
    assert verdict("mean over tokens", lambda r, m: mean(r.detach(), m)).status == "close"


@pytest.mark.parametrize("name", ["attention", "mean over tokens"])
def test_the_probes_tell_all_mistakes_apart(name):
    functions = {
        "attention": (
            [module._attention, module._not_scaled, module._scaled_by_size, module._reads_padding,
             module._hides_tokens, module._masked_too_late, module._masked_scores_are_zero,
             module._over_queries, module._masked_over_queries, module._rows_too],
            (module._QUERY, module._KEY, module._MASK),
        ),
        "mean over tokens": (
            [module._mean_of_texts, module._padding_counts, module._padding_divides,
             module._long_texts_count_more, module._sum_of_texts],
            (module._ROWS, module._MASK),
        ),
    }  # fmt: skip
    tried, probe = functions[name]
    values = [f(*probe) for f in tried]
    for place, one in enumerate(values):
        assert all((one - other).abs().max() > 1e-2 for other in values[:place])


@pytest.mark.parametrize(
    ("answer", "status"), [(16, "right"), (8, "wrong"), (48, "wrong"), (..., "not yet")]
)
def test_most_relation_heads(answer, status):
    assert verdict("most relation heads", answer).status == status


def test_one_more_relation_head_would_not_divide_both_widths():
    fit = [n for n in range(1, 65) if all(width % n == 0 for width in module.WIDTHS)]
    assert verdict("most relation heads", max(fit)).status == "right"


@pytest.mark.parametrize(
    ("answer", "status"),
    [(1.9, "right"), (0.5 * 1 + 0.3 * 2 + 0.2 * 4, "right"), (7 / 3, "wrong"), (1.0, "wrong")],
)
def test_mean_cost(answer, status):
    assert verdict("mean cost", answer).status == status


@pytest.mark.parametrize("name", ["attention", "mean over tokens"])
def test_placeholders_are_not_yet(name):
    assert verdict(name, lambda *_: ...).status == "not yet"
