"""How α and the temperature together decide: a map of stored results. Lesson 01."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdlab import plots
from kdlab.explorers.base import Explorer
from kdlab.metrics import Interval, mean_interval, paired_difference


@dataclass(frozen=True)
class Place:
    """One place on the map.

    Attributes:
        temperature: T.
        alpha: weight of the soft term.
        accuracies: one for each seed, 0 to 1.
        interval: their mean with its 95 % interval.
        gain: mean paired difference to the labels alone, with its 95 % interval.
    """

    temperature: float
    alpha: float
    accuracies: np.ndarray
    interval: Interval
    gain: Interval


class LandscapeExplorer(Explorer):
    """Walk over α and T and read what students reached there; nothing is trained.

    Args:
        results: one row per run: ``temperature, alpha, seed, accuracy``; the rows with α = 0 are
            the labels alone (any temperature) and serve as the baseline.
        goal: what to find out, shown above the controls.

    Raises:
        ValueError: a missing column, or no rows with α = 0.
    """

    def __init__(self, results: pd.DataFrame, *, goal: str = "") -> None:
        columns = {"temperature", "alpha", "seed", "accuracy"}
        if missing := columns - set(results.columns):
            raise ValueError(f"results: column {', '.join(sorted(missing))} is missing")
        labels = results[results["alpha"] == 0].drop_duplicates("seed").set_index("seed")
        if labels.empty:
            raise ValueError("results: no row with alpha = 0, which is the baseline")
        self.labels = labels["accuracy"]
        self.results = results[results["alpha"] > 0]
        self.temperatures = sorted(self.results["temperature"].unique())
        self.alphas = sorted(self.results["alpha"].unique())
        self.map = self.results.pivot_table(
            index="alpha", columns="temperature", values="accuracy", aggfunc="mean"
        )
        super().__init__(
            {
                "temperature": widgets.SelectionSlider(
                    options=[(f"{t:g}", t) for t in self.temperatures], description="temperature T"
                ),
                "alpha": widgets.SelectionSlider(
                    options=[(f"{a:g}", a) for a in self.alphas], description="weight α"
                ),
            },
            goal=goal,
            size=(7.0, 3.3),
        )

    def compute(self, state: dict[str, Any]) -> Place:
        """Look the runs at ``state["temperature"]`` and ``state["alpha"]`` up."""
        temperature, alpha = state["temperature"], state["alpha"]
        chosen = self.results[
            (self.results["temperature"] == temperature) & (self.results["alpha"] == alpha)
        ].set_index("seed")["accuracy"]
        baseline = self.labels.loc[chosen.index]
        return Place(
            temperature,
            alpha,
            chosen.to_numpy(),
            mean_interval(chosen.tolist()),
            paired_difference(chosen.tolist(), baseline.tolist()),
        )

    def draw(self, figure: Figure, result: Place) -> None:
        """Draw the map with the chosen place on the left, its seeds against the labels' right."""
        figure.clear()
        left, right = figure.subplots(1, 2, width_ratios=(2.2, 1))
        values = self.map.to_numpy()
        left.imshow(values, cmap="cividis", origin="lower", aspect="auto")
        dark = values < (values.min() + values.max()) / 2
        for (row, column), value in np.ndenumerate(values):
            ink = "white" if dark[row, column] else "black"
            left.text(column, row, f"{value:.0%}", ha="center", va="center", color=ink, fontsize=9)
        column = self.temperatures.index(result.temperature)
        row = self.alphas.index(result.alpha)
        left.plot(column, row, "s", ms=27, mfc="none", mec=plots.VERMILION, mew=3)
        left.set_xticks(range(len(self.temperatures)), [f"{t:g}" for t in self.temperatures])
        left.set_yticks(range(len(self.alphas)), [f"{a:g}" for a in self.alphas])
        left.set_xlabel("temperature T")
        left.set_ylabel("weight α")
        left.set_title("mean test accuracy")
        left.spines[:].set_visible(False)
        baseline = self.labels.to_numpy()
        for place, (runs, color) in enumerate(
            ((baseline, plots.GREY), (result.accuracies, plots.VERMILION))
        ):
            interval = mean_interval(runs.tolist())
            right.plot(np.full(len(runs), place), runs, ".", color=color, alpha=0.6, ms=8)
            right.errorbar(
                place + 0.18,
                interval.mean,
                yerr=[[interval.mean - interval.low], [interval.high - interval.mean]],
                fmt="o",
                color=color,
                capsize=4,
            )
        right.set_xticks([0, 1], ["labels\nalone", "chosen\nplace"])
        right.set_xlim(-0.5, 1.6)
        places = self.results.groupby(["temperature", "alpha"])["accuracy"]
        groups = [self.labels.tolist(), *(runs.tolist() for _, runs in places)]
        intervals = [mean_interval(runs) for runs in groups]
        ends = [value for i in intervals for value in (i.low, i.high)]
        everything = np.concatenate([ends, *groups])  # the axis stays where it is for all places
        margin = 0.05 * np.ptp(everything)
        right.set_ylim(everything.min() - margin, everything.max() + margin)
        right.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        right.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        right.set_title("seeds, mean, 95 %")

    def describe(self, result: Place) -> str:
        """Return the place, its accuracy, and the paired gain over the labels with its interval."""
        gain = result.gain
        return (
            f"T={result.temperature:g} α={result.alpha:g} | {result.interval.mean:.1%} | "
            f"gain over labels {100 * gain.mean:+.1f} points "
            f"[{100 * gain.low:+.1f}, {100 * gain.high:+.1f}] | {len(result.accuracies)} seeds"
        )
