"""Intervals against SciPy's own, and against what a confidence interval promises."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kdlab.metrics import Interval, mean_interval, paired_difference

PROVED = settings(derandomize=True, deadline=None, max_examples=25)
NUMBERS = st.lists(st.floats(-100, 100), min_size=2, max_size=12)


def says(*parts):
    return pytest.raises(ValueError, match="^" + ".*".join(map(re.escape, parts)))


@PROVED
@given(values=NUMBERS, confidence=st.floats(0.5, 0.999))
def test_mean_interval_is_scipys_t_interval(values, confidence):
    ours = mean_interval(values, confidence)
    error = stats.sem(values)
    low, high = (
        stats.t.interval(confidence, len(values) - 1, np.mean(values), error)
        if error > 0
        else (np.mean(values),) * 2
    )
    assert ours.mean == pytest.approx(np.mean(values))
    assert (ours.low, ours.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))
    assert ours.n == len(values)


def test_mean_interval_by_hand():
    """Three seeds: t(0.975, 2) = 4.303, standard error 1 / √3."""
    ours = mean_interval([1.0, 2.0, 3.0])
    assert ours.mean == 2 and ours.n == 3
    assert ours.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


def test_intervals_cover_the_truth_as_often_as_they_say():
    random = np.random.default_rng(0)
    covered = [not mean_interval(random.normal(3, 2, 5)).excludes(3.0) for _ in range(2000)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)  # three standard errors


@PROVED
@given(pairs=st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=2, max_size=9))
def test_paired_difference_is_the_interval_of_scipys_paired_t_test(pairs):
    a, b = np.array(pairs).T
    if np.ptp(a - b) < 1e-6:
        return
    ours = paired_difference(a, b, 0.9)
    theirs = stats.ttest_rel(a, b).confidence_interval(0.9)
    assert ours.mean == pytest.approx((a - b).mean())
    assert (ours.low, ours.high) == (pytest.approx(theirs.low), pytest.approx(theirs.high))


def test_pairing_sees_what_separate_intervals_miss():
    seeds = np.array([0.1, -0.3, 0.2, 0.4, -0.2])
    better, worse = 0.82 + seeds, 0.81 + seeds + [0.001, -0.001, 0, 0.002, -0.002]
    assert paired_difference(better, worse).excludes(0.0)
    assert mean_interval(better).low < mean_interval(worse).high


def test_one_seed_has_a_mean_and_no_bounds():
    one = mean_interval([0.7])
    assert one.mean == 0.7 and one.n == 1
    assert math.isnan(one.low) and math.isnan(one.high) and math.isnan(one.half_width)
    assert not one.excludes(0.0) and not one.excludes(math.inf)


def test_a_diverged_seed_is_not_dropped_in_silence():
    broken = mean_interval([0.7, math.nan, 0.8])
    assert math.isnan(broken.mean) and math.isnan(broken.low) and broken.n == 3


def test_it_takes_any_iterable_and_prints_in_one_line():
    assert mean_interval(x / 10 for x in (7, 8, 9)) == mean_interval(np.array([0.7, 0.8, 0.9]))
    assert mean_interval({"a": 0.7, "b": 0.9}.values()) == mean_interval([0.7, 0.9])
    assert str(mean_interval([0.7, 0.8, 0.9])) == "0.8 ± 0.25 (n = 3)"
    assert str(Interval(0.5, math.nan, math.nan, 1)) == "0.5 ± nan (n = 1)"


def test_errors():
    with says("values: shape [0]", "at least one"):
        mean_interval([])
    with says("values: shape [2, 1]", "flat list"):
        mean_interval([[1.0], [2.0]])
    for confidence in (0, 1, 95, -0.5, math.nan):
        with says(f"confidence: {confidence!r}", "between 0 and 1"):
            mean_interval([1.0, 2.0], confidence)
    with says("b: 2 values, expected as many as in a (3)", "same seeds"):
        paired_difference([1.0, 2.0, 3.0], [1.0, 2.0])
    with says("a: shape [0]"):
        paired_difference([], [])
