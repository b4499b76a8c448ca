"""One method after another on the same compiled student, and teachers that are compiled."""

import functools

import pytest
import torch
from pairs import cnn, images

from kdlab.datasets import Data
from kdlab.distillers import AttentionTransfer, Hints, Labels, SoftTargets
from kdlab.training import fit

SPLIT = images(16)
DATA = Data("noise", SPLIT, SPLIT, SPLIT, tuple("abcd"), (0.0,), (1.0,), {})
ONCE = {"epochs": 1, "batch_size": 8, "lr": 0.01, "device": "cpu"}


@pytest.fixture
def eager(monkeypatch):
    """torch.compile without a C compiler; what it does with hooks is the same."""
    compile = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", compile)
    torch.compiler.reset()
    yield compile
    torch.compiler.reset()


def trained(method, student, teacher, **options):
    fit(student, DATA, method, teacher=teacher, **ONCE, **options)
    return [parameter.detach().clone() for parameter in student.parameters()]


def test_a_compiled_student_has_two_stages(eager):
    results = []
    for compile in (False, True):
        student, teacher = cnn(4, 1), cnn(6, 2)
        trained(SoftTargets(), student, teacher, compile=compile)
        trained(SoftTargets() + Hints(), student, teacher, compile=compile)
        results.append(trained(Labels() + AttentionTransfer(), student, teacher, compile=compile))
    for mine, plain in zip(*results[::-1], strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", ["wrapped", "in place"])
@pytest.mark.parametrize("method", [SoftTargets, lambda: Labels() + Hints()])
def test_a_compiled_teacher_teaches_as_it_would_plain(eager, way, method):
    expected = trained(method(), cnn(4, 1), cnn(6, 2))
    teacher = cnn(6, 2)
    if way == "in place":
        teacher.compile(backend="eager")
    else:
        teacher = eager(teacher)
    teacher(SPLIT.x)
    for mine, plain in zip(trained(method(), cnn(4, 1), teacher), expected, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-6)


def test_a_traced_teacher_teaches_by_its_answers_and_is_else_refused_by_name():
    teacher = torch.jit.trace(cnn(6, 2), SPLIT.x)
    expected = trained(SoftTargets(), cnn(4, 1), cnn(6, 2))
    for mine, plain in zip(trained(SoftTargets(), cnn(4, 1), teacher), expected, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"'stage2' cannot be read.*TorchScript.*SoftTargets"):
        trained(Labels() + Hints(), cnn(4, 1), teacher)
