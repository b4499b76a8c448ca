"""What a swept parameter does to a result."""

from __future__ import annotations

import math

import pandas as pd
import seaborn
from matplotlib.figure import Figure
from pandas.api.types import is_numeric_dtype

from kdlab.metrics import mean_interval
from kdlab.plots.figures import BLUE, PALETTE, labelled, new_figure, styled
from kdlab.words import short


@styled
def swept_points(
    frame: pd.DataFrame,
    metric: str,
    *,
    x: str,
    by: str | None = None,
    label: str | None = None,
) -> Figure:
    """Draw a metric over the values of a parameter: means with 95 % intervals (Student's t).

    The values stand at equal distances, in their order; numbers are joined by a line, texts not. A
    mean of one number has no bar.

    Args:
        frame: tidy, one row for each independent measurement, as a rule a seed; with the columns
            ``x``, ``metric`` and ``by``.
        metric: column of numbers.
        x: column of the parameter, numbers or texts.
        by: column that names the lines, at most eight; default: one line.
        label: of the vertical axis; default: ``metric``, underscores as spaces.

    Raises:
        ValueError: a column is missing, no row has a number, or there are more than eight lines.
    """
    for name, column in (("metric", metric), ("x", x), ("by", by)):
        if column is not None and column not in frame.columns:
            known = ", ".join(map(str, frame.columns))
            raise ValueError(f"{name}={column!r} is no column of the frame; it has {known}")
    frame = frame.dropna(subset=[metric])
    lines = list(dict.fromkeys(frame[by].astype(str))) if by else []
    if frame.empty:
        raise ValueError(f"metric={metric!r}: no row of the frame has a number")
    if len(lines) > len(PALETTE):
        raise ValueError(f"by={by!r} names {len(lines)} lines; expected at most {len(PALETTE)}")
    figure = new_figure(3.4)
    axis = figure.subplots()
    seaborn.pointplot(
        pd.DataFrame(
            {
                "x": frame[x].map(short),
                "y": frame[metric].astype(float),
                "line": frame[by].astype(str) if by else "",
            }
        ),
        x="x",
        y="y",
        hue="line" if by else None,
        order=[short(value) for value in sorted(frame[x].unique(), key=_sort_key)],
        hue_order=lines or None,
        palette=PALETTE[: len(lines)] if by else None,
        color=None if by else BLUE,
        dodge=0.3 if len(lines) > 1 else False,
        errorbar=_bounds,
        linestyle="-" if is_numeric_dtype(frame[x]) else "none",
        linewidth=1.6,
        ax=axis,
    )
    axis.set_xlabel(x.replace("_", " "))
    axis.set_ylabel(label or metric.replace("_", " "))
    axis.grid(axis="y")
    if by:
        handles, names = axis.get_legend_handles_labels()
        if legend := axis.get_legend():
            legend.remove()
        figure.legend(handles, names, loc="outside right upper", fontsize=10)
    what = axis.get_ylabel()
    return labelled(
        figure,
        f"{what[:1].upper()}{what[1:]} over {axis.get_xlabel()}, mean and 95 % interval"
        + (f": {', '.join(lines)}." if by else "."),
    )


def _bounds(values: pd.Series) -> tuple[float, float]:
    interval = mean_interval(values)
    return interval.low, interval.high


def _sort_key(value: object) -> tuple[float, str]:
    number = float(value) if isinstance(value, int | float) and value == value else math.inf
    return number, short(value)
