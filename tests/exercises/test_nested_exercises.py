"""The exercises of lesson 07: right answers pass, the usual mistakes are told apart."""

import math

import pytest
import torch

from kdlab.compression import Nested
from kdlab.exercises import find
from kdlab.exercises import nested as module


def verdict(name, answer):
    return find(name).judge(answer)


def cut(weight, width):
    rows, columns = (math.ceil(width * n) for n in weight.shape)
    return weight[:rows, :columns]


def bending(narrow, widest):
    p = widest.softmax(-1)
    return (p * (p.log() - narrow.log_softmax(-1))).sum(-1).mean()


def place(narrow, widest):
    return bending(narrow, widest.detach())


def place_without_detach(narrow, widest):
    with torch.no_grad():
        p = widest.softmax(-1)
    return (p * (p.log() - narrow.log_softmax(-1))).sum(-1).mean()


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (cut, "right", ""),
        (lambda w, s: cut(w, s).clone(), "right", ""),
        (lambda w, s: w[: math.floor(s * len(w)), : math.floor(s * w.shape[1])], "wrong", "up"),
        (lambda w, s: w[: math.ceil(s * len(w))], "wrong", "reads from"),
        (lambda w, s: w[:, : math.ceil(s * w.shape[1])], "wrong", "writes fewer"),
        (lambda w, s: w.flip(0, 1)[: math.ceil(s * len(w))], "wrong", ""),
        (lambda w, s: ..., "not yet", "not yet"),
    ],
)
def test_a_narrow_layer(answer, status, said):
    given = verdict("a narrow layer", answer)
    assert given.status == status and said in given.message


def test_the_narrow_layer_is_the_one_that_nested_uses():
    inner = torch.nn.Linear(9, 9, bias=False)
    layers = torch.nn.Sequential(torch.nn.Linear(3, 9, bias=False), inner, torch.nn.Linear(9, 2))
    alone = Nested(layers, torch.zeros(2, 3), widths=(0.3, 1.0)).subnetwork(0.3)
    assert torch.equal(alone[1].weight, cut(inner.weight, 0.3))


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (place, "right", ""),
        (place_without_detach, "right", ""),
        (bending, "close", "the widest bends towards its students"),
        (lambda a, b: bending(a.detach(), b), "close", "no gradient"),
        (lambda a, b: place(b, a), "wrong", "the widest teaches"),
        (lambda a, b: place(a, b) / a.shape[-1], "wrong", "add up over the classes"),
        (lambda a, b: place(a, b) * len(a), "wrong", "not their sum"),
        (lambda a, b: -(b.softmax(-1) * a.log_softmax(-1)).sum(-1).mean(), "wrong", "entropy"),
        (lambda a, b: place(a / 2, b / 2), "wrong", ""),
    ],
)
def test_in_place_distillation(answer, status, said):
    given = verdict("in-place distillation", answer)
    assert given.status == status and said in given.message


def test_numbers_and_choices():
    channels = math.ceil(module.SHARE * module.CHANNELS)
    assert verdict("channels of a width", channels).status == "right"
    assert verdict("channels of a width", channels - 1).status != "right"
    assert verdict("what each width needs of its own", module.WRONG[0]).status == "right"
    for other in module.WRONG[1:]:
        assert verdict("what each width needs of its own", other).status != "right"
