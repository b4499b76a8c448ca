"""Metrics against hand computations, scikit-learn and SciPy."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from sklearn import metrics as sk

from kdlab.metrics import (
    accuracy,
    agreement,
    evaluate,
    expected_calibration_error,
    kl_to_teacher,
    negative_log_likelihood,
    reliability,
)

PROVED = settings(derandomize=True, deadline=None, max_examples=15)


def predictions(samples=200, classes=7, seed=0, scale=2.0):
    random = np.random.default_rng(seed)
    logits = random.normal(scale=scale, size=(samples, classes))
    return logits, random.integers(classes, size=samples), random.normal(size=(samples, classes))


def says(*parts):
    return pytest.raises(ValueError, match="^" + ".*".join(map(re.escape, parts)))


@PROVED
@given(samples=st.integers(1, 60), classes=st.integers(2, 9), seed=st.integers(0, 2**31))
def test_metrics_equal_scikit_learn_and_scipy(samples, classes, seed):
    logits, targets, teacher = predictions(samples, classes, seed)
    p, q = special.softmax(logits, -1), special.softmax(teacher, -1)
    assert accuracy(logits, targets) == sk.accuracy_score(targets, logits.argmax(-1))
    assert negative_log_likelihood(logits, targets) == pytest.approx(
        sk.log_loss(targets, p, labels=range(classes))
    )
    assert agreement(logits, teacher) == sk.accuracy_score(teacher.argmax(-1), logits.argmax(-1))
    assert kl_to_teacher(logits, teacher) == pytest.approx(stats.entropy(q, p, axis=-1).mean())


def ece_by_a_loop(logits, targets, bins):
    """Guo et al., equation (3), over the bins ((m − 1) / M, m / M] one at a time."""
    p = special.softmax(logits, -1)
    confidence, correct = p.max(-1), logits.argmax(-1) == targets
    total = 0.0
    for m in range(1, bins + 1):
        inside = (confidence > (m - 1) / bins) & (confidence <= m / bins)
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return total


@PROVED
@given(
    samples=st.integers(1, 60),
    bins=st.integers(1, 20),
    scale=st.floats(0.01, 50),
    seed=st.integers(0, 2**31),
)
def test_ece_equals_a_loop_over_the_bins(samples, bins, scale, seed):
    logits, targets, _ = predictions(samples, 5, seed, scale)
    ours = expected_calibration_error(logits, targets, bins)
    assert ours == pytest.approx(ece_by_a_loop(logits, targets, bins), abs=1e-12)
    assert 0 <= ours <= 1


def with_confidence(*levels):
    """Two-class logits that predict class 0 with these probabilities."""
    return np.log([[p, 1 - p] for p in levels])


def test_ece_by_hand():
    logits = with_confidence(0.9, 0.9, 0.9, 0.9, 0.6, 0.6)
    targets = np.array([0, 0, 0, 1, 0, 1])
    # Bin around 0.9: accuracy 3/4, gap 0.15, 4 samples; around 0.6: accuracy 1/2, gap 0.1, 2.
    assert expected_calibration_error(logits, targets, 10) == pytest.approx(
        (4 * 0.15 + 2 * 0.1) / 6
    )
    # One bin: mean confidence 0.8, accuracy 4/6.
    assert expected_calibration_error(logits, targets, 1) == pytest.approx(0.8 - 4 / 6)


def test_a_sure_and_right_model_is_calibrated_and_a_sure_and_wrong_one_is_not():
    logits = np.array([[100.0, 0], [0, 100.0]])
    assert expected_calibration_error(logits, np.array([0, 1])) == pytest.approx(0)
    assert expected_calibration_error(logits, np.array([1, 0])) == pytest.approx(1)


def test_reliability_is_the_table_behind_the_ece():
    logits = with_confidence(0.95, 0.85, 0.75, 0.75, 0.55)
    table = reliability(logits, np.array([0, 0, 0, 1, 1]), bins=5)
    np.testing.assert_allclose(table.edges, [0, 0.2, 0.4, 0.6, 0.8, 1])
    np.testing.assert_array_equal(table.count, [0, 0, 1, 2, 2])
    np.testing.assert_allclose(table.confidence, [np.nan, np.nan, 0.55, 0.75, 0.9])
    np.testing.assert_allclose(table.accuracy, [np.nan, np.nan, 0, 0.5, 1])


def test_a_confidence_on_a_border_belongs_to_the_bin_below():
    np.testing.assert_array_equal(
        reliability(np.zeros((3, 2)), np.zeros(3, int), bins=2).count, [3, 0]
    )
    np.testing.assert_array_equal(
        reliability(np.array([[1e4, 0.0]]), np.zeros(1, int), bins=4).count, [0, 0, 0, 1]
    )


def test_evaluate_gathers_them_by_name():
    logits, targets, teacher = predictions()
    without = evaluate(logits, targets)
    assert list(without) == ["accuracy", "nll", "ece"]
    everything = evaluate(logits, targets, teacher)
    assert everything == {
        "accuracy": accuracy(logits, targets),
        "nll": negative_log_likelihood(logits, targets),
        "ece": expected_calibration_error(logits, targets),
        "agreement": agreement(logits, teacher),
        "kl_to_teacher": kl_to_teacher(logits, teacher),
    }
    assert all(type(value) is float for value in everything.values())


def test_a_copy_agrees_with_its_teacher():
    logits, _, teacher = predictions()
    assert agreement(teacher, teacher) == 1 and kl_to_teacher(teacher, teacher) == 0
    assert kl_to_teacher(logits, teacher) != pytest.approx(kl_to_teacher(teacher, logits))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_of_any_dtype_give_what_their_float64_copies_give(dtype):
    logits, targets, teacher = (torch.tensor(x) for x in predictions())
    logits, teacher = logits.to(dtype).requires_grad_(), teacher.to(dtype)
    expected = evaluate(logits.detach().double().numpy(), targets.numpy(), teacher.double().numpy())
    assert evaluate(logits, targets, teacher) == expected


def test_extreme_logits_are_finite():
    logits = torch.tensor([[6e4, -6e4], [-6e4, 6e4]], dtype=torch.float16)
    results = evaluate(logits, torch.tensor([0, 0]), -logits)
    assert all(np.isfinite(value) for value in results.values())
    assert results["accuracy"] == 0.5 and results["agreement"] == 0


def test_a_diverged_model_is_wrong_and_not_right_by_chance():
    """argmax of NaN is a class like any other: it must not count as a hit."""
    broken = np.full((4, 3), np.nan)
    results = evaluate(broken, np.zeros(4, int), broken)
    assert results["accuracy"] == 0 and results["agreement"] == 0
    assert all(np.isnan(results[name]) for name in ("nll", "ece", "kl_to_teacher"))
    half = np.array([[np.nan, 0], [5.0, 0]])
    assert accuracy(half, np.array([0, 0])) == 0.5
    assert np.isnan(expected_calibration_error(half, np.array([0, 0])))


Z, Y = np.zeros((8, 3)), np.zeros(8, int)


@pytest.mark.parametrize(
    "metric", [accuracy, negative_log_likelihood, reliability, expected_calibration_error, evaluate]
)
def test_bad_logits_and_targets(metric):
    with says("logits: shape [8], expected [N, C]"):
        metric(Z[:, 0], Y)
    with says("logits: shape [0, 3]", "at least one sample"):
        metric(Z[:0], Y[:0])
    with says("logits: dtype torch.int64", "floating-point"):
        metric(Z.astype(int), Y)
    with says("targets: shape [7], expected [8]"):
        metric(Z, Y[:7])
    with says("targets: shape [8, 3], expected [8]"):
        metric(Z, np.zeros((8, 3), int))
    with says("targets: dtype torch.float64", "whole class numbers"):
        metric(Z, Y.astype(float))
    with says("targets: values from 0 to 3, expected 0 to 2"):
        metric(Z, np.array([3, 0, 0, 0, 0, 0, 0, 0]))
    with says("targets: values from -1 to 0", "labelled samples only"):
        metric(Z, np.array([-1, 0, 0, 0, 0, 0, 0, 0]))


@pytest.mark.parametrize("metric", [agreement, kl_to_teacher])
def test_bad_pairs(metric):
    with says("teacher_logits: shape [8, 2], expected student's [8, 3]"):
        metric(Z, Z[:, :2])
    with says("teacher_logits: shape [7, 3], expected student's [8, 3]"):
        metric(Z, Z[:7])
    with says("student_logits: shape [0, 3]"):
        metric(Z[:0], Z[:0])
    with says("teacher_logits: dtype torch.int64"):
        metric(Z, Z.astype(int))
    with says("teacher_logits: shape"):
        evaluate(Z, Y, Z[:, :2])


@pytest.mark.parametrize("bins", [0, -1, 2.5, None])
def test_bad_bins(bins):
    with says(f"bins: {bins!r}", "at least 1"):
        expected_calibration_error(Z, Y, bins)
