"""Drag a budget: which subnetwork of a nested network answers, and what does it say? Lesson 07."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from kdlab import plots
from kdlab.compression import Nested, pick
from kdlab.datasets import Data
from kdlab.explorers.answers import answer_bars, divide
from kdlab.explorers.base import Explorer
from kdlab.explorers.tradeoffs import COSTS, known_costs
from kdlab.models.modes import evaluating

LOOKS = ((plots.BLUE, "o"), (plots.VERMILION, "s"), (plots.GREEN, "^"), (plots.PURPLE, "D"))
LEAST, ALL = 1, 100  # of the slider, in percent of what the dearest width costs
IMAGES = 10  # of each class, to leaf through
PALE = 0.3  # what does not answer, and networks that are not chosen
NEEDED = ("width", "val_accuracy", "test_accuracy")


@dataclass(frozen=True)
class Answered:
    """Who answers within a budget, and what all widths say to one image.

    Attributes:
        network: its name.
        cost: the column that is limited.
        percent: the budget, in percent of what the dearest width costs.
        limit: the budget in the cost's own unit (bytes, milliseconds, ...).
        table: a row for each width of the network, from narrow to wide.
        width: of the subnetwork with the best validation accuracy within the budget; None if the
            budget is too small for any.
        label: number of the image's class.
        picture: the image, ``[h, w]`` or ``[h, w, 3]`` in [0, 1].
        answers: probabilities of each width, ``[W, C]``.
    """

    network: str
    cost: str
    percent: int
    limit: float
    table: pd.DataFrame
    width: float | None
    label: int
    picture: np.ndarray
    answers: np.ndarray

    @property
    def place(self) -> int | None:
        """The answering width's row in ``table`` and ``answers``."""
        return None if self.width is None else self.table["width"].tolist().index(self.width)

    @property
    def row(self) -> pd.Series[Any] | None:
        """The row of the width that answers."""
        return None if self.place is None else self.table.iloc[self.place]


class BudgetExplorer(Explorer):
    """Give a nested network a budget; see which width answers, what it costs, and what it says.

    To the left is each width's accuracy on the test images over what it costs. Grey is beyond the
    budget. The ring is around the width that answers: the best *on validation images* within the
    budget, because test images must not choose. To the right are an image and what each width says
    to it, divided among the likeliest classes; the right class is orange.

    Args:
        networks: name → a nested network and its table, a row for each width: ``width``,
            ``val_accuracy``, ``test_accuracy`` and at least one cost (``bytes``, ``flops``,
            ``latency_ms``, ``energy_joules``, ...), as ``compare_widths`` gives it. The first is
            shown first.
        data: the test images are asked about.
        goal: what to find out, shown above the controls.

    Raises:
        ValueError: no networks, or more than four; a table without a column that is needed,
            without costs or with other widths than its network; data that are no images.
    """

    def __init__(
        self,
        networks: Mapping[str, tuple[Nested, pd.DataFrame]],
        data: Data,
        *,
        goal: str = "",
    ) -> None:
        _check(networks, data)
        self.networks, self.data = dict(networks), data
        tables = pd.concat([table for _, table in networks.values()])
        self.costs = known_costs(tables, tables.columns[tables.notna().all()])
        if not self.costs:
            raise ValueError(
                f"networks: no cost of all is known; expected one of {', '.join(COSTS)}"
            )
        self.looks = dict(zip(networks, LOOKS, strict=False))
        there = torch.bincount(data.test.y, minlength=data.num_classes).tolist()
        classes = [(name, k) for k, name in enumerate(data.classes) if there[k]]
        costs = [(cost.name, column) for column, cost in self.costs.items()]
        budget = widgets.IntSlider(ALL, LEAST, ALL, description="budget, % of the widest")
        controls = {
            "network": widgets.Dropdown(options=list(networks), description="network"),
            "cost": widgets.Dropdown(options=costs, description="what is short"),
            "budget": budget,
            "label": widgets.Dropdown(options=classes, description="image of class"),
            "draw": widgets.IntSlider(0, 0, IMAGES - 1, description="another image"),
        }
        super().__init__(controls, goal=goal, size=(plots.WIDTH, 4.1))

    def compute(self, state: dict[str, Any]) -> Answered:
        """Pick the width within the budget, and ask all widths about the chosen image."""
        nested, table = self.networks[state["network"]]
        table, cost = table.sort_values("width", ignore_index=True), state["cost"]
        most, percent = float(table[cost].max()), state["budget"]
        limit = most if percent == ALL else most * percent / ALL
        within: dict[str, float] = {cost: limit}
        fits = bool((table[cost] <= limit).any())
        picked = float(pick(table, "val_accuracy", **within)["width"]) if fits else None
        same = (self.data.test.y == state["label"]).nonzero().squeeze(1)
        image = self.data.test.x[same[state["draw"] % len(same)]].unsqueeze(0)
        return Answered(
            network=state["network"],
            cost=cost,
            percent=percent,
            limit=limit,
            table=table,
            width=picked,
            label=state["label"],
            picture=self.data.image(image)[0],
            answers=_ask(nested, image),
        )

    def draw(self, figure: Figure, result: Answered) -> None:
        """Draw the chart of widths anew, and move what the image and the answers show."""
        if not figure.axes:
            figure.set_layout_engine("none")  # fixed places: nothing jumps
            self._chart = figure.add_axes((0.09, 0.13, 0.47, 0.72))
            picture = figure.add_axes((0.68, 0.6, 0.3, 0.32))
            self._answers = figure.add_axes((0.68, 0.05, 0.31, 0.41))
            self._picture = plots.draw_image(picture, result.picture)
            self._shown = ""
        if self._shown != result.network:  # another network may have other widths
            self._shown = result.network
            self._answers.clear()
            self._bars = answer_bars(self._answers, len(result.table))
            self._answers.set_title("what each width says", y=1.02)
        self._picture.set_data(result.picture)
        names = [f"{width:g}" for width in result.table["width"]]
        self._answers.set_yticks(range(len(names)), names)
        for place, (parts, letters, p) in enumerate(zip(*self._bars, result.answers, strict=True)):
            divide(parts, letters, p, result.label, self.data.classes)
            alpha = 1.0 if place == result.place else PALE
            for part in (*parts, *letters):
                part.set_alpha(alpha)
            weight = "bold" if place == result.place else "normal"
            self._answers.get_yticklabels()[place].set_fontweight(weight)
        self._draw_chart(self._chart, result)

    def describe(self, result: Answered) -> str:
        """Return the budget, who answers, what that costs, how often it is right, and what it says.

        What differs between machines is coarse: accuracy in tenths, times in one digit.
        """
        cost = self.costs[result.cost]
        within = f"{cost.name}: {result.percent}% of the widest's, {cost.text(result.limit)}"
        row, place = result.row, result.place
        if row is None or place is None:
            least = result.table[result.cost].min()
            return f"{result.network} | {within} | nobody answers: the least is {cost.text(least)}"
        said = self.data.classes[int(result.answers[place].argmax())]
        right = "right" if said == self.data.classes[result.label] else "wrong"
        return (
            f"{result.network} | {within} | width {result.width:g} answers, for "
            f"{cost.text(row[result.cost])}; it is right in about "
            f"{round(10 * row['test_accuracy'])} of 10 | it says {said}, which is {right}"
        )

    def _draw_chart(self, axis: Axes, result: Answered) -> None:
        axis.clear()
        cost = self.costs[result.cost]
        most = max(table[result.cost].max() for _, table in self.networks.values()) / cost.by
        scores = [table["test_accuracy"] for _, table in self.networks.values()]
        low, high = min(s.min() for s in scores), max(s.max() for s in scores)
        room = 0.1 * (high - low) or 0.05
        axis.set(xlim=(0, 1.1 * most), ylim=(max(0, low - room), high + 1.5 * room))
        axis.axvspan(result.limit / cost.by, 1.1 * most, color=plots.GREY, alpha=0.16, lw=0)
        axis.axvline(result.limit / cost.by, color=plots.GREY, lw=1.5, ls="--")
        for name, (_, table) in self.networks.items():
            own = name == result.network
            color, marker = self.looks[name]
            ordered = table.sort_values("width")
            axis.plot(
                ordered[result.cost] / cost.by, ordered["test_accuracy"], marker=marker, ms=7,
                color=color, alpha=1.0 if own else PALE, zorder=4 if own else 3, label=name,
            )  # fmt: skip
        x, y = result.table[result.cost] / cost.by, result.table["test_accuracy"]
        if result.place is not None:
            at = x[result.place], y[result.place]
            axis.plot(*at, "o", ms=17, mfc="none", mec="black", mew=2, zorder=5)
        points = list(zip(x, y, strict=True))
        names = {f"{width:g}": at for width, at in zip(result.table["width"], points, strict=True)}
        if result.place is not None:  # and how accurate it is
            names[f"{result.width:g}: {at[1]:.1%}"] = names.pop(f"{result.width:g}")
        plots.name_points(axis, names, points)
        axis.set(xlabel=f"{cost.name} ({cost.unit})", ylabel="test accuracy")
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axis.grid(axis="y")
        axis.legend(
            loc="lower left", bbox_to_anchor=(-0.16, 1.01), ncols=len(self.networks), fontsize=9,
            handlelength=1.2, columnspacing=1.0,
        )  # fmt: skip


@torch.no_grad()
def _ask(nested: Nested, image: torch.Tensor) -> np.ndarray:
    """Probabilities of each width, ``[W, C]``, for one image."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one small image: a second thread costs more than it gives
    try:
        with evaluating(nested):
            logits = torch.cat([nested.at(width, image).float() for width in nested.widths])
    finally:
        torch.set_num_threads(threads)
    return logits.softmax(dim=-1).numpy()


def _check(networks: Mapping[str, tuple[Nested, pd.DataFrame]], data: Data) -> None:
    if not 1 <= len(networks) <= len(LOOKS):
        raise ValueError(
            f"networks has {len(networks)} entries; expected 1 to {len(LOOKS)}, each name → "
            "(nested network, table)"
        )
    for name, (nested, table) in networks.items():
        if missing := [column for column in NEEDED if column not in table]:
            raise ValueError(f"networks[{name!r}]: the table has no column {', '.join(missing)}")
        if sorted(table["width"]) != list(nested.widths):
            raise ValueError(
                f"networks[{name!r}]: the table has the widths {sorted(table['width'])}; expected "
                f"those of the network, {list(nested.widths)}"
            )
    if len(data.shape) != 3:
        raise ValueError(f"data has samples of shape {data.shape}; expected images, (c, h, w)")
