"""Charts with axes: bars, curves, compared settings, reliability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from kdlab.metrics import Reliability, mean_interval
from kdlab.plots.figures import (
    BLUE,
    GREY,
    ORANGE,
    PALETTE,
    labelled,
    new_figure,
    one_each,
    styled,
)
from kdlab.plots.grids import draw_image

FEWEST = 20  # samples in a bin that a reliability diagram shows


@styled
def probability_bars(
    axis: Axes,
    probabilities: ArrayLike,
    classes: Sequence[str],
    *,
    highlight: int | None = None,
) -> Any:
    """Draw probabilities as bars with their percentages above, on one fixed scale.

    Args:
        axis: where to draw; what it held is removed.
        probabilities: [C] values in [0, 1].
        classes: C names.
        highlight: index of the bar in orange, as a rule the true class.

    Returns:
        The bars; ``update_bars`` changes them in place, several times faster than drawing anew.

    Raises:
        ValueError: not one name for each probability.
    """
    heights = np.asarray(probabilities, dtype=float)
    one_each("classes", classes, len(heights), "probability")
    axis.clear()
    colors = [ORANGE if index == highlight else BLUE for index in range(len(heights))]
    bars = axis.bar(range(len(heights)), heights, color=colors, width=0.75)
    axis.bar_label(bars, labels=_percentages(heights), padding=2, fontsize=9)
    name_bars(axis, classes)
    axis.set_ylim(0, 1.08)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axis.grid(axis="y")
    axis.tick_params(axis="x", length=0)
    axis.set_ylabel("probability")
    return bars


@styled
def hard_and_soft(
    image: np.ndarray, label: int, probabilities: ArrayLike, classes: Sequence[str]
) -> Figure:
    """Draw distillation in one picture: an image, what its label says, what its teacher says.

    Args:
        image: [h, w] or [h, w, 3], values in [0, 1].
        label: number of the true class.
        probabilities: [C], the teacher's.
        classes: C names.
    """
    figure = new_figure(height=2.5)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.6, 1.6))
    draw_image(left, image)
    left.set_title("the image", loc="center")
    certain = np.eye(len(classes))[label]
    probability_bars(middle, certain, classes, highlight=label)
    middle.set_title("what the label says", loc="center")
    probability_bars(right, probabilities, classes, highlight=label)
    right.set_title("what the teacher says", loc="center")
    for text, share in zip(right.texts, np.asarray(probabilities), strict=True):
        text.set_visible(bool(share >= 0.05))  # smaller ones would touch each other
    for axis in (middle, right):
        axis.set_xlim(-1, len(classes))
    right.set_ylabel("")
    return labelled(
        figure, "An image, its label as one full bar, and its teacher's answer as several bars."
    )


def name_bars(axis: Axes, names: Sequence[str]) -> None:
    """Write names below bars, slanted where long ones would run into each other."""
    slanted = max(map(len, names[:10])) > 3
    axis.set_xticks(
        range(len(names)),
        list(names),
        rotation=35 if slanted else 0,
        ha="right" if slanted else "center",
        rotation_mode="anchor",
    )


def update_bars(axis: Axes, bars: Any, probabilities: ArrayLike) -> None:
    """Give the bars of ``probability_bars`` new heights and percentages."""
    heights = np.asarray(probabilities, dtype=float)
    for bar, text, height, percentage in zip(
        bars, axis.texts, heights, _percentages(heights), strict=True
    ):
        bar.set_height(height)
        cast(Any, text).xy = (bar.get_x() + bar.get_width() / 2, height)
        text.set_text(percentage)


@styled
def curves(
    series: Mapping[str, Any],
    *,
    column: str = "val_accuracy",
    x: str = "epoch",
    xlabel: str | None = None,
    ylabel: str | None = None,
    percent: bool = False,
) -> Figure:
    """Draw one line per entry; several runs of one setting become their mean and full range.

    Args:
        series: name → history frame (columns ``x`` and ``column``), or name → values [steps],
            or name → values [runs, steps].
        column: which column of a frame.
        x: column of a frame for the horizontal axis; values without a frame count from 1.
        xlabel: default: ``x``.
        ylabel: default: ``column``, underscores as spaces.
        percent: the values are fractions, shown as percentages.

    Raises:
        ValueError: no series, a missing column, or values with more than two dimensions.
    """
    if not series:
        raise ValueError("series is empty: give at least one name → values")
    figure = new_figure()
    axis = figure.subplots()
    for index, (name, given) in enumerate(series.items()):
        steps, runs = _steps_and_runs(name, given, column, x)
        color = PALETTE[index % len(PALETTE)]
        dashes = "-" if index < len(PALETTE) else "--"
        axis.plot(steps, runs.mean(axis=0), label=name, color=color, linestyle=dashes)
        if len(runs) > 1:
            axis.fill_between(
                steps, runs.min(axis=0), runs.max(axis=0), color=color, alpha=0.2, linewidth=0
            )
    axis.set_xlabel(xlabel or x)
    axis.set_ylabel(ylabel or column.replace("_", " "))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if percent:
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.grid(axis="y")
    axis.margins(x=0.01)
    if len(series) > 1:
        figure.legend(loc="outside right upper")
    names = ", ".join(series)
    return labelled(figure, f"Curves of {axis.get_ylabel()} over {axis.get_xlabel()}: {names}.")


def interval_table(frame: pd.DataFrame, metric: str, *, by: str = "setting") -> pd.DataFrame:
    """Return mean, low, high (95 % interval, Student's t) and n of ``metric`` for each ``by``.

    Args:
        frame: tidy, one row per run: the columns ``by`` and ``metric`` (``study`` gives it).
        metric: column of numbers.
        by: column that names the setting.

    Returns:
        One row per setting, in the order in which the settings first appear.

    Raises:
        ValueError: a column is missing, or there is no row.
    """
    for name, column in (("metric", metric), ("by", by)):
        if column not in frame.columns:
            known = ", ".join(map(str, frame.columns))
            raise ValueError(f"{name}={column!r} is no column of the frame; it has {known}")
    if frame.empty:
        raise ValueError("frame has no rows; expected one row per run")
    rows = {
        name: mean_interval(group.to_numpy())
        for name, group in frame.groupby(by, sort=False)[metric]
    }
    return pd.DataFrame(
        [(i.mean, i.low, i.high, i.n) for i in rows.values()],
        columns=["mean", "low", "high", "n"],
        index=pd.Index(rows, name=by),
    )


@styled
def interval_points(
    frame: pd.DataFrame,
    metric: str,
    *,
    by: str = "setting",
    baseline: str | None = None,
    label: str | None = None,
    percent: bool = False,
    ascending: bool = True,
) -> Figure:
    """Compare settings: mean with 95 % interval, every seed as a dot, the best on top.

    Args:
        frame, metric, by: as in ``interval_table``.
        baseline: setting whose mean becomes a vertical line through all rows.
        label: of the horizontal axis; default: ``metric``, underscores as spaces.
        percent: the values are fractions, shown as percentages.
        ascending: True when larger is better.

    Raises:
        ValueError: as in ``interval_table``; or ``baseline`` is no setting.
    """
    table = interval_table(frame, metric, by=by).sort_values(
        "mean", ascending=ascending, kind="stable"
    )
    if baseline is not None and baseline not in table.index:
        known = ", ".join(map(str, table.index))
        raise ValueError(f"baseline={baseline!r} is no {by}; known: {known}")
    figure = new_figure(height=0.9 + 0.42 * len(table))
    axis = figure.subplots()
    if baseline is not None:
        axis.axvline(
            float(table["mean"][baseline]), color=GREY, linewidth=1.2, linestyle="--", zorder=1
        )
    for row, (name, entry) in enumerate(table.iterrows()):
        color = GREY if name == baseline else BLUE
        seeds = frame.loc[frame[by] == name, metric].to_numpy(dtype=float)
        axis.plot(seeds, np.full(len(seeds), row - 0.22), ".", color=color, alpha=0.55, zorder=2)
        axis.plot([entry["low"], entry["high"]], [row, row], color=color, linewidth=2.5, zorder=3)
        axis.plot(entry["mean"], row, "o", color=color, markersize=8, zorder=4)
    axis.set_yticks(range(len(table)), [str(name) for name in table.index])
    axis.set_ylim(-0.6, len(table) - 0.4)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel(label or metric.replace("_", " "))
    if percent:
        axis.xaxis.set_major_formatter(PercentFormatter(1.0))
        low, high = axis.get_xlim()
        axis.set_xlim(max(low, -0.01), min(high, 1.01))  # an interval may reach beyond
    axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.grid(axis="x")
    against = f"; the dashed line is {baseline}" if baseline is not None else ""
    return labelled(
        figure,
        f"{axis.get_xlabel().capitalize()} of {len(table)} settings, sorted: mean (large dot), "
        f"95 % interval (bar) and single seeds (small dots){against}.",
    )


@styled
def reliability(tables: Mapping[str, Reliability]) -> Figure:
    """Draw how often models are right against how sure they say they are.

    Args:
        tables: name → ``metrics.reliability(logits, targets)``; bins with fewer than
            ``FEWEST`` samples are left out, because their accuracy is mostly chance.

    Raises:
        ValueError: no table.
    """
    if not tables:
        raise ValueError("tables is empty: give at least one name → bins")
    figure = new_figure(3.6, width=5.8)
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.2, label="as sure as right")
    for index, (name, table) in enumerate(tables.items()):
        filled = np.asarray(table.count) >= FEWEST
        sure, right = np.asarray(table.confidence)[filled], np.asarray(table.accuracy)[filled]
        share = np.asarray(table.count)[filled] / np.sum(table.count)
        color = PALETTE[index % len(PALETTE)]
        axis.plot(sure, right, color=color, linewidth=1.5, label=name)
        axis.scatter(sure, right, s=20 + 250 * share, color=color)
    axis.set(xlim=(0, 1.03), ylim=(0, 1.03))
    axis.set_xlabel("confidence")
    axis.set_ylabel("accuracy")
    for direction in (axis.xaxis, axis.yaxis):
        direction.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.grid()
    figure.legend(loc="outside right upper")
    return labelled(
        figure,
        "Reliability: accuracy over confidence for "
        f"{', '.join(tables)}; larger dots hold more samples; the dashed diagonal is ideal.",
    )


def _percentages(heights: np.ndarray) -> list[str]:
    return [f"{height:.0%}" if height >= 0.005 else "" for height in heights]


def _steps_and_runs(name: str, given: Any, column: str, x: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the horizontal values [steps] and the lines [runs, steps] of one entry."""
    if isinstance(given, pd.DataFrame):
        if missing := {x, column} - set(given.columns):
            known = ", ".join(map(str, given.columns))
            raise ValueError(f"series[{name!r}] lacks {', '.join(sorted(missing))}; it has {known}")
        return given[x].to_numpy(), given[column].to_numpy(dtype=float)[None]
    runs = np.asarray(given, dtype=float)
    if runs.ndim not in (1, 2):
        raise ValueError(
            f"series[{name!r}] has shape {runs.shape}; expected [steps] or [runs, steps]"
        )
    runs = np.atleast_2d(runs)
    return np.arange(1, runs.shape[1] + 1), runs
