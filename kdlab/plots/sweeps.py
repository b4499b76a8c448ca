"""What a swept parameter does to a result."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from kdlab.metrics import mean_interval
from kdlab.plots.figures import BLUE, PALETTE, labelled, new_figure, styled
from kdlab.words import short

WIDE = 20  # largest : smallest value, from which on the axis is logarithmic
DODGE, DODGE_TEXTS = 0.03, 0.15  # to each side, of the distance between neighbours
NEAREST = 0.07  # two labels of an axis, of its length
LETTERS, HANDLE = 76, 6  # of a legend: in one row, and as wide as what stands for a line


@styled
def swept_points(
    frame: pd.DataFrame,
    metric: str,
    *,
    x: str,
    by: str | None = None,
    panels: str | None = None,
    label: str | None = None,
    title: str | None = None,
) -> Figure:
    """Draw a metric over the values of a parameter: means with 95 % intervals (Student's t).

    Numbers stand where they are, on a logarithmic axis if they are positive and reach over a
    factor of more than 20, and are joined by a line; texts stand in order and are not joined.
    Lines are moved apart a little, so that intervals can be seen. A mean of one number has no bar.
    Where all values lie in [0, 1], so does the axis, though an interval may reach further.

    Args:
        frame: tidy, one row for each independent measurement, as a rule a seed; with the columns
            ``x``, ``metric``, ``by`` and ``panels``.
        metric: column of numbers.
        x: column of the parameter, numbers or texts.
        by: column that names the lines, at most eight in a panel; default: one line.
        panels: column that names small pictures with the same axes; default: one picture.
        label: of the vertical axis; default: ``metric``, underscores as spaces.
        title: above it all.

    Raises:
        ValueError: a column is missing, no row has a number, or there are more than eight lines.
    """
    for name, column in (("metric", metric), ("x", x), ("by", by), ("panels", panels)):
        if column is not None and column not in frame.columns:
            known = ", ".join(map(str, frame.columns))
            raise ValueError(f"{name}={column!r} is no column of the frame; it has {known}")
    frame = frame.dropna(subset=[metric])
    if frame.empty:
        raise ValueError(f"metric={metric!r}: no row of the frame has a number")
    names = frame[by].astype(str) if by else pd.Series("", index=frame.index)
    groups = frame[panels].astype(str) if panels else pd.Series("", index=frame.index)
    lines = {group: list(dict.fromkeys(part)) for group, part in names.groupby(groups, sort=False)}
    most = max(map(len, lines.values()))
    if most > len(PALETTE):
        raise ValueError(f"by={by!r} names {most} lines; expected at most {len(PALETTE)}")
    every = list(dict.fromkeys(names))
    again = len(lines) == 1 or sum(map(len, lines.values())) > len(every)
    shared = again and len(every) <= len(PALETTE)  # one legend, and a line has its own colour
    columns = min(2, len(lines))
    rows = math.ceil(len(lines) / columns)
    figure = new_figure(3.4 if rows == 1 else 0.6 + 2.5 * rows)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    places, ticks, is_log = _places(frame[x], NEAREST * columns)
    means = pd.DataFrame({"x": places, "y": frame[metric].astype(float), "line": names})
    for axis, (group, inside) in zip(axes.flat, lines.items(), strict=False):
        order = every if shared else inside
        handles = _draw(axis, means[groups == group], order, is_log, joined=_is_number(frame[x]))
        if shared:
            axis.set_title(group, fontsize=11)
        else:
            fitting = _fitting(order, len(axes[0]))
            axis.legend(handles, order, loc="lower left", bbox_to_anchor=(0, 1), ncols=fitting)
        axis.grid(axis="y")
    first = axes[0, 0]
    if is_log:
        first.set_xscale("log")
    first.set_xticks(list(ticks), list(ticks.values()))
    first.minorticks_off()
    if not _is_number(frame[x]):
        first.set_xlim(-0.5, len(ticks) - 0.5)
    _limit(first, means["y"])
    for axis in axes.flat[len(lines) :]:
        axis.set_visible(False)
    for axis in axes.flat[max(0, len(lines) - columns) : len(lines)]:
        axis.set_xlabel(x.replace("_", " "))
        axis.tick_params(labelbottom=True)
    what = label or metric.replace("_", " ")
    if rows == 1:
        first.set_ylabel(what)
    else:
        figure.supylabel(what, fontsize=11)
    if by and shared:
        ncols = _fitting(every, 1)
        figure.legend(handles, every, loc="outside upper left", fontsize=10, ncols=ncols)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    several = means.assign(group=groups).groupby(["group", "line", "x"]).size().max() > 1
    words = f"{what[:1].upper()}{what[1:]} over {x.replace('_', ' ')}"
    words += ", mean and 95 % interval" if several else ""
    words += f": {', '.join(every)}" if by else ""
    words += f"; panels: {', '.join(lines)}" if panels and shared else ""
    return labelled(figure, f"{words}. {title or ''}".strip())


def _draw(
    axis: Axes, means: pd.DataFrame, order: list[str], is_log: bool, joined: bool
) -> list[Any]:
    """Draw the lines of one panel and return what stands for them in a legend."""
    gap = _gap(means["x"], is_log)
    handles = []
    for number, name in enumerate(order):
        part = means[means["line"] == name].groupby("x")["y"].apply(list)
        share = (2 * number / (len(order) - 1) - 1) if len(order) > 1 else 0
        away = share * gap * (DODGE if joined else DODGE_TEXTS)
        places = part.index.to_numpy(dtype=float)
        places = places * np.exp(away) if is_log else places + away
        intervals = [mean_interval(values) for values in part]
        color = PALETTE[number] if len(order) > 1 else BLUE
        heights = [i.mean for i in intervals]
        drawn = axis.errorbar(
            places,
            heights,
            yerr=[[i.mean - i.low for i in intervals], [i.high - i.mean for i in intervals]],
            color=color,
            marker="o",
            markersize=5,
            linewidth=1.6,
            linestyle="-" if joined else "none",
        )
        drawn.lines[0].set_clip_on(False)  # the point of a mean of 1 is whole
        handles.append(drawn)
    return handles


def _fitting(names: list[str], columns: int) -> int:
    """Return how many of these names fit into one row of a legend, in one of so many columns."""
    return max(1, LETTERS // columns // (max(map(len, names)) + HANDLE))


def _places(column: pd.Series, nearest: float) -> tuple[pd.Series, dict[float, str], bool]:
    """Return where the values stand, the labels of the axis, and whether it is logarithmic.

    What is missing stands beyond the largest number. Labels that would touch are left out.
    """
    if not _is_number(column):
        texts = column.map(short)
        order = {text: float(place) for place, text in enumerate(sorted(texts.unique()))}
        return texts.map(order), {place: text for text, place in order.items()}, False
    numbers = sorted(column.dropna().astype(float).unique())
    is_log = bool(numbers) and numbers[0] > 0 and numbers[-1] > WIDE * numbers[0]
    end = numbers[-1] if numbers else 0.0
    span = math.log(end / numbers[0]) if is_log else end - numbers[0] if numbers else 0.0
    beyond = (span or 1.0) * 2 * nearest
    none = end * math.exp(beyond) if is_log else end + beyond
    ticks: dict[float, str] = {}
    for number in numbers:
        distance = math.inf
        if ticks:
            before = list(ticks)[-1]
            distance = math.log(number / before) if is_log else number - before
        if distance >= nearest * span:
            ticks[number] = short(number)
    if column.isna().any():
        ticks[none] = short(None)
    return column.astype(float).fillna(none), ticks, is_log


def _gap(places: pd.Series, is_log: bool) -> float:
    """Return the smallest distance between neighbours, as the axis shows it."""
    values = np.sort(places.unique().astype(float))
    distances = np.diff(np.log(values) if is_log else values)
    return float(distances.min()) if len(distances) else 0.0


def _limit(axis: Axes, values: pd.Series) -> None:
    """Keep the axis of a share in [0, 1], though an interval may reach further."""
    low, high = axis.get_ylim()
    if values.between(0, 1).all():
        axis.set_ylim(max(low, 0.0), min(high, 1.0))


def _is_number(column: pd.Series) -> bool:
    finite = is_numeric_dtype(column) and not is_bool_dtype(column)
    return bool(finite and not np.isinf(column.astype(float)).any())
