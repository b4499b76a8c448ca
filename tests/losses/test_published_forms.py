"""Where a loss differs from the code released with its paper: the docstring says it, as it is."""

import inspect

import numpy as np
import pytest
import torch

from kdlab import distillers, losses
from kdlab.distillers.gated_teachers import ConfidenceAware


def flat(thing):
    return " ".join(inspect.getdoc(thing).split())


@pytest.mark.parametrize(("batch", "percent"), [(64, 2), (128, 1)])
def test_probabilistic_transfer_with_and_without_ones_own_neighbourhood(batch, percent):
    random = np.random.default_rng(0)
    classes = random.integers(100, size=batch)
    rows = []
    for width in (64, 256):
        centres = random.normal(size=(100, width))
        rows.append(np.maximum(centres[classes] + random.normal(size=(batch, width)), 0))
    tables = []
    for x in rows:
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        kernel = (x @ x.T + 1) / 2
        tables.append(kernel / kernel.sum(1, keepdims=True))
    q, p = tables
    released = (p * np.log((p + 1e-7) / (q + 1e-7))).mean()
    ours = float(losses.probabilistic_transfer_loss(*map(torch.tensor, rows)))
    assert 100 * (ours / released - 1) == pytest.approx(percent, abs=0.5)
    text = flat(losses.probabilistic_transfer_loss)
    assert f"{percent} %" in text and "30000 is meant, in batches of 64" in text
    assert "batches of 64" in flat(distillers.Probabilistic)


def test_confidence_aware_teachers_are_added_up():
    random = torch.Generator().manual_seed(0)
    members = torch.randn(6, 3, 5, generator=random)
    targets = torch.arange(6) % 5
    cross_entropy = torch.nn.functional.cross_entropy(
        members.flatten(0, 1), targets.repeat_interleave(3), reduction="none"
    ).view(6, 3)
    released = (1 - cross_entropy.softmax(1)) / 2  # then a mean over the teachers
    ours = losses.confidence_aware_weights(members, targets)
    torch.testing.assert_close(ours, released)
    torch.testing.assert_close(ours.sum(1), torch.ones(6))
    for thing in (losses.confidence_aware_weights, ConfidenceAware):
        assert "K times the released code's" in flat(thing)


def test_a_certain_teacher_shows_that_nothing_is_added_to_its_cross_entropy():
    student, targets = torch.zeros(2, 5), torch.tensor([0, 0])
    teacher = torch.tensor([[6.0, 0, 0, 0, 0], [18.0, 0, 0, 0, 0]], dtype=torch.float64)
    ratio = np.log(5) / -torch.log_softmax(teacher, 1)[:, 0]
    with_floor = 1 - torch.exp(-np.log(5) / (1e-7 - torch.log_softmax(teacher, 1)[:, 0]))
    gate = losses.wsld_gate(student, teacher, targets)
    torch.testing.assert_close(gate, 1 - torch.exp(-ratio))
    torch.testing.assert_close(gate, with_floor, rtol=1e-4, atol=0)
    assert "1e-7" in flat(losses.wsld_gate)


@pytest.mark.parametrize("method", [distillers.HiddenStates, distillers.AttentionDistributions])
def test_layers_are_averaged_where_tinybert_adds_them_up(method):
    made = method(mapping={0: 0, 1: 1})
    made._rows = (0, 1)
    term = made.terms({"attention": [torch.tensor([1.0]), torch.tensor([3.0])]}, 0.5)
    assert float(term["attention"]) == 2.0
    text = flat(method)
    assert "TinyBERT adds the layers up" in text and "n times the weight" in text
