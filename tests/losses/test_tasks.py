"""Several labels at once and values: against NumPy in float64, in value and gradient."""

import numpy as np
import pytest
import torch

from kdlab.losses import (
    multi_label_loss,
    sigmoid_target_loss,
    value_loss,
    value_target_loss,
)
from kdlab.losses.soft_targets import soft_target_loss

RNG = np.random.default_rng(0)
S, T = 3 * RNG.normal(size=(2, 6, 5))
Y = (RNG.random((6, 5)) > 0.6).astype(float)
VALUES = RNG.normal(size=(6, 5))


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def bernoulli_kl(p, q):
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def cross_entropy(s):
    return -(Y * np.log(sigmoid(s)) + (1 - Y) * np.log(1 - sigmoid(s))).mean(1)


def bounded(s):
    mine, theirs = ((s - VALUES) ** 2).mean(1), ((T - VALUES) ** 2).mean(1)
    return np.where(mine + 0.5 > theirs, mine, 0.0)


def tensor(array):
    return torch.tensor(array, dtype=torch.float64)


CASES = {
    "multi_label": (lambda s, **k: multi_label_loss(s, tensor(Y), **k), cross_entropy),
    "value": (
        lambda s, **k: value_loss(s, tensor(VALUES), **k),
        lambda s: ((s - VALUES) ** 2).mean(1),
    ),
    "sigmoid_target": (
        lambda s, **k: sigmoid_target_loss(s, tensor(T), 2.0, **k),
        lambda s: 4 * bernoulli_kl(sigmoid(T / 2), sigmoid(s / 2)).mean(1),
    ),
    "value_target": (
        lambda s, **k: value_target_loss(s, tensor(T), **k),
        lambda s: ((s - T) ** 2).mean(1),
    ),
    "bounded": (lambda s, **k: value_target_loss(s, tensor(T), tensor(VALUES), 0.5, **k), bounded),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_equal_the_formula(name):
    loss, reference = CASES[name]
    s = tensor(S).requires_grad_()
    np.testing.assert_allclose(loss(s, reduction="none").detach(), reference(S), rtol=1e-12)
    loss(s).backward()
    slope = np.empty_like(S)
    for place in np.ndindex(S.shape):
        step = np.zeros_like(S)
        step[place] = 1e-6
        slope[place] = (reference(S + step).mean() - reference(S - step).mean()) / 2e-6
    np.testing.assert_allclose(s.grad, slope, atol=1e-8)
    half = loss(tensor(S).bfloat16().float())
    assert float(half) == pytest.approx(float(loss(s)), rel=0.05)


def test_a_bound_counts_only_while_the_student_is_worse():
    assert 0 < (bounded(S) == 0).sum() < len(S), "the example must have both kinds"
    s = tensor(S).requires_grad_()
    value_target_loss(s, tensor(T), tensor(VALUES), 0.5).backward()
    assert ((s.grad == 0).all(1).numpy() == (bounded(S) == 0)).all()


@pytest.mark.parametrize("labels", [True, False])
def test_a_row_without_labels_has_no_part_in_the_mean(labels):
    loss = multi_label_loss if labels else value_loss
    y = tensor(Y)
    y[[1, 4], 0] = torch.nan
    s = tensor(S).requires_grad_()
    loss(s, y).backward()
    keep = [0, 2, 3, 5]
    assert float(loss(s, y)) == pytest.approx(float(loss(s[keep], y[keep])))
    assert (s.grad[[1, 4]] == 0).all() and s.grad[keep].any(1).all()
    nothing = loss(s, torch.full_like(y, torch.nan))
    assert nothing == 0


def test_one_label_is_two_classes():
    two = [torch.stack([tensor(z[:, :1]), torch.zeros(6, 1)], -1).squeeze(1) for z in (S, T)]
    one = sigmoid_target_loss(tensor(S[:, :1]), tensor(T[:, :1]), 3.0)
    torch.testing.assert_close(one, soft_target_loss(*two, 3.0))


@pytest.mark.parametrize("temperature", [1e-2, 1e3, 1e6])
def test_digits_are_kept_at_any_temperature(temperature):
    exact = float(sigmoid_target_loss(tensor(S), tensor(T), temperature))
    single = float(sigmoid_target_loss(tensor(S).float(), tensor(T).float(), temperature))
    assert single == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: multi_label_loss(tensor(S), tensor(Y)[:, :2]), "^targets: got .*shape"),
        (lambda: multi_label_loss(tensor(S), tensor(Y).long()), "^targets: got torch.int64"),
        (lambda: multi_label_loss(tensor(S), 2 * tensor(Y)), r"^targets: got values outside \[0"),
        (lambda: value_loss(tensor(S)[0], tensor(Y)), "^student: shape"),
        (lambda: value_target_loss(tensor(S), tensor(T), margin=0.1), "^targets: got None"),
        (lambda: value_target_loss(tensor(S), tensor(T), tensor(Y), -1.0), "^margin: -1.0"),
        (lambda: sigmoid_target_loss(tensor(S), tensor(T)[:, :2]), "^teacher: shape"),
        (lambda: sigmoid_target_loss(tensor(S), tensor(T), 0.0), "^temperature"),
        (lambda: value_loss(tensor(S), tensor(Y), reduction="sum"), "^reduction"),
    ],
    ids=str,
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
