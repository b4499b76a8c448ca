"""What is the best model that a budget buys? Stored models, their quality over their cost.

Lesson 06.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from kdlab import plots
from kdlab.compression import pick
from kdlab.explorers.base import Explorer
from kdlab.explorers.tradeoffs import Score, pareto_front, read_models

MARKERS = "os^DvPX*"
WIDE = 8.0  # largest over smallest cost from which the axis is logarithmic
INSIDE = (0.105, 0.13, 0.63, 0.84)  # the axes' place in the figure; the legend is to the right
MARGIN = 0.08  # of the axis, to the left and right of the points
NAME = 20  # letters in a line of a model's name
ALL = 100  # the budget that every model keeps, in percent of the axis


@dataclass(frozen=True)
class Tradeoff:
    """What a budget buys.

    Attributes:
        cost, quality: the columns that are compared.
        limit: the budget, in the cost's own unit (bytes, milliseconds, ...).
        models: those with both numbers, cheapest first: a row for each, its name as index, with
            ``made_by``, ``seeds``, means of all columns, and ``low`` and ``high``, the quality's
            95 % interval (NaN with one seed).
        front: names of those that no other beats in quality without costing more.
        within: names of those that keep to the budget.
        winner: the one of them with the best validation accuracy.
        chosen: the one that the reader looks at.
        missing: names of those that lack one of the two numbers.
    """

    cost: str
    quality: str
    limit: float
    models: pd.DataFrame
    front: list[str]
    within: list[str]
    winner: str
    chosen: str
    missing: list[str]


class ParetoExplorer(Explorer):
    """Set a budget and see which model is the best within it; leaf through all of them.

    Every model is a point: what it costs, and how good it is on the test images. The step line is
    the Pareto front: who lies on it is beaten by nobody who costs as little. The model with the
    ring is the best *on validation images* among those within the budget, so it may lie below the
    front: the test images must not choose.

    Args:
        table: a row for each model, or for each model and seed: ``model``, ``made_by``,
            ``accuracy``, ``val_accuracy``; at least one cost (``bytes``, ``parameters``, ``flops``,
            ``latency_ms``, ``memory_bytes``, ``energy_joules``, as in `kdlab.metrics.Cost`); if
            wanted ``agreement``, ``ece``, ``nll``, ``kl_to_teacher``, as `kdlab.metrics.evaluate`
            names them. Costs of several seeds are averaged; one that is NaN makes the mean NaN.
        goal: what to find out, shown above the controls.

    Raises:
        ValueError: a missing column, no rows, no cost that is known of any model, a model without
            accuracy or of two kinds, costs that are not positive.
    """

    def __init__(self, table: pd.DataFrame, *, goal: str = "") -> None:
        self.models = read_models(table)
        kinds = self.models.means["made_by"].unique()
        self.looks: dict[str, dict[str, Any]] = {
            kind: {"color": plots.PALETTE[i % 8], "marker": MARKERS[(i + i // 8) % 8]}
            for i, kind in enumerate(kinds)
        }
        costs = [(f"{cost.name} ({cost.unit})", name) for name, cost in self.models.costs.items()]
        qualities = [(score.name, name) for name, score in self.models.qualities.items()]
        controls = {
            "cost": widgets.Dropdown(options=costs, description="cost"),
            "quality": widgets.Dropdown(options=qualities, description="quality"),
            "budget": widgets.IntSlider(ALL, 0, ALL, 2, description="budget, % of the axis"),
            "model": widgets.SelectionSlider(
                options=self.models.cheapest_first(costs[0][1]),
                description="model",
                layout=widgets.Layout(width="100%", max_width="680px"),
            ).add_class("kd-names"),
        }
        controls["cost"].observe(self._reorder, names="value")
        super().__init__(controls, goal=goal, size=(plots.WIDTH, 4.0))

    def compute(self, state: dict[str, Any]) -> Tradeoff:
        """Compare the models in ``state["cost"]`` and ``state["quality"]`` under the budget.

        Raises:
            ValueError: no model has both numbers.
        """
        cost, quality = state["cost"], state["quality"]
        models = self.models.means.dropna(subset=[cost, quality])
        if models.empty:
            raise ValueError(f"table: no model has both {cost} and {quality}")
        models = models.sort_values([cost, "val_accuracy"], ascending=[True, False], kind="stable")
        models = models.join(self.models.bounds[quality])
        less = self.models.qualities[quality].less
        limit = _share_of_axis(models[cost].iloc[0], models[cost].iloc[-1], state["budget"])
        keeps = limit * (1 + 1e-9)  # the last digit of a power must not shut anybody out
        return Tradeoff(
            cost=cost,
            quality=quality,
            limit=limit,
            models=models,
            front=pareto_front(models[cost], models[quality] * (-1 if less else 1)),
            within=list(models.index[models[cost] <= keeps]),
            winner=str(pick(models, "val_accuracy", **{cost: keeps}).name),
            chosen=state["model"],
            missing=[name for name in self.models.means.index if name not in models.index],
        )

    def draw(self, figure: Figure, result: Tradeoff) -> None:
        """Draw the models as points, the front, the budget, and name winner and chosen model."""
        if not figure.axes:
            figure.set_layout_engine("none")  # fixed places: nothing jumps
            figure.add_axes(INSIDE)
            figure.legend(
                handles=_legend(self.looks), loc="upper left", fontsize=9,
                bbox_to_anchor=(INSIDE[0] + INSIDE[2] + 0.005, 0.98),
            )  # fmt: skip
        (axis,) = figure.axes
        axis.clear()
        models, cost = result.models, self.models.costs[result.cost]
        x, y = models[result.cost] / cost.by, models[result.quality]
        _set_x(axis, float(x.min()), float(x.max()))
        _set_y(axis, models[["low", "high"]].assign(y=y), self.models.qualities[result.quality])
        axis.set_xlabel(f"{cost.name} ({cost.unit})")
        limit, right = result.limit / cost.by, axis.get_xlim()[1]
        axis.axvspan(limit, right, color=plots.GREY, alpha=0.16, lw=0)
        axis.axvline(limit, color=plots.GREY, lw=1.5, ls="--")
        ends, best = [*x[result.front], right], [*y[result.front], y[result.front[-1]]]
        axis.step(ends, best, where="post", color=plots.GREY, lw=1.5)
        for kind, look in self.looks.items():
            own = models["made_by"] == kind
            axis.vlines(
                x[own], models["low"][own], models["high"][own], color=look["color"], alpha=0.6
            )
            axis.plot(x[own], y[own], ls="", ms=8, mec="black", mew=0.6, zorder=4, **look)
        winner, chosen = result.winner, result.chosen
        axis.plot(x[winner], y[winner], "o", ms=17, mfc="none", mec="black", mew=2, zorder=5)
        if chosen in models.index:
            axis.plot(x[chosen], y[chosen], "s", ms=13, mfc="none", mec=plots.GREY, mew=2)
        named = dict.fromkeys(name for name in (winner, chosen) if name in models.index)
        plots.name_points(
            axis,
            {_in_lines(name): (x[name], y[name]) for name in named},
            list(zip(x, y, strict=True)),
        )

    def describe(self, result: Tradeoff) -> str:
        """Return the budget, the best model within it, and all numbers of the chosen one."""
        cost, score = self.models.costs[result.cost], self.models.qualities[result.quality]
        best = score.text(result.models[result.quality][result.winner])
        told = [
            f"{cost.name} up to {cost.text(result.limit)}: {len(result.within)} of "
            f"{len(result.models)} models",
            f"best on validation: {result.winner}, {score.name} {best}",
            f"looked at: {self.models.describe(result.chosen)}",
        ]
        if result.missing:
            gaps = self.models.means.loc[result.missing, [result.cost, result.quality]].isna().any()
            names = (cost.name, score.name)
            lacking = [name for name, gap in zip(names, gaps, strict=True) if gap]
            told.append(f"left out, {' or '.join(lacking)} unknown: {', '.join(result.missing)}")
        return " | ".join(told)

    def _reorder(self, change: Any) -> None:
        """Sort the slider of models by the new cost; the chosen model stays chosen."""
        slider, setting = self.controls["model"], self._setting
        chosen, self._setting = slider.value, True  # a move without a frame
        try:
            with slider.hold_sync():
                slider.options = self.models.cheapest_first(change.new)
                slider.value = chosen
        finally:
            self._setting = setting


def _in_lines(name: str) -> str:
    """A long name in lines of about equal length."""
    lines = -(-len(name) // NAME)
    return textwrap.fill(name, len(name) // lines + 4) if lines > 1 else name


def _share_of_axis(low: float, high: float, percent: float) -> float:
    """The cost at so many percent of the way from the cheapest to the dearest, as drawn."""
    if percent == ALL:
        return float(high)
    if _logarithmic(low, high):
        return float(low * (high / low) ** (percent / ALL))
    return float(low + (high - low) * percent / ALL)


def _logarithmic(low: float, high: float) -> bool:
    return bool(high / low >= WIDE)


def _set_x(axis: Axes, low: float, high: float) -> None:
    """Scale, limits and ticks for costs from ``low`` to ``high``."""
    if _logarithmic(low, high):
        axis.set_xscale("log")
        axis.set_xlim(low * (low / high) ** MARGIN, high * (high / low) ** MARGIN)
        few = high / low < 200  # then 2 and 5 have room between the powers of ten
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
        axis.xaxis.set_minor_locator(NullLocator())
    else:
        room = MARGIN * (high - low) or high / 2
        axis.set_xlim(low - room, high + room)
        axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")


def _set_y(axis: Axes, ys: pd.DataFrame, score: Score) -> None:
    """Limits with room for all ``ys``, and ticks; the good is at the top, whatever it is."""
    low, high = np.nanmin(ys), np.nanmax(ys)
    room = 1.5 * MARGIN * (high - low) or 0.05
    axis.set_ylim(low - room, high + room)
    if score.less:
        axis.invert_yaxis()
    axis.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if score.share:
        axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.10g}%")
    axis.grid(axis="y")
    axis.set_ylabel(score.name + (" (less is better)" if score.less else ""))


def _legend(looks: dict[str, dict[str, Any]]) -> list[Line2D]:
    def entry(text: str, **look: Any) -> Line2D:
        return Line2D([], [], label=textwrap.fill(text, 18), **look)

    hollow = {"ls": "", "mfc": "none", "mew": 2}
    return [
        *(entry(kind, ls="", ms=8, mec="black", mew=0.6, **look) for kind, look in looks.items()),
        entry("Pareto front", color=plots.GREY, lw=1.5),
        entry("budget", color=plots.GREY, lw=1.5, ls="--"),
        entry("best in budget", marker="o", ms=12, mec="black", **hollow),
        entry("looked at", marker="s", ms=10, mec=plots.GREY, **hollow),
    ]
