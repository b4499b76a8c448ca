"""What models return in the ways in which people write them, and where the logits are in it."""

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdlab.models import WithOutput, logits_of
from kdlab.models.modes import evaluating

LOGITS = torch.arange(6.0).view(2, 3)
AUX = torch.zeros(2, 3)
Named = namedtuple("Named", "aux logits")


@pytest.mark.parametrize(
    "returned",
    [
        LOGITS,
        (LOGITS, AUX),
        [LOGITS],
        ((LOGITS, AUX), AUX),
        {"aux": AUX, "logits": LOGITS},
        {"logits": (LOGITS, AUX)},
        SimpleNamespace(logits=LOGITS, hidden=AUX),
        Named(AUX, LOGITS),
        (SimpleNamespace(logits=LOGITS), AUX),
    ],
    ids=lambda returned: type(returned).__name__,
)
def test_logits_are_found(returned):
    assert logits_of(returned) is LOGITS


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ({"scores": LOGITS, "aux": AUX}, "'scores', 'aux'"),
        ({}, "no entry"),
        (None, "NoneType"),
        ((), "tuple"),
        ("text", "str"),
        (SimpleNamespace(logits=None), "SimpleNamespace"),
    ],
    ids=str,
)
def test_what_holds_no_logits_is_refused_by_name(returned, words):
    with pytest.raises(ValueError, match=r"^teacher: .*WithOutput") as error:
        logits_of(returned, "teacher")
    assert words in str(error.value)


def test_a_readers_own_function_takes_the_logits_out():
    inner = nn.Linear(4, 3)
    model = WithOutput(inner, lambda returned: {"logits": returned * 2})
    x = torch.randn(2, 4)
    assert torch.equal(model(x), inner(x) * 2)
    assert [name for name, _ in model.named_parameters()] == ["model.weight", "model.bias"]
    assert torch.equal(WithOutput(lambda images: (images, None))(x), x)


def test_an_exported_program_can_be_asked_in_eval_mode():
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    program = torch.export.export(module, (torch.randn(2, 4),)).module()
    x = torch.randn(2, 4)
    with evaluating(program):
        assert torch.allclose(program(x), module(x))
