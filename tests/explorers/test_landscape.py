"""The map of stored results: what it shows is what the table holds."""

import pandas as pd
import pytest

from kdlab.explorers import LandscapeExplorer


def table():
    return pd.DataFrame(
        [
            {"temperature": t, "alpha": a, "seed": s, "accuracy": 0.5 + 0.01 * s + gain}
            for t, a, gain in [(1.0, 0.0, 0.0), (1.0, 0.9, 0.01), (4.0, 0.9, 0.2), (4.0, 0.3, 0.1)]
            for s in range(3)
        ]
        + [{"temperature": 1.0, "alpha": 0.3, "seed": s, "accuracy": 0.5} for s in range(3)]
    )


def test_the_chosen_place_is_looked_up_and_compared_by_seed():
    place = LandscapeExplorer(table()).set(temperature=4.0, alpha=0.9)
    assert place.interval.mean == pytest.approx(0.71)
    # every seed gains the same, so the paired interval is a point although the seeds differ
    assert (place.gain.low, place.gain.high) == pytest.approx((0.2, 0.2))


def test_rows_may_come_in_any_order():
    shuffled = LandscapeExplorer(table().sample(frac=1, random_state=1))
    assert shuffled.set(temperature=4.0, alpha=0.9).gain.high == pytest.approx(0.2)


def test_read_out_names_place_gain_and_seeds():
    shown = LandscapeExplorer(table())
    shown.set(temperature=4.0, alpha=0.3)
    assert "T=4 α=0.3 | 61.0% | gain over labels +10.0 points [+10.0, +10.0] | 3 seeds" in repr(
        shown
    )


def test_a_missing_column_or_baseline_is_named():
    with pytest.raises(ValueError, match="column seed is missing"):
        LandscapeExplorer(table().drop(columns="seed"))
    with pytest.raises(ValueError, match="alpha = 0"):
        LandscapeExplorer(table().query("alpha > 0"))


def test_no_interval_is_cut_off_at_any_place():
    runs = table()
    runs.loc[runs["temperature"] == 4.0, "accuracy"] += runs["seed"] * 0.1  # wide intervals
    shown = LandscapeExplorer(runs)
    axes = set()
    for temperature, alpha in [(1.0, 0.3), (4.0, 0.9), (4.0, 0.3)]:
        interval = shown.set(temperature=temperature, alpha=alpha).interval
        low, high = shown.figure.axes[1].get_ylim()
        assert low < interval.low and interval.high < high
        axes.add((low, high))
    assert len(axes) == 1
