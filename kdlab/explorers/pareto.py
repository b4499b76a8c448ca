"""What is the best model that a budget buys? Stored models, their quality over their cost.

Lesson 06.
"""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import Any, NamedTuple

import ipywidgets as widgets
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from kdlab import plots
from kdlab.compression import pick
from kdlab.explorers.base import Explorer
from kdlab.metrics import mean_interval

MARKERS = "os^DvPX*"
WIDE = 8.0  # largest over smallest cost from which the axis is logarithmic
INSIDE = (0.105, 0.13, 0.63, 0.84)  # the axes' place in the figure; the legend is to the right
MARGIN = 0.08  # of the axis, to the left and right of the points
NAME = 22  # letters in a line of a model's name
ALL = 100  # the budget that every model keeps, in percent of the axis


class Cost(NamedTuple):
    """How a column of costs is shown: its name, its unit, what that is, and how exactly."""

    name: str
    unit: str
    by: float
    digits: int = 3  # significant ones; what a clock or a meter measured has but one


class Quality(NamedTuple):
    """How a column of qualities is shown: its name, whether it is a share, and what is better."""

    name: str
    share: bool = True
    less: bool = False


COSTS = {
    "bytes": Cost("file", "kB", 1e3),
    "parameters": Cost("parameters", "thousand", 1e3),
    "flops": Cost("FLOPs of one sample", "million", 1e6),
    "latency_ms": Cost("latency", "ms", 1, 1),
    "memory_bytes": Cost("memory", "kB", 1e3),
    "energy_joules": Cost("energy of one sample", "mJ", 1e-3, 1),
}
QUALITIES = {
    "accuracy": Quality("test accuracy"),
    "agreement": Quality("agreement with the teacher"),
    "ece": Quality("calibration error", less=True),
    "nll": Quality("negative log-likelihood", share=False, less=True),
    "kl_to_teacher": Quality("KL from the teacher", share=False, less=True),
}


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
        _check(table)
        self.costs = _costs(table)
        self.qualities = {name: how for name, how in QUALITIES.items() if _known(table, name)}
        self.models, self.intervals = _by_model(table, [*self.qualities, *self.costs])
        kinds = self.models["made_by"].unique()
        self.looks: dict[str, dict[str, Any]] = {
            kind: {"color": plots.PALETTE[i % 8], "marker": MARKERS[(i + i // 8) % 8]}
            for i, kind in enumerate(kinds)
        }
        costs = [(f"{cost.name} ({cost.unit})", name) for name, cost in self.costs.items()]
        qualities = [(quality.name, name) for name, quality in self.qualities.items()]
        controls = {
            "cost": widgets.Dropdown(options=costs, description="cost"),
            "quality": widgets.Dropdown(options=qualities, description="quality"),
            "budget": widgets.IntSlider(ALL, 0, ALL, 2, description="budget, % of the axis"),
            "model": widgets.SelectionSlider(
                options=self._in_order(next(iter(self.costs))), description="model"
            ),
        }
        controls["cost"].observe(self._reorder, names="value")
        super().__init__(controls, goal=goal, size=(plots.WIDTH, 4.0))

    def compute(self, state: dict[str, Any]) -> Tradeoff:
        """Compare the models in ``state["cost"]`` and ``state["quality"]`` under the budget.

        Raises:
            ValueError: no model has both numbers.
        """
        cost, quality = state["cost"], state["quality"]
        models = self.models.dropna(subset=[cost, quality])
        if models.empty:
            raise ValueError(f"table: no model has both {cost} and {quality}")
        models = models.sort_values([cost, "val_accuracy"], ascending=[True, False], kind="stable")
        models = models.join(self.intervals[quality])
        limit = _share_of_axis(models[cost].iloc[0], models[cost].iloc[-1], state["budget"])
        keeps = limit * (1 + 1e-9)  # the last digit of a power must not shut anybody out
        return Tradeoff(
            cost=cost,
            quality=quality,
            limit=limit,
            models=models,
            front=_front(models[cost], models[quality] * (-1 if QUALITIES[quality].less else 1)),
            within=list(models.index[models[cost] <= keeps]),
            winner=str(pick(models, "val_accuracy", **{cost: keeps}).name),
            chosen=state["model"],
            missing=[name for name in self.models.index if name not in models.index],
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
        models, cost = result.models, self.costs[result.cost]
        x, y = models[result.cost] / cost.by, models[result.quality]
        _set_axes(axis, x, models[["low", "high"]].assign(y=y), self.qualities[result.quality])
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
            {textwrap.fill(name, NAME): (x[name], y[name]) for name in named},
            list(zip(x, y, strict=True)),
        )

    def describe(self, result: Tradeoff) -> str:
        """Return the budget, the best model within it, and all numbers of the chosen one."""
        cost, quality = self.costs[result.cost], self.qualities[result.quality]
        best = _score(quality, result.models[result.quality][result.winner])
        told = [
            f"{cost.name} up to {_amount(cost, result.limit)}: {len(result.within)} of "
            f"{len(result.models)} models",
            f"best on validation: {result.winner}, {quality.name} {best}",
            self._all_of(result.chosen),
        ]
        if result.missing:
            known = self.models.loc[result.missing]
            lacking = [
                how.name
                for name, how in ((result.cost, cost), (result.quality, quality))
                if known[name].isna().any()
            ]
            told.append(f"left out, {' or '.join(lacking)} unknown: {', '.join(result.missing)}")
        return " | ".join(told)

    def _all_of(self, name: str) -> str:
        """All numbers of one model."""
        row: Any = self.models.loc[name]
        told = []
        for column, quality in self.qualities.items():
            low, high = self.intervals[column].to_numpy()[self.models.index.get_loc(name)]
            if not math.isnan(row[column]):
                bounds = f" [{_score(quality, low)}, {_score(quality, high)}]"
                told.append(
                    f"{quality.name} {_score(quality, row[column])}"
                    + ("" if math.isnan(low) else bounds)
                )
        told += [
            f"{cost.name} {_amount(cost, row[column])}"
            for column, cost in self.costs.items()
            if not math.isnan(row[column])
        ]
        of = f"{row['seeds']} seeds" if row["seeds"] > 1 else "one seed"
        return f"looked at: {name} ({row['made_by']}, {of}), {', '.join(told)}"

    def _in_order(self, cost: str) -> list[str]:
        """All names, the cheapest first; those without that cost last."""
        return list(self.models.sort_values(cost, kind="stable").index)

    def _reorder(self, change: Any) -> None:
        """Sort the slider of models by the new cost; the chosen model stays chosen."""
        slider, setting = self.controls["model"], self._setting
        chosen, self._setting = slider.value, True  # a move without a frame
        try:
            with slider.hold_sync():
                slider.options = self._in_order(change.new)
                slider.value = chosen
        finally:
            self._setting = setting


def _check(table: pd.DataFrame) -> None:
    missing = [c for c in ("model", "made_by", "accuracy", "val_accuracy") if c not in table]
    if missing:
        raise ValueError(f"table: column {', '.join(missing)} is missing")
    if table.empty:
        raise ValueError("table has no rows; expected one for each model")
    costs = _costs(table)
    if not costs:
        raise ValueError(f"table: no cost is known; expected a column of {', '.join(COSTS)}")
    for column in ("accuracy", "val_accuracy"):
        lacking = table["model"][table[column].isna()]
        if len(lacking):
            raise ValueError(f"table: {column} of {lacking.iloc[0]!r} is NaN; expected a share")
    for cost in costs:
        low = table[cost].min()
        if low <= 0:
            raise ValueError(f"table: {cost} has {low:g}; expected costs above 0")
    kinds = table.groupby("model", sort=False)["made_by"].nunique(dropna=False)
    if (kinds > 1).any():
        raise ValueError(
            f"table: {kinds.idxmax()!r} has several made_by; expected one for each model"
        )


def _costs(table: pd.DataFrame) -> dict[str, Cost]:
    """The costs that are known of some model; names say how many samples, and what is a guess."""
    costs = {name: cost for name, cost in COSTS.items() if _known(table, name)}
    if "latency_ms" in costs and "batch" in table and table["batch"].nunique() == 1:
        batch = int(table["batch"].iloc[0])
        of = "one sample" if batch == 1 else f"{batch} samples"
        costs["latency_ms"] = costs["latency_ms"]._replace(name=f"latency of {of}")
    sources = table["energy_from"].astype(str) if "energy_from" in table else pd.Series(dtype=str)
    if "energy_joules" in costs and sources.str.startswith("estimate").any():
        costs["energy_joules"] = costs["energy_joules"]._replace(name="estimated energy")
    return costs


def _known(table: pd.DataFrame, column: str) -> bool:
    return column in table and bool(table[column].notna().any())


def _by_model(
    table: pd.DataFrame, columns: list[str]
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Return the means of each model, and for each quality its low and high."""
    groups = {str(name): rows for name, rows in table.groupby("model", sort=False)}
    index = pd.Index(groups, name="model")
    means = pd.DataFrame(
        [
            {"made_by": str(rows["made_by"].iloc[0]), "seeds": len(rows)}
            | {c: rows[c].astype(float).mean(skipna=False) for c in ("val_accuracy", *columns)}
            for rows in groups.values()
        ],
        index=index,
    )
    bounds = {}
    for column in (c for c in columns if c in QUALITIES):
        found = [mean_interval(rows[column].astype(float)) for rows in groups.values()]
        bounds[column] = pd.DataFrame([(i.low, i.high) for i in found], index, ["low", "high"])
    return means, bounds


def _front(cost: pd.Series, goodness: pd.Series) -> list[str]:
    """Names of those that are better than all that cost no more, cheapest first."""
    front: list[str] = []
    order = np.lexsort([-goodness.to_numpy(), cost.to_numpy()])
    for name in cost.index[order]:
        if not front or goodness[name] > goodness[front[-1]]:
            front.append(str(name))
    return front


def _share_of_axis(low: float, high: float, percent: float) -> float:
    """The cost at so many percent of the way from the cheapest to the dearest, as drawn."""
    if percent == ALL:
        return float(high)
    if _logarithmic(low, high):
        return float(low * (high / low) ** (percent / ALL))
    return float(low + (high - low) * percent / ALL)


def _logarithmic(low: float, high: float) -> bool:
    return bool(high / low >= WIDE)


def _set_axes(axis: Axes, x: pd.Series, ys: pd.DataFrame, quality: Quality) -> None:
    """Give the axis limits with room around the points and their intervals, scales and ticks."""
    low, high = float(x.min()), float(x.max())
    if _logarithmic(low, high):
        axis.set_xscale("log")
        axis.set_xlim(low * (low / high) ** MARGIN, high * (high / low) ** MARGIN)
        few = high / low < 200  # then 2 and 5 have room between the powers of ten
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        room = MARGIN * (high - low) or high / 2
        axis.set_xlim(low - room, high + room)
        axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    bottom, top = np.nanmin(ys), np.nanmax(ys)
    room = 1.5 * MARGIN * (top - bottom) or 0.05
    axis.set_ylim(bottom - room, top + room)
    if quality.less:
        axis.invert_yaxis()  # the good is at the top, whatever is measured
    axis.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if quality.share:
        axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.10g}%")
    axis.grid(axis="y")
    axis.set_ylabel(quality.name + (" (less is better)" if quality.less else ""))


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


def _amount(cost: Cost, value: float) -> str:
    """A cost with its unit; coarse where it differs from run to run."""
    about = "about " if cost.digits == 1 else ""
    return f"{about}{float(f'{value / cost.by:.{cost.digits}g}'):,.10g} {cost.unit}"


def _score(quality: Quality, value: float) -> str:
    return f"{value:.1%}" if quality.share else f"{value:.2f}"
