"""The step that `fit` tries before the first leaves no trace, whatever the method."""

import copy

import pytest
import torch
from pairs import CLASSES, images, make, pair

from kdlab.datasets import Data
from kdlab.distillers import Labels, available
from kdlab.training import fit, loop

TRAIN = images(12)
DATA = Data("tiny", TRAIN, TRAIN, TRAIN, tuple(map(str, range(CLASSES))), (0.0,), (1.0,), {})


def trained(name):
    student, teacher = pair(name)
    method = make(name)
    fit(
        student,
        DATA,
        method if method.complete else Labels() + 1e-3 * method,
        teacher=teacher if method.needs_teacher else None,
        epochs=1,
        batch_size=6,
        lr=1e-3,
        clip=1.0,
    )
    return student.state_dict(), method.state_dict()


@pytest.mark.parametrize("name", available("classes"))
def test_the_rehearsal_changes_no_bit_of_the_run(name, monkeypatch):
    with_it = trained(name)
    before = copy.deepcopy(pair(name)[0].state_dict())
    monkeypatch.setattr(loop, "rehearse", lambda *arguments: None)
    without = trained(name)
    for ours, theirs in zip(with_it, without, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert any(not torch.equal(before[key], with_it[0][key]) for key in before)
