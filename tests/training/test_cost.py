"""The cost of a step: what makes it longer and heavier is seen."""

import itertools
import types

import pytest
import torch
from tiny import make_cnn, make_data, make_mlp

from kdlab.distillers import Labels, Sobolev, SoftTargets
from kdlab.training import cost
from kdlab.training.cost import step_cost

DATA = make_data()


def test_time_is_that_of_the_fastest_step_after_the_warm_up(monkeypatch):
    clock = itertools.accumulate([5, 1, 3, 9, 2])  # two steps of warm-up, three timed
    fake = types.SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr(cost, "time", fake)
    assert step_cost(make_mlp(DATA), DATA, batch_size=32, steps=3).milliseconds == 2000
    assert next(clock, None) is None


def test_steps_may_be_more_than_the_images_allow_and_the_student_stays():
    student = make_mlp(DATA)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    step_cost(student, DATA, batch_size=80, steps=4, device="cpu")
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_memory_is_what_backward_needs():
    """An MLP keeps its inputs, its hidden values, the weights above them, and the logits."""
    student = make_mlp(DATA, hidden=(512,))
    small, large = (
        step_cost(student, DATA, batch_size=size, steps=1, device="cpu").megabytes * 2**20
        for size in (32, 64)
    )
    per_image = 4 * (64 + 512)  # both are kept once; ReLU keeps its output, which the head shares
    assert 32 * per_image <= large - small < 1.2 * 32 * per_image


def test_slopes_cost_memory_and_more_directions_cost_more():
    student, teacher = make_cnn(DATA), make_cnn(DATA, seed=1)
    methods = (
        SoftTargets(),
        Labels() + Sobolev(),
        Labels() + Sobolev(directions=2),
        Labels() + Sobolev(directions=None),
    )
    sizes = [
        step_cost(student, DATA, m, teacher=teacher, batch_size=32, steps=1, device="cpu").megabytes
        for m in methods
    ]
    assert sizes == sorted(sizes) and sizes[1] > 2 * sizes[0]
    assert sizes[3] - sizes[1] == pytest.approx(3 * (sizes[2] - sizes[1]), rel=0.15)


def test_at_least_one_step():
    with pytest.raises(ValueError, match="steps: 0 came"):
        step_cost(make_mlp(DATA), DATA, steps=0)
