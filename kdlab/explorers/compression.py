"""How small can it get: what is pruned, how far weights are rounded, and who helps afterwards.

Lesson 06.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from kdlab import plots
from kdlab.explorers.base import Explorer
from kdlab.metrics import Interval, mean_interval, paired_difference

COLUMNS = ("kind", "share", "bits", "recovered", "seed", "accuracy", "parameters", "nonzero")
ALONE = "no"  # the value of ``recovered`` that stands for: nothing was trained afterwards
FLOAT = 32  # bits of a weight that is not rounded
UNKNOWN = Interval(math.nan, math.nan, math.nan, 0)
COLORS = (plots.GREY, plots.ORANGE, plots.BLUE, plots.GREEN, plots.PURPLE)
DASHES = ("--", "-.", "-", ":", (0, (5, 1)))
CHOSEN: dict[str, Any] = {
    "marker": "s", "ms": 12, "mfc": "none", "mec": plots.VERMILION, "mew": 2.5, "ls": "",
    "label": "chosen",
}  # fmt: skip
RECOMPUTED: dict[str, Any] = {
    "marker": "X", "ms": 10, "color": plots.BLACK, "mec": "white", "ls": "",
    "label": "recomputed here",
}  # fmt: skip
PLACES = (0.085, 0.22, 0.385, 0.7), (0.555, 0.22, 0.435, 0.7)  # of the two panels
LEGEND: dict[str, Any] = {
    "fontsize": 9,
    "columnspacing": 1.0,
    "handletextpad": 0.4,
    "handlelength": 1.7,
}


@dataclass(frozen=True)
class Compressed:
    """What one setting leaves.

    Attributes:
        kind, share, bits, recovered: the setting.
        accuracies: test accuracy of each seed, 0 to 1; empty if this setting is not stored.
        interval: their mean with its 95 % interval; NaN if it is not stored.
        change: mean paired difference to the same seeds whole, not rounded and not recovered, with
            its 95 % interval; NaN if one of the two is not stored.
        parameters, nonzero: mean numbers of parameters, and of those that are not 0; NaN if it is
            not stored.
        recomputed: accuracy that was computed now, of a model that nothing helped afterwards; None
            unless it was asked for.
    """

    kind: str
    share: float
    bits: int
    recovered: str
    accuracies: np.ndarray
    interval: Interval
    change: Interval
    parameters: float
    nonzero: float
    recomputed: float | None

    @property
    def rounding(self) -> str:
        """The bits in words."""
        return "not rounded" if self.bits == FLOAT else f"{self.bits} bits"

    @property
    def bytes(self) -> float:
        """Size of a file that holds nothing but the parameters, zeros too, in so many bits each."""
        return self.parameters * self.bits / 8


class CompressionExplorer(Explorer):
    """Prune, round and recover by sliders; read what students reached there. Nothing is trained.

    On the left accuracy over the share that was pruned, at the chosen bits: a line for each way to
    recover, its band the 95 % interval over seeds. On the right all shares and bits at once, for
    the chosen kind of pruning and the chosen way to recover.

    Args:
        sweep: one row per run: ``kind`` (what was pruned), ``share`` (0 to 1), ``bits`` (of a
            weight; 32 is not rounded), ``recovered`` (who helped afterwards; "no" is nobody),
            ``seed``, ``accuracy``, ``parameters``, ``nonzero``. Settings may be missing.
        recompute: called with ``kind``, ``share`` and ``bits``, gives the accuracy in [0, 1] that
            pruning and rounding leave now, before anything is recovered, such as
            ``functools.partial(kdlab.compression.compressed_accuracy, model, data)``. Without it
            the switch "recompute here" is absent.
        goal: what to find out, shown above the controls.

    Raises:
        ValueError: a missing column, no rows, a run that comes twice, a NaN or an accuracy out of
            [0, 1]; later, a recomputed accuracy that is none.
    """

    def __init__(
        self,
        sweep: pd.DataFrame,
        *,
        recompute: Callable[..., float] | None = None,
        goal: str = "",
    ) -> None:
        self.sweep, self.recompute = _checked(sweep), recompute
        self._mapped = ("", "")  # kind and way of the map that is drawn; only its frame moves
        kinds = list(dict.fromkeys(self.sweep["kind"]))
        self.shares = sorted(self.sweep["share"].unique().tolist())
        self.bits = sorted(self.sweep["bits"].unique().tolist())
        ways = list(dict.fromkeys(self.sweep["recovered"]))
        self.ways = sorted(ways, key=lambda way: way != ALONE)  # nobody's help comes first
        self.looks: dict[str, dict[str, Any]] = {
            way: {
                "color": COLORS[number % len(COLORS)],
                "ls": DASHES[number % len(DASHES)],
                "marker": ".",
                "ms": 6,
                "label": "not recovered" if way == ALONE else f"recovered: {way}",
            }
            for number, way in enumerate(self.ways)
        }
        controls = {
            "kind": widgets.Dropdown(options=kinds, description="what is pruned"),
            "recovered": widgets.Dropdown(options=self.ways, description="recovered"),
            "share": widgets.SelectionSlider(
                options=[(_percent(share), share) for share in self.shares],
                description="share pruned",
            ),
            "bits": widgets.SelectionSlider(
                options=[(f"{bits}", bits) for bits in self.bits],
                value=self.bits[-1],
                description="bits of a weight",
            ),
        }
        if recompute is not None:
            controls["recompute"] = widgets.Checkbox(
                False, description="recompute here", indent=False
            )
        super().__init__(controls, goal=goal, size=(plots.WIDTH, 3.9), continuous=recompute is None)

    def compute(self, state: dict[str, Any]) -> Compressed:
        """Look the runs of the setting up, and recompute its accuracy if that is asked for.

        Raises:
            ValueError: a recomputed accuracy that is not a number from 0 to 1.
        """
        kind, share, bits, way = (state[name] for name in ("kind", "share", "bits", "recovered"))
        runs = self._runs(kind, share, bits, way)
        whole = self._runs(kind, 0.0, FLOAT, ALONE)["accuracy"]
        whole = whole.reindex(runs.index)  # NaN for a seed that has none
        return Compressed(
            kind=kind,
            share=share,
            bits=bits,
            recovered=way,
            accuracies=runs["accuracy"].to_numpy(),
            interval=mean_interval(runs["accuracy"]) if len(runs) else UNKNOWN,
            change=paired_difference(runs["accuracy"], whole) if len(runs) else UNKNOWN,
            parameters=float(runs["parameters"].mean()),
            nonzero=float(runs["nonzero"].mean()),
            recomputed=self._recomputed(kind, share, bits) if state.get("recompute") else None,
        )

    def draw(self, figure: Figure, result: Compressed) -> None:
        """Draw accuracy over the share on the left, all shares and bits on the right."""
        if not figure.axes:
            figure.set_layout_engine("none")  # fixed places: nothing jumps
            for place in PLACES:
                figure.add_axes(place)
            marks = [CHOSEN] if self.recompute is None else [CHOSEN, RECOMPUTED]
            entries = [Line2D([], [], **look) for look in (*self.looks.values(), *marks)]
            figure.legend(handles=entries, loc="lower center", ncols=5, **LEGEND)
        left, right = figure.axes
        left.clear()
        self._draw_curves(left, result)
        if self._mapped != (result.kind, result.recovered):
            right.clear()
            self._draw_map(right, result)
            self._mapped = (result.kind, result.recovered)
        x, y = self.shares.index(result.share), self.bits[::-1].index(result.bits)
        (frame,) = right.patches
        frame.set(xy=(x - 0.5, y - 0.5))
        for number, text in enumerate(right.texts):
            text.set_fontweight("bold" if number == y * len(self.shares) + x else "normal")

    def describe(self, result: Compressed) -> str:
        """Return the setting, its accuracy, what it lost, its size, and what was recomputed."""
        by = "not recovered" if result.recovered == ALONE else f"recovered: {result.recovered}"
        told = [f"{_percent(result.share)} of the {result.kind} pruned, {result.rounding}, {by}"]
        told += _stored(result) if len(result.accuracies) else ["not stored"]
        if result.recomputed is not None:
            told.append(f"recomputed here, not recovered: {result.recomputed:.0%}")
        return " | ".join(told)

    def _runs(self, kind: str, share: float, bits: int, way: str) -> pd.DataFrame:
        """The runs of one setting, by seed."""
        table = self.sweep
        chosen = (table["kind"] == kind) & (table["share"] == share) & (table["bits"] == bits)
        return table[chosen & (table["recovered"] == way)].set_index("seed")

    def _recomputed(self, kind: str, share: float, bits: int) -> float:
        assert self.recompute is not None
        accuracy = float(self.recompute(kind=kind, share=share, bits=bits))
        if not 0 <= accuracy <= 1:
            raise ValueError(f"recompute gave {accuracy!r}; expected an accuracy from 0 to 1")
        return accuracy

    def _draw_curves(self, axis: Axes, result: Compressed) -> None:
        table = self.sweep
        table = table[(table["kind"] == result.kind) & (table["bits"] == result.bits)]
        for way, look in self.looks.items():
            runs = table[table["recovered"] == way]
            if runs.empty:
                continue
            found = plots.interval_table(runs, "accuracy", by="share").sort_index()
            at = found.index.to_numpy(dtype=float)
            axis.plot(at, found["mean"], **look)
            axis.fill_between(at, found["low"], found["high"], color=look["color"], alpha=0.2, lw=0)
        if len(result.accuracies):
            axis.plot(result.share, result.interval.mean, zorder=5, **CHOSEN)
        if result.recomputed is not None:
            axis.plot(result.share, result.recomputed, zorder=6, **RECOMPUTED)
        axis.set_xlim(-0.04, max(self.shares[-1], 0.1) + 0.04)
        axis.set_ylim(0, 1.04)
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter(lambda value, _: f"{value:.0%}")
            side.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axis.grid(axis="y")
        axis.set_xlabel(f"share of the {result.kind} pruned")
        axis.set_title(f"test accuracy, {result.rounding}")

    def _draw_map(self, axis: Axes, result: Compressed) -> None:
        table = self.sweep
        table = table[
            (table["kind"] == result.kind) & (table["recovered"] == result.recovered)
        ].pivot_table(index="bits", columns="share", values="accuracy", aggfunc="mean")
        table = 100 * table.reindex(index=self.bits[::-1], columns=self.shares)
        table = table.rename(index=str, columns=_percent)
        cell = (str(result.bits), _percent(result.share))
        plots.draw_heat_map(axis, table, cell=cell, low=0, high=100, form="{:.0f}")
        axis.set_xlabel(f"share of the {result.kind} pruned")
        axis.set_ylabel("bits of a weight")
        axis.set_title("test accuracy in %")


def _checked(sweep: pd.DataFrame) -> pd.DataFrame:
    """Return a copy with the columns that are used, and shares without noise in the last digit."""
    if missing := [name for name in COLUMNS if name not in sweep]:
        raise ValueError(f"sweep: column {', '.join(missing)} is missing")
    table = sweep[list(COLUMNS)].copy()
    if table.empty:
        raise ValueError("sweep has no rows; expected one per run")
    if table.isna().any(axis=None):
        raise ValueError(
            f"sweep: {table.columns[table.isna().any()][0]} has a NaN; expected a value in each row"
        )
    table["share"] = table["share"].astype(float).round(6)
    table["bits"] = table["bits"].astype(int)
    for column in ("accuracy", "share"):
        if not table[column].between(0, 1).all():
            low, high = table[column].min(), table[column].max()
            raise ValueError(f"sweep: {column} goes from {low:g} to {high:g}; expected 0 to 1")
    twice = table[table.duplicated(["kind", "share", "bits", "recovered", "seed"])]
    if len(twice):
        row = twice.iloc[0]
        raise ValueError(
            f"sweep: the run kind={row['kind']}, share={row['share']:g}, bits={row['bits']}, "
            f"recovered={row['recovered']}, seed={row['seed']} comes twice"
        )
    return table


def _stored(result: Compressed) -> list[str]:
    """Say what the stored runs of a setting reached, and how small they are."""
    n, change = result.interval.n, result.change
    told = [f"accuracy {result.interval.mean:.1%}, {n} seed{'s' * (n != 1)}"]
    if not math.isnan(change.mean) and (result.share, result.bits) != (0, FLOAT):
        low, high = 100 * change.low, 100 * change.high
        bounds = "" if math.isnan(low) else f" [{low:+z.1f}, {high:+z.1f}]"
        told.append(f"{100 * change.mean:+z.1f} points{bounds} against whole and not rounded")
    told.append(
        f"{result.parameters:,.0f} parameters × {result.bits} bits = {result.bytes / 1e3:,.1f} kB, "
        f"{result.nonzero / result.parameters:.0%} of them not 0"
    )
    return told


def _percent(share: float) -> str:
    return f"{100 * share:.4g}%"
