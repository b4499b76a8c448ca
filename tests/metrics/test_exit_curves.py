"""Accuracy against cost of early exits, against loops in plain NumPy."""

import math

import numpy as np
import pytest
import torch

from kdlab.metrics import choose_threshold, exit_accuracies, exit_curve, first_sure_exit
from kdlab.metrics.exits import ExitCurve

RNG = np.random.default_rng(0)
TARGETS = RNG.integers(0, 4, 200)
# deeper exits are surer and more often right
LOGITS = RNG.normal(size=(200, 3, 4)) + np.eye(4)[TARGETS][:, None] * np.array([1, 2, 4])[:, None]
COSTS = (10, 30, 100)


def confidence(z):
    p = np.exp(z - z.max())
    return (p / p.sum()).max()


def leave(sample, threshold):
    for number, z in enumerate(sample):
        if confidence(z) >= threshold:
            return number
    return len(sample) - 1


def test_each_exits_accuracy_is_the_share_of_right_answers():
    want = [(LOGITS[:, k].argmax(1) == TARGETS).mean() for k in range(3)]
    assert exit_accuracies(torch.tensor(LOGITS), torch.tensor(TARGETS)) == pytest.approx(want)
    assert want[0] < want[1] < want[2]


def test_a_curve_is_what_a_loop_over_samples_finds():
    thresholds = (0.9, 0.4, 0.7)
    curve = exit_curve(LOGITS, TARGETS, COSTS, thresholds)
    assert curve.thresholds.tolist() == [0.4, 0.7, 0.9]
    for row, threshold in enumerate(curve.thresholds):
        exits = [leave(sample, threshold) for sample in LOGITS]
        assert first_sure_exit(LOGITS, threshold).tolist() == exits
        right = [LOGITS[n, k].argmax() == TARGETS[n] for n, k in enumerate(exits)]
        assert curve.accuracy[row] == pytest.approx(np.mean(right))
        assert curve.cost[row] == pytest.approx(np.mean([COSTS[k] for k in exits]))
        assert curve.shares[row] == pytest.approx([exits.count(k) / 200 for k in range(3)])
    assert (curve.shares > 0).any(0).all()


def test_the_ends_are_the_first_and_the_last_exit():
    curve = exit_curve(LOGITS, TARGETS, COSTS)
    assert (curve.cost[0], curve.cost[-1]) == (10, 100)
    assert (np.diff(curve.cost) >= 0).all()
    first, _, last = exit_accuracies(LOGITS, TARGETS)
    assert (curve.accuracy[0], curve.accuracy[-1]) == (first, last)
    assert first_sure_exit(LOGITS, 0).tolist() == [0] * 200
    assert first_sure_exit(LOGITS, 1.01).tolist() == [2] * 200
    assert first_sure_exit(np.full((1, 2, 3), np.nan), 0).tolist() == [1]


def test_the_cheapest_threshold_that_is_good_enough_is_chosen():
    curve = ExitCurve(
        thresholds=np.array([0, 0.3, 0.5, 0.6, 0.9, math.inf]),
        accuracy=np.array([0.5, 0.8, 0.8, 0.7, 0.9, 0.85]),
        cost=np.array([1, 2, 2, 3, 4, 5]),
        shares=np.ones((6, 1)),
    )
    assert choose_threshold(curve, 0.75) == 0.5
    assert choose_threshold(curve, 0.85) == 0.9
    assert choose_threshold(curve, 0.0) == 0
    with pytest.raises(ValueError, match=r"^at_least: 0.95 came, but no .* more than 0.9000"):
        choose_threshold(curve, 0.95)


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^logits: shape \[200, 4\], expected \[N, E, C\]"):
        exit_accuracies(LOGITS[:, 0], TARGETS)
    with pytest.raises(ValueError, match=r"^costs: 2 came, expected one for each of 3 exits"):
        exit_curve(LOGITS, TARGETS, (1, 2))
    with pytest.raises(ValueError, match=r"^thresholds: none came"):
        exit_curve(LOGITS, TARGETS, COSTS, ())
