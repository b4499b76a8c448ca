"""Where teacher and students look: their maps over an image that the reader picks. Lesson 02."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from kdlab import plots
from kdlab.explorers.base import Explorer

COLUMNS = 5  # panels side by side
TOP, BOTTOM, BAR = 0.28, 0.3, 0.72  # inches above and below a panel, and right of the last


@dataclass(frozen=True)
class Looks:
    """What all models look at in one image at one stage.

    Attributes:
        image: its index.
        stage: name of the stage.
        maps: model → [h, w], divided by its mean: 1 is an average place.
        cosines: model → cosine similarity of its map with the teacher's, 0 to 1.
        mean_cosines: the same, averaged over all images.
        top: the value of the brightest colour, the same for all images and models of a stage.
    """

    image: int
    stage: str
    maps: dict[str, np.ndarray]
    cosines: dict[str, float]
    mean_cosines: dict[str, float]
    top: float


class MapsExplorer(Explorer):
    """Pick an image and a stage; see side by side where teacher and students look.

    Every map is divided by its own mean, so that 1 is an average place; the colours of all panels
    go from 0 (the bare grey picture) to one value for each stage, the 99.5th percentile. As
    attention maps use the mean of the squared features over the channels; attention transfer then
    minimises 2 - 2 · cosine. For the cosine the larger map is averaged to the size of the smaller;
    a map that is 0 everywhere has cosine 0. Maps are never negative, so that even unrelated ones
    have a cosine far above 0: compare it with that of an untrained student.

    Source: Zagoruyko, Komodakis, "Paying More Attention to Attention", 2016, arXiv:1612.03928.

    Args:
        images: [N, h, w] or [N, h, w, 3], values in [0, 1] (``Data.image`` gives them).
        maps: model → stage → [N, h', w'], at least 0. The first model is the teacher. All have
            the same stages; sizes may differ.
        classes: names of the classes.
        labels: [N] true classes; the image is titled with its name.
        goal: what to find out, shown above the controls.

    Raises:
        ValueError: shapes that do not fit each other, fewer than two models, models with other
            stages than the teacher's, negative or not finite maps, or a label that is no class.
    """

    def __init__(
        self,
        images: ArrayLike,
        maps: Mapping[str, Mapping[str, ArrayLike]],
        classes: Sequence[str] = (),
        labels: ArrayLike | None = None,
        *,
        goal: str = "",
    ) -> None:
        self.images = plots.as_pictures(images)
        self.classes = [str(name) for name in classes]
        self.labels = None if labels is None else np.asarray(labels)
        self.models, self.stages = list(maps), _common_stages(maps)
        self._check()
        self.maps = {
            stage: {
                model: plots.relative_maps(f"{model}, {stage}", given[stage], len(self.images))
                for model, given in maps.items()
            }
            for stage in self.stages
        }
        self.tops = {stage: plots.scale_top(self.maps[stage].values()) for stage in self.stages}
        self.cosines = {
            stage: {model: _cosines(shares, self._teacher(stage)) for model, shares in each.items()}
            for stage, each in self.maps.items()
        }
        self._artists: list[tuple[Any, Any]] = []
        columns = min(COLUMNS, 1 + len(self.models))
        rows = -(-(1 + len(self.models)) // columns)
        self._cell = (plots.WIDTH - BAR) / columns
        super().__init__(
            {
                "image": widgets.IntSlider(0, 0, len(self.images) - 1, description="image"),
                "stage": widgets.SelectionSlider(options=self.stages, description="stage"),
            },
            goal=goal,
            size=(plots.WIDTH, round(rows * (self._cell + TOP + BOTTOM), 2)),
        )

    def compute(self, state: dict[str, Any]) -> Looks:
        """Return all models' maps of ``state["image"]`` at ``state["stage"]``, and cosines."""
        image, stage = int(state["image"]), str(state["stage"])
        cosines = self.cosines[stage]
        return Looks(
            image,
            stage,
            {model: shares[image] for model, shares in self.maps[stage].items()},
            {model: float(values[image]) for model, values in cosines.items()},
            {model: float(values.mean()) for model, values in cosines.items()},
            self.tops[stage],
        )

    def draw(self, figure: Figure, result: Looks) -> None:
        """Draw the image, then each model's map over it with its cosine below."""
        picture = self.images[result.image]
        if not self._artists:
            self._build(figure, result)
        self._picture.set_data(picture)
        if self.labels is not None:
            truth = self.classes[self.labels[result.image]]
            self._picture.axes.set_xlabel(f"true class: {truth}")
        self._bar.mappable.set_clim(0, result.top)
        for (under, overlay), model in zip(self._artists, self.models, strict=True):
            shares = result.maps[model]
            under.set_data(plots.grey(picture))
            overlay.set_data(shares)
            overlay.set_clim(0, result.top)
            size = f"{shares.shape[0]} × {shares.shape[1]} places"
            cosine = f"cosine {result.cosines[model]:.2f}"
            overlay.axes.set_xlabel(size if model == self.models[0] else cosine)

    def describe(self, result: Looks) -> str:
        """Return image, stage, and each student's cosine with the teacher, here and on average."""
        truth = "" if self.labels is None else f" ({self.classes[self.labels[result.image]]})"
        cosines = ", ".join(
            f"{model} {result.cosines[model]:.2f} (all images {result.mean_cosines[model]:.2f})"
            for model in self.models[1:]
        )
        return (
            f"image {result.image}{truth} | {result.stage} | "
            f"cosine with the map of {self.models[0]}: {cosines}"
        )

    def _teacher(self, stage: str) -> np.ndarray:
        return self.maps[stage][self.models[0]]

    def _build(self, figure: Figure, result: Looks) -> None:
        """Lay the panels out in fixed places: nothing jumps, and there is no layout to solve."""
        figure.set_layout_engine("none")
        width, height = figure.get_size_inches()
        panels: list[Axes] = []
        for index in range(1 + len(self.models)):
            row, column = divmod(index, COLUMNS)
            x, side = column * self._cell + 0.04, self._cell - 0.08
            y = height - TOP - row * (self._cell + TOP + BOTTOM) - side
            panels.append(figure.add_axes((x / width, y / height, side / width, side / height)))
        first = panels[0].get_position()
        picture = self.images[result.image]
        self._picture = plots.draw_image(panels[0], picture)
        self._artists = [
            plots.draw_map(panel, picture, result.maps[model], result.top)
            for panel, model in zip(panels[1:], self.models, strict=True)
        ]
        for panel, title in zip(panels, ["image", *self.models], strict=True):
            panel.set_axis_on()  # for the line below; ticks and frame stay away
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
            panel.set_title(title, loc="center", fontsize=10.5)
        bar = figure.add_axes((1 - (BAR - 0.06) / width, first.y0, 0.11 / width, first.height))
        self._bar = plots.map_scale(figure, bar, result.top)

    def _check(self) -> None:
        if self.labels is None:
            return
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype.kind not in "iu":
            raise ValueError(
                f"labels: {self.labels.dtype} {self.labels.shape}; expected "
                f"{self.images.shape[:1]} class numbers"
            )
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise ValueError(
                f"labels must be from 0 to {len(self.classes) - 1}: classes has "
                f"{len(self.classes)} names"
            )


def _common_stages(maps: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the stages that all models have, in the teacher's order."""
    if len(maps) < 2:
        raise ValueError(
            f"maps has {len(maps)} models; expected the teacher first and at least one student"
        )
    teacher, *students = maps
    stages = list(maps[teacher])
    if not stages:
        raise ValueError(f"maps[{teacher!r}] is empty; expected stage → maps [N, h, w]")
    for student in students:
        if set(maps[student]) != set(stages):
            raise ValueError(
                f"maps[{student!r}] has the stages {', '.join(maps[student]) or 'none'}; expected "
                f"those of {teacher!r}: {', '.join(stages)}. Name a pair of stages alike."
            )
    return stages


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return for each image the cosine [N] of maps [N, h, w] and [N, h', w']."""
    size = (min(a.shape[1], b.shape[1]), min(a.shape[2], b.shape[2]))
    x, y = (F.adaptive_avg_pool2d(torch.from_numpy(maps), size).flatten(1) for maps in (a, b))
    return F.cosine_similarity(x, y).numpy()
