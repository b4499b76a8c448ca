"""The exercises of lesson 05: right answers pass, the usual mistakes are told apart."""

import pytest
import torch

from kdlab.exercises import find
from kdlab.exercises import gates as module


def verdict(name, answer):
    return find(name).judge(answer)


def in_a_loop(values, gate):
    total = 0.0
    for value, weight in zip(values, gate, strict=True):
        total = total + value * weight.item()
    return total / len(values)


@pytest.mark.parametrize("answer", [lambda v, g: (v * g.detach()).mean(), in_a_loop])
def test_a_right_gated_mean_passes(answer):
    assert verdict("gated mean", answer).status == "right"


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (lambda v, g: (v * g).sum() / g.sum(), "wrong", "size of the batch"),
        (lambda v, g: (v * g).sum(), "wrong", "B times too large"),
        (lambda v, g: v.mean() * g.mean(), "wrong", "weight of its own"),
        (lambda v, g: v * g, "wrong", "one number"),
        (lambda v, g: (v * g).mean(), "close", "not detached"),
        (lambda v, g: (v.detach() * g).mean(), "close", "no gradient"),
        (lambda v, g: (v * (1 - g)).mean(), "wrong", "differs"),
        (lambda v, g: ..., "not yet", "not yet"),
        (1.0, "wrong", "expected a function"),
    ],
)
def test_a_mistaken_gated_mean_is_told_what_it_is(answer, status, said):
    given = verdict("gated mean", answer)
    assert given.status == status and said in given.message


@pytest.mark.parametrize(
    ("answer", "status"),
    [(0.3, "right"), (1 - 0.7, "right"), (0.7, "wrong"), (0.35, "close"), (0.0, "wrong")],
)
def test_what_a_random_gate_catches(answer, status):
    assert verdict("what a random gate catches", answer).status == status


def test_the_open_share_is_told_what_it_is():
    assert "lets through" in verdict("what a random gate catches", 0.7).message


def test_a_random_gate_really_catches_that_share():
    generator = torch.Generator().manual_seed(0)
    gate = torch.rand(100_000, generator=generator) < module.OPEN
    mistakes = torch.rand(100_000, generator=generator) < 0.2
    caught = (~gate & mistakes).sum() / mistakes.sum()
    assert verdict("what a random gate catches", round(float(caught), 2)).status == "right"


BOTH = {"a random gate with the same mean", "one constant weight with the same mean"}


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (BOTH, "right"),
        (sorted(BOTH), "right"),
        ({"a random gate with the same mean"}, "close"),
        (BOTH | {"no gate at all"}, "wrong"),
        ({"another random seed"}, "wrong"),
        ({"a coin"}, "wrong"),
    ],
)
def test_a_gates_rivals(answer, status):
    assert verdict("a gate's rivals", answer).status == status


def mixture(scores, log_p):
    return -(scores.softmax(-1) * log_p.exp()).sum(-1).log().mean()


def in_logarithms(scores, log_p):
    return -torch.logsumexp(scores.log_softmax(-1) + log_p, dim=-1).mean()


@pytest.mark.parametrize("answer", [mixture, in_logarithms])
def test_a_right_mixture_passes(answer):
    assert verdict("mixture likelihood", answer).status == "right"


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (lambda s, p: -(s.softmax(-1) * p).sum(-1).mean(), "wrong", "probabilities up first"),
        (lambda s, p: -(s + p).logsumexp(-1).mean(), "wrong", "softmax makes"),
        (lambda s, p: -(s.log_softmax(0) + p).logsumexp(-1).mean(), "wrong", "over teachers"),
        (lambda s, p: -mixture(s, p), "wrong", "change the sign"),
        (lambda s, p: mixture(s, p) * len(s), "wrong", "B times too large"),
        (lambda s, p: mixture(s, p) + 1, "wrong", "differs"),
        (lambda s, p: -(s.softmax(-1) * p.exp()).sum(-1).log(), "wrong", "shape (5,)"),
        (lambda s, p: mixture(s.detach(), p), "close", "no gradient"),
        (lambda s, p: ..., "not yet", "not yet"),
    ],
)
def test_a_mistaken_mixture_is_told_what_it_is(answer, status, said):
    given = verdict("mixture likelihood", answer)
    assert given.status == status and said in given.message
