"""The attention losses: reference, padding, invariances, half precision, extremes, errors."""

import re

import numpy as np
import pytest
import reference
import reference_attention as ref
import torch
from cases import value_and_gradient
from torch import nn

from kdlab.losses import (
    attention_distribution_loss,
    attention_score_loss,
    hidden_state_loss,
    relation_loss,
    self_attention_relation,
    unchecked_values,
    weighted_samples,
)


def relation(heads):
    return lambda s, t, mask=None, **k: relation_loss(s, t, heads, mask, **k)


CASES = {
    "relation": (relation(3), ref.relation(3)),
    "relation, 1 head": (relation(1), ref.relation(1)),
    "distribution": (attention_distribution_loss, ref.distribution),
    "score": (attention_score_loss, ref.score),
    "hidden": (hidden_state_loss, ref.hidden),
}
ON_SCORES = ("distribution", "score")
KL = [name for name in CASES if name not in ("score", "hidden")]
every_loss = pytest.mark.parametrize("name", CASES)
TOLERANCE = {  # value: rtol, atol; gradient: rtol, atol
    torch.float64: ((1e-11, 1e-14), (1e-9, 1e-13)),
    torch.float32: ((1e-4, 1e-6), (1e-3, 1e-6)),
    torch.float16: ((1e-4, 1e-6), (3e-3, 1e-6)),
    torch.bfloat16: ((1e-4, 1e-6), (1e-2, 1e-6)),
}
# a full sample, one with padding at the end, one with padding inside, a single token
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 1, 0], [1, 0, 0, 0, 0]]).bool()


def shapes(name, batch=4, tokens=5):
    """The student's and the teacher's shape; the widths of a relation differ."""
    if name in ON_SCORES:
        return (batch, 2, tokens, tokens), (batch, 2, tokens, tokens)
    return (batch, tokens, 6), (batch, tokens, 6 if name == "hidden" else 12)


def pair(name, dtype=torch.float64, scale=1.0, **sizes):
    random = np.random.default_rng(1)
    return tuple(
        torch.tensor(random.normal(scale=scale, size=shape)).to(dtype)
        for shape in shapes(name, **sizes)
    )


def padded(x, mask, value):
    """``x`` with another value wherever padding takes part."""
    keep = (mask[:, :, None] & mask[:, None, :])[:, None] if x.dim() == 4 else mask[..., None]
    return x.where(keep, torch.tensor(value, dtype=x.dtype))


def says(*parts):
    return pytest.raises(ValueError, match="^" + ".*".join(map(re.escape, parts)))


# ---- against the reference ---------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
def test_value_and_gradient_equal_the_reference(name, dtype, mask):
    loss, expected = CASES[name]
    student, teacher = pair(name, dtype)
    s, t = student.double().numpy(), teacher.double().numpy()
    own = np.ones((4, 5), dtype=bool) if mask is None else mask.numpy()
    values = expected(s, t, own)
    value, gradient = value_and_gradient(loss, student, teacher, mask)
    (rtol, atol), (grad_rtol, grad_atol) = TOLERANCE[dtype]
    assert values.mean() > 1e-2
    np.testing.assert_allclose(value, values.mean(), rtol, atol)
    np.testing.assert_allclose(loss(student, teacher, mask, reduction="none"), values, rtol, atol)
    by_step = reference.gradient(lambda x: expected(x, t, own), s)
    assert np.abs(by_step).max() > 1e-3
    np.testing.assert_allclose(gradient.double().numpy(), by_step, grad_rtol, grad_atol)
    assert value.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert gradient.dtype == dtype


@pytest.mark.parametrize("heads", [1, 2, 3, 6])
@pytest.mark.parametrize(("widths", "tokens"), [((6, 12), 1), ((12, 6), 4), ((18, 18), 7)])
def test_relations_of_any_widths_heads_and_lengths(heads, widths, tokens):
    random = np.random.default_rng([heads, tokens])
    s, t = (random.normal(size=(2, tokens, width)) for width in widths)
    values = ref.relation(heads)(s, t, np.ones((2, tokens), dtype=bool))
    got = relation_loss(torch.tensor(s), torch.tensor(t), heads, reduction="none")
    np.testing.assert_allclose(got, values, 1e-11, 1e-14)
    assert tokens == 1 or values.min() > 1e-2


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
def test_the_relation_is_a_distribution_over_tokens(mask):
    x, _ = pair("relation")
    table = self_attention_relation(x, 3, mask)
    assert table.shape == (4, 3, 5, 5) and table.isfinite().all()
    torch.testing.assert_close(table.exp().sum(-1), torch.ones(4, 3, 5, dtype=x.dtype))
    if mask is not None:
        assert not table.exp().masked_select(~mask[:, None, None, :].expand_as(table)).any()
    scores = x[0, :, 2:4] @ x[0, :, 2:4].T / 2**0.5  # the second of three heads
    torch.testing.assert_close(table[0, 1], scores.log_softmax(-1))


def test_minilm_is_multi_head_attention_as_torch_computes_it():
    """The scores' softmax, and the values' relation, of torch's own attention layer."""
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True).double()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    mask = MASK[:3]
    q, k, _ = (x @ w.mT + b for w, b in zip(*split(layer), strict=True))
    scores = q.unflatten(-1, (2, 4)).transpose(1, 2) @ k.unflatten(-1, (2, 4)).permute(0, 2, 3, 1)
    scores = scores / 2.0
    _, weights = layer(x, x, x, key_padding_mask=~mask, average_attn_weights=False)
    other = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    log_q = other.masked_fill(~mask[:, None, None], -torch.inf).log_softmax(-1)
    divergence = torch.where(weights > 0, weights * (weights.log() - log_q), 0.0).sum(-1).mean(1)
    expected = (divergence * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(
        attention_distribution_loss(other, scores, mask, reduction="none"), expected.detach()
    )


def split(layer):
    return layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3)


# ---- padding -----------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("filler", [0.0, 1e4, float("nan"), float("inf")])
def test_what_padding_holds_changes_nothing(name, filler):
    loss, _ = CASES[name]
    student, teacher = pair(name, torch.float32)
    value, gradient = value_and_gradient(loss, student, teacher, MASK)
    again, other = value_and_gradient(
        loss, padded(student, MASK, filler), padded(teacher, MASK, filler), MASK
    )
    assert torch.equal(value, again) and torch.equal(gradient, other)
    outside = padded(torch.zeros_like(student), MASK, 1.0).bool()
    assert outside.any() and not gradient[outside].any()


def test_the_relation_ignores_nan_in_padding():
    x, _ = pair("relation")
    torch.testing.assert_close(
        self_attention_relation(padded(x, MASK, torch.nan), 3, MASK).exp(),
        self_attention_relation(padded(x, MASK, 0.0), 3, MASK).exp(),
    )


def test_padding_gets_nothing_however_low_the_scores_are():
    student, teacher = pair("distribution")
    loss, expected = CASES["distribution"]
    values = expected(student.numpy(), teacher.numpy(), MASK.numpy())
    for lift in (-1e6, 1e6):
        got = loss(student + lift, teacher - lift, MASK, reduction="none")
        np.testing.assert_allclose(got, values, 1e-6)


@every_loss
def test_more_padding_changes_nothing(name):
    loss, _ = CASES[name]
    student, teacher = pair(name)
    sides = (0, 3, 0, 3) if name in ON_SCORES else (0, 0, 0, 3)
    value, gradient = value_and_gradient(loss, student, teacher, MASK)
    again, other = value_and_gradient(
        loss,
        nn.functional.pad(student, sides, value=7.0),
        nn.functional.pad(teacher, sides, value=-7.0),
        nn.functional.pad(MASK, (0, 3)),
    )
    torch.testing.assert_close(again, value, rtol=1e-12, atol=0)
    inner = other[..., :5, :5] if name in ON_SCORES else other[:, :5]
    torch.testing.assert_close(inner, gradient, rtol=1e-12, atol=1e-15)
    assert other.count_nonzero() == inner.count_nonzero() > 0


@every_loss
def test_a_sample_alone_and_without_padding_has_the_same_value(name):
    loss, _ = CASES[name]
    student, teacher = pair(name)
    values = loss(student, teacher, MASK, reduction="none")
    for number, own in enumerate(MASK):
        s, t = student[number : number + 1], teacher[number : number + 1]
        if name in ON_SCORES:
            s, t = s[:, :, own][..., own], t[:, :, own][..., own]
        else:
            s, t = s[:, own], t[:, own]
        torch.testing.assert_close(loss(s, t), values[number])


@every_loss
def test_samples_without_tokens_take_no_part(name):
    loss, _ = CASES[name]
    student, teacher = pair(name)
    mask = MASK.clone()
    mask[1] = False
    values = loss(student, teacher, mask, reduction="none")
    value, gradient = value_and_gradient(loss, student, teacher, mask)
    assert values[1] == 0 and not gradient[1].any() and gradient.isfinite().all()
    torch.testing.assert_close(value, values[[0, 2, 3]].mean())
    value, gradient = value_and_gradient(loss, student, teacher, torch.zeros_like(MASK))
    assert value == 0 and not gradient.any()


# ---- what the papers promise -------------------------------------------------------------------


@every_loss
def test_a_copy_of_the_teacher_has_neither_loss_nor_slope(name):
    loss, _ = CASES[name]
    student, teacher = pair(name)
    copy = teacher.clone()
    value, gradient = value_and_gradient(loss, copy, teacher, MASK)
    assert value == 0 and gradient.abs().max() < 1e-15
    assert (loss(student, teacher, MASK, reduction="none")[:3] > 0).all()


@pytest.mark.parametrize("name", KL)
def test_no_step_from_the_teacher_makes_a_divergence_smaller(name):
    loss, _ = CASES[name]
    _, teacher = pair(name)
    for seed in range(5):
        step = torch.randn(teacher.shape, generator=torch.Generator().manual_seed(seed))
        for size in (1e-3, 0.1, 3.0):
            assert loss(teacher + size * step.double(), teacher, MASK) > 0


@pytest.mark.parametrize("name", KL)
def test_the_divergence_has_the_teacher_in_front(name):
    """Forward KL: a student that misses what the teacher looks at pays more than the reverse."""
    loss, expected = CASES[name]
    student, teacher = pair(name)
    teacher = teacher[..., : student.shape[-1]]
    forward = expected(student.numpy(), teacher.numpy(), MASK.numpy()).mean()
    backward = expected(teacher.numpy(), student.numpy(), MASK.numpy()).mean()
    assert abs(forward - backward) > 1e-2
    assert float(loss(student, teacher, MASK)) == pytest.approx(forward)


@every_loss
def test_the_order_of_tokens_does_not_matter(name):
    loss, _ = CASES[name]
    student, teacher = pair(name)
    order = torch.tensor([3, 0, 4, 2, 1])

    def moved(x):
        return x[:, :, order][..., order] if name in ON_SCORES else x[:, order]

    torch.testing.assert_close(
        loss(moved(student), moved(teacher), MASK[:, order], reduction="none"),
        loss(student, teacher, MASK, reduction="none"),
    )
    assert not torch.allclose(loss(moved(student), teacher), loss(student, teacher))


@pytest.mark.parametrize("name", ON_SCORES)
def test_heads_may_be_reordered_only_together(name):
    loss, _ = CASES[name]
    student, teacher = pair(name)
    together = loss(student.flip(1), teacher.flip(1), MASK)
    torch.testing.assert_close(together, loss(student, teacher, MASK))
    assert not torch.allclose(loss(student.flip(1), teacher, MASK), together)


def test_relation_heads_may_be_reordered_only_together_unless_there_is_one():
    student, teacher = pair("relation")

    def reordered(x, heads):
        return x.unflatten(-1, (heads, -1)).flip(2).flatten(2)

    plain = relation_loss(student, teacher, 3, MASK)
    torch.testing.assert_close(
        relation_loss(reordered(student, 3), reordered(teacher, 3), 3, MASK), plain
    )
    assert not torch.allclose(relation_loss(reordered(student, 3), teacher, 3, MASK), plain)
    torch.testing.assert_close(
        relation_loss(reordered(student, 3), teacher, 1, MASK),
        relation_loss(student, teacher, 1, MASK),
    )


def test_turning_the_vectors_of_one_network_within_a_relation_head_changes_nothing():
    torch.manual_seed(0)
    student, teacher = pair("relation")
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    turned = (teacher.unflatten(-1, (3, 4)) @ turn).flatten(2)
    torch.testing.assert_close(
        relation_loss(student, turned, 3), relation_loss(student, teacher, 3)
    )
    mixed = teacher @ torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q
    assert not torch.allclose(relation_loss(student, mixed, 3), relation_loss(student, teacher, 3))


def test_a_number_added_to_a_row_counts_for_scores_and_not_for_distributions():
    student, teacher = pair("score")
    lifted = student + torch.arange(5.0)[:, None]
    torch.testing.assert_close(
        attention_distribution_loss(lifted, teacher), attention_distribution_loss(student, teacher)
    )
    assert attention_score_loss(lifted, teacher) > attention_score_loss(student, teacher) + 1


# ---- numbers -----------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_finite_for_extreme_rows_zero_rows_and_equal_rows(name, dtype):
    loss, _ = CASES[name]
    student, teacher = pair(name, dtype, scale=1e4)
    for s, t in [
        (student, teacher),
        (0 * student, teacher),
        (student, 0 * teacher),
        (student[:1].expand_as(student).clone(), teacher[:1].expand_as(teacher)),
    ]:
        value, gradient = value_and_gradient(lambda a, b: 1e-6 * loss(a, b, MASK), s, t)
        assert value.isfinite() and gradient.isfinite().all()


@every_loss
def test_the_teacher_is_detached_and_inputs_stay_as_they_were(name):
    loss, _ = CASES[name]
    student, teacher = (x.requires_grad_() for x in pair(name))
    before = student.detach().clone(), teacher.detach().clone(), MASK.clone()
    loss(student, teacher, MASK).backward()
    assert teacher.grad is None and student.grad is not None
    assert all(map(torch.equal, before, (student, teacher, MASK)))


@every_loss
def test_a_sample_with_weight_zero_is_closed(name):
    loss, _ = CASES[name]
    student, teacher = pair(name)
    values = loss(student, teacher, reduction="none")
    weights = torch.tensor([0.5, 0.0, 1.0, 0.0], dtype=torch.float64)
    with weighted_samples(weights) as given:
        value, gradient = value_and_gradient(loss, student, teacher)
    assert given.used == 1 and not gradient[weights == 0].any() and gradient[weights > 0].any()
    torch.testing.assert_close(value, (weights * values).sum() / 4)


@every_loss
def test_a_teacher_with_nan_at_a_token_is_refused_and_in_padding_is_not(name):
    loss, _ = CASES[name]
    student, teacher = pair(name)
    teacher[1].fill_(torch.nan)
    with says("teacher: NaN or infinite"):
        loss(student, teacher, MASK)
    with unchecked_values():
        assert loss(student, teacher, MASK).isnan()
    mask = MASK.clone()
    mask[1] = False
    assert loss(student, teacher, mask).isfinite()


@every_loss
def test_it_goes_through_vmap(name):
    loss, _ = CASES[name]
    student, teacher = (torch.stack([x, 2 * x, -x]) for x in pair(name))
    mask = MASK.expand(3, -1, -1)
    with unchecked_values():
        stacked = torch.func.vmap(lambda s, t, m: loss(s, t, m))(student, teacher, mask)
    expected = torch.stack([loss(s, t, MASK) for s, t in zip(student, teacher, strict=True)])
    torch.testing.assert_close(stacked, expected)


# ---- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["relation", "hidden"])
def test_bad_token_vectors_are_refused(name):
    loss, _ = CASES[name]
    student, teacher = pair(name)
    with says("teacher: shape [3, 5,", "student: [4, 5, 6]", "same batch"):
        loss(student, teacher[:3])
    with says("teacher: shape [4, 4,", "equally many tokens"):
        loss(student, teacher[:, :4])
    with says("student: shape [4, 5], expected features [B, N, d]"):
        loss(student[..., 0], teacher)
    with says("student: dtype torch.int64"):
        loss(student.long(), teacher)
    with says("teacher: shape [4, 5, 0]", "no side of 0"):
        loss(student, teacher[..., :0])
    with says("mask: dtype torch.int64, expected torch.bool"):
        loss(student, teacher, MASK.long())
    with says("mask: shape [4, 4], expected [4, 5]"):
        loss(student, teacher, MASK[:, :4])
    with says("reduction: 'sum'"):
        loss(student, teacher, reduction="sum")


@pytest.mark.parametrize("name", ON_SCORES)
def test_bad_scores_are_refused(name):
    loss, _ = CASES[name]
    student, teacher = pair(name)
    with says("teacher: shape [4, 1, 5, 5]", "[4, 2, 5, 5]", "heads", "relation_loss"):
        loss(student, teacher[:, :1])
    with says("teacher: shape [4, 2, 4, 4]", "equally many tokens"):
        loss(student, teacher[..., :4, :4])
    with says("student: shape [4, 2, 5, 4], expected attention scores [B, h, N, N]"):
        loss(student[..., :4], teacher[..., :4])
    with says("student: shape [4, 5, 5], expected attention scores"):
        loss(student[:, 0], teacher[:, 0])
    with says("mask: shape [4, 2], expected [4, 5]"):
        loss(student, teacher, MASK[:, :2])
    with says("reduction: None"):
        loss(student, teacher, reduction=None)


def test_widths_and_relation_heads_have_to_fit():
    student, teacher = pair("relation")
    with says("relation_heads: 4, expected a divisor of the width 6 of student [4, 5, 6]"):
        relation_loss(student, teacher, 4)
    with says("relation_heads: 6, expected a divisor of the width 8 of teacher"):
        relation_loss(student, teacher[..., :8], 6)
    with says("relation_heads: 0, expected a whole number"):
        relation_loss(student, teacher, 0)
    with says("relation_heads: 5", "x [4, 5, 6]"):
        self_attention_relation(student, 5)
    with says("x: shape [4, 5], expected features [B, N, d]"):
        self_attention_relation(student[..., 0], 1)
    with says("mask: dtype"):
        self_attention_relation(student, 3, MASK.float())
    with says("teacher: shape [4, 5, 12], student: [4, 5, 6]", "equal widths"):
        hidden_state_loss(student, teacher)
