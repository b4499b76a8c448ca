"""What temperature does to a teacher's answer for one image that the reader picks. Lesson 01."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from kdlab import plots
from kdlab.explorers.base import Explorer

COLDEST, HOTTEST = 0.25, 20.0
SHOWN = 10  # bars; the other classes are summed in one more


@dataclass(frozen=True)
class Softened:
    """The teacher's answer for one image at one temperature.

    Attributes:
        image: its index.
        temperature: T.
        probabilities: [C] ``softmax(logits / T)``.
        order: [C] class indices, likeliest first; the same at every T.
        entropy: in bits, 0 to log2(C).
        ratio: first probability over the second (inf when the second is too small to tell).
        effective_classes: 2 to the entropy: 1 is certain, C knows nothing.
    """

    image: int
    temperature: float
    probabilities: np.ndarray
    order: np.ndarray
    entropy: float
    ratio: float
    effective_classes: float


class TemperatureExplorer(Explorer):
    """Pick an image and a temperature; see the image and what the teacher says about it.

    ``p = softmax(logits / T)``: the order of the classes never changes, the distances do.
    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
    arXiv:1503.02531.

    Args:
        images: [N, h, w] or [N, h, w, 3], values in [0, 1] (``Data.image`` gives them).
        logits: [N, C], the teacher's.
        classes: C names.
        targets: [N] true classes; that bar is orange and the image is titled with its name.
        goal: what to find out, shown above the controls.

    Raises:
        ValueError: shapes that do not fit each other, logits that are not finite, fewer than two
            classes, or a target that is no class.
    """

    def __init__(
        self,
        images: ArrayLike,
        logits: Any,
        classes: Sequence[str],
        targets: Any = None,
        *,
        goal: str = "",
    ) -> None:
        self.images = np.asarray(images)
        self.logits = np.asarray(logits, dtype=np.float64)
        self.classes = [str(name) for name in classes]
        self.targets = None if targets is None else np.asarray(targets)
        self._check()
        self._artists: tuple[Any, Any] | None = None
        super().__init__(
            {
                "image": widgets.IntSlider(0, 0, len(self.images) - 1, description="image"),
                "temperature": widgets.FloatLogSlider(
                    1.0,
                    base=2.0,
                    min=math.log2(COLDEST),
                    max=math.log2(HOTTEST),
                    step=0.125,
                    description="temperature T",
                ),
            },
            goal=goal,
            size=(plots.WIDTH, 2.9),
        )

    def compute(self, state: dict[str, Any]) -> Softened:
        """Return the teacher's answer at ``state["temperature"]`` for ``state["image"]``."""
        image, temperature = int(state["image"]), float(state["temperature"])
        scaled = self.logits[image] / temperature
        log_p = scaled - scaled.max()
        log_p -= np.log(np.exp(log_p).sum())
        p = np.exp(log_p)
        order = np.argsort(-self.logits[image], kind="stable")
        entropy = max(0.0, float(-(p * log_p).sum() / math.log(2)))
        gap = float(log_p[order[0]] - log_p[order[1]])
        ratio = math.exp(gap) if gap < 700 else math.inf
        return Softened(image, temperature, p, order, entropy, ratio, 2.0**entropy)

    def draw(self, figure: Figure, result: Softened) -> None:
        """Draw the image on the left and the likeliest classes as bars on the right."""
        heights, names, highlight = self._bars(result)
        if self._artists is None:
            figure.set_layout_engine("none")  # fixed places: nothing jumps, and no layout to solve
            low = 0.12 if max(map(len, self.classes)) <= 3 else 0.3
            picture_axis = figure.add_axes((0.01, low, 0.28, 0.87 - low))
            bar_axis = figure.add_axes((0.38, low, 0.61, 0.87 - low))
            picture = plots.draw_image(picture_axis, self.images[result.image])
            bars = plots.probability_bars(bar_axis, heights, names, highlight=highlight)
            bar_axis.set_ylabel("")  # the title says it
            self._artists = picture, bars
        picture, bars = self._artists
        picture.set_data(self.images[result.image])
        if self.targets is not None:
            truth = self.classes[self.targets[result.image]]
            picture.axes.set_title(f"true class: {truth}", loc="center")
        axis = bars[0].axes
        plots.update_bars(axis, bars, heights)
        plots.name_bars(axis, names)
        for index, bar in enumerate(bars):
            other = plots.GREY if names[index] == "others" else plots.BLUE
            bar.set_color(plots.ORANGE if index == highlight else other)
        axis.set_title(f"teacher's probabilities at T = {result.temperature:.3g}")

    def describe(self, result: Softened) -> str:
        """Return temperature, image, entropy, top-2 ratio and effective number of classes."""
        first, second = (self.classes[index] for index in result.order[:2])
        ratio = f"{result.ratio:.2g}" if result.ratio < 1000 else "more than 1000"
        return (
            f"T={result.temperature:.1f} | image {result.image} | "
            f"entropy {result.entropy:.2f} bits | {first} : {second} = {ratio} : 1 | "
            f"{result.effective_classes:.1f} effective classes"
        )

    def _bars(self, result: Softened) -> tuple[np.ndarray, list[str], int | None]:
        """Return heights, names, and which bar is the true class."""
        first = result.order[:SHOWN]
        heights, names = result.probabilities[first], [self.classes[i] for i in first]
        target = None if self.targets is None else self.targets[result.image]
        highlight = next((bar for bar, index in enumerate(first) if index == target), None)
        if len(result.order) > SHOWN:
            heights = np.append(heights, result.probabilities[result.order[SHOWN:]].sum())
            names = [*names, "others"]
        return heights, names, highlight

    def _check(self) -> None:
        if self.images.ndim not in (3, 4) or len(self.images) == 0:
            raise ValueError(
                f"images has shape {self.images.shape}; expected [N, h, w] or [N, h, w, 3]"
            )
        expected = (len(self.images), len(self.classes))
        if self.logits.shape != expected or len(self.classes) < 2:
            raise ValueError(
                f"logits has shape {self.logits.shape}; expected {expected}: one row for each "
                "image, one column for each of at least two classes"
            )
        if not np.isfinite(self.logits).all():
            raise ValueError("logits has NaN or infinite values; is the teacher trained?")
        if self.targets is None:
            return
        if self.targets.shape != expected[:1]:
            raise ValueError(f"targets has shape {self.targets.shape}; expected {expected[:1]}")
        if self.targets.min() < 0 or self.targets.max() >= len(self.classes):
            raise ValueError(f"targets must be from 0 to {len(self.classes) - 1}")
