"""How a comparison changes with a number: more images, more noise."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from kdlab.plots.charts import interval_table
from kdlab.plots.figures import PALETTE, labelled, new_figure, styled

BESIDE = 0.012  # of the axis' width: settings stand beside one another, so that no bar hides one


@styled
def interval_curves(
    frame: pd.DataFrame,
    metric: str,
    *,
    x: str,
    by: str = "setting",
    log: bool = False,
    percent: bool = False,
    label: str | None = None,
    xlabel: str | None = None,
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """Draw one line per setting over a column of numbers: means, with 95 % intervals as bars.

    Args:
        frame: tidy, one row per run: the columns ``by``, ``x`` and ``metric``.
        metric: column of numbers.
        x: column for the horizontal axis, a few different numbers.
        by: column that names the setting.
        log: a logarithmic horizontal axis.
        percent: the values are fractions, shown as percentages.
        label, xlabel: of the axes; default: the columns' names, underscores as spaces.
        levels: setting → a value that it is expected to have everywhere, as a dashed line.

    Raises:
        ValueError: as in ``interval_table``.
    """
    figure = new_figure(3.4)
    axis = figure.subplots()
    places = np.array(sorted(frame[x].unique()), dtype=float)
    settings = list(dict.fromkeys(frame[by]))
    for number, name in enumerate(settings):
        color = PALETTE[number % len(PALETTE)]
        table = interval_table(frame[frame[by] == name], metric, by=x).sort_index()
        aside = BESIDE * (number - (len(settings) - 1) / 2)
        at = table.index.to_numpy(dtype=float)
        at = at * (places[-1] / places[0]) ** aside if log else at + aside * np.ptp(places)
        bars = [table["mean"] - table["low"], table["high"] - table["mean"]]
        axis.errorbar(at, table["mean"], yerr=bars, color=color, marker="o", ms=5, label=name)
        if levels and name in levels:
            axis.axhline(levels[name], color=color, ls="--", lw=1.4)
    axis.set_xscale("log" if log else "linear")
    axis.set_xticks(places, [f"{place:g}" for place in places])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel(xlabel or x.replace("_", " "))
    axis.set_ylabel(label or metric.replace("_", " "))
    if percent:
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.grid(axis="y")
    figure.legend(loc="outside right upper", fontsize=10)
    return labelled(
        figure,
        f"{axis.get_ylabel().capitalize()} over {axis.get_xlabel()}, mean and 95 % interval: "
        f"{', '.join(map(str, settings))}."
        + (" Dashed: the level that is expected." if levels else ""),
    )
