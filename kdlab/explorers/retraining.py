"""Move the temperature and train eight students anew, while you wait. Lesson 00."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import nn

from kdlab import plots
from kdlab.datasets import Data
from kdlab.distillers import Distiller, build
from kdlab.explorers.base import Explorer
from kdlab.metrics import Interval, evaluate, mean_interval
from kdlab.models import MLP, build_for
from kdlab.training import TeacherOutputs, predict
from kdlab.training.stacked import fit_stacked

COLDEST, HOTTEST = 0.5, 16.0
HIDDEN = (32,)
LR_OF_64_INPUTS = 0.1  # the curvature grows with the number of inputs, so the rate must fall


@dataclass(frozen=True)
class Trained:
    """What the students of one temperature reached on the test images.

    Attributes:
        temperature: T.
        accuracies: one for each student, 0 to 1.
        interval: their mean with its 95 % interval.
    """

    temperature: float
    accuracies: np.ndarray
    interval: Interval


class RetrainingExplorer(Explorer):
    """A slider that trains: ``students`` tiny networks, each from its own start, at temperature T.

    They learn from the teacher's soft targets alone. The grey band is what the same students reach
    on the labels alone, with the same images and the same number of steps. Every temperature that
    was tried stays on the picture.

    Args:
        data: few training images make the difference plain; digits are small enough to be fast.
        teacher: returns logits for the images of ``data``.
        students: how many are trained at once; at least 2.
        epochs: passes over the training images.
        goal: what to find out, shown above the controls.

    Raises:
        ValueError: fewer than two students (one has no interval).
    """

    def __init__(
        self,
        data: Data,
        teacher: nn.Module,
        *,
        students: int = 8,
        epochs: int = 300,
        goal: str = "",
    ) -> None:
        if students < 2:
            raise ValueError(f"students: {students} came, expected at least 2 for an interval")
        self.data = data
        self.students = students
        self.epochs = epochs
        self.outputs = TeacherOutputs.build(teacher, data, device="cpu")
        teacher_scores = evaluate(predict(teacher, data.test.x), data.test.y)
        self.teacher_accuracy = teacher_scores["accuracy"]
        self.baseline = self._train(None)
        self.tried: dict[float, Trained] = {}
        slider = widgets.FloatLogSlider(
            4.0,
            base=2.0,
            min=math.log2(COLDEST),
            max=math.log2(HOTTEST),
            step=0.5,
            description="temperature T",
        )
        super().__init__({"temperature": slider}, goal=goal, size=(6.2, 3.4), continuous=False)

    def compute(self, state: dict[str, Any]) -> Trained:
        """Train the students at ``state["temperature"]`` and measure them on the test images."""
        temperature = float(state["temperature"])
        method = build("soft_targets", temperature=temperature, alpha=1.0)
        accuracies = self._train(method)
        return Trained(temperature, accuracies, mean_interval(accuracies.tolist()))

    def draw(self, figure: Figure, result: Trained) -> None:
        """Draw accuracy over temperature: the tried points, and the labels' band behind them."""
        self.tried[result.temperature] = result
        figure.clear()
        axis = figure.add_subplot()
        labels = mean_interval(self.baseline.tolist())
        axis.axhspan(labels.low, labels.high, color=plots.GREY, alpha=0.3, lw=0)
        axis.axhline(labels.mean, color=plots.GREY, lw=1.5, label="labels alone")
        axis.axhline(
            self.teacher_accuracy, color=plots.BLACK, lw=1.2, ls="--", label="the teacher itself"
        )
        points = [self.tried[temperature] for temperature in sorted(self.tried)]
        for point in points:
            chosen = point.temperature == result.temperature
            axis.plot(
                [point.temperature] * self.students,
                point.accuracies,
                ".",
                color=plots.BLUE,
                alpha=0.8 if chosen else 0.25,
                ms=5,
            )
        axis.errorbar(
            [point.temperature for point in points],
            [point.interval.mean for point in points],
            yerr=[
                [point.interval.mean - point.interval.low for point in points],
                [point.interval.high - point.interval.mean for point in points],
            ],
            color=plots.BLUE,
            marker="o",
            capsize=4,
            lw=1.2,
            label="soft targets",
        )
        now = result.interval
        axis.plot(result.temperature, now.mean, "o", color=plots.ORANGE, ms=9, zorder=5)
        axis.set_xscale("log", base=2)
        axis.set_xlim(COLDEST * 0.85, HOTTEST * 1.18)
        ticks = [2.0**power for power in range(-1, 5)]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        low = min(labels.low, *(point.accuracies.min() for point in points))
        axis.set_ylim(math.floor(low * 20 - 0.4) / 20, 1.0)
        axis.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axis.set_xlabel("temperature T")
        axis.set_ylabel("test accuracy")
        axis.set_title(f"{self.students} students, trained anew for each T")
        axis.legend(loc="lower right", ncols=3, fontsize=9)

    def describe(self, result: Trained) -> str:
        """Return the temperature and both means in whole percent."""
        labels = float(np.mean(self.baseline))
        return (
            f"T={result.temperature:.1f} | soft targets {result.interval.mean:.0%} | "
            f"labels alone {labels:.0%} | teacher {self.teacher_accuracy:.0%}"
        )

    def _train(self, method: Distiller | None) -> np.ndarray:
        models: list[MLP] = []
        for seed in range(self.students):
            model = build_for(
                "mlp", self.data.shape, self.data.num_classes, hidden=HIDDEN, seed=seed
            )
            assert isinstance(model, MLP)
            models.append(model)
        fit_stacked(
            models,
            self.data,
            method,
            seeds=range(self.students),
            teacher_outputs=None if method is None else self.outputs,
            epochs=self.epochs,
            batch_size=64,
            lr=LR_OF_64_INPUTS * min(1.0, 64 / math.prod(self.data.shape)),
        )
        test = self.data.test
        return np.array([evaluate(predict(m, test.x), test.y)["accuracy"] for m in models])
