"""Whom does a gate trust? One glyph that the reader shapes, several teachers. Lesson 05."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from kdlab import plots
from kdlab.datasets import Data, glyphs
from kdlab.distillers.gated_teachers import TeachersGate, members_of
from kdlab.explorers.answers import THICK, answer_bars, divide
from kdlab.explorers.base import Explorer
from kdlab.models import Taps

COLORS = (plots.BLUE, plots.VERMILION, plots.GREEN, plots.PURPLE)
DASHES = ("-", "--", "-.", ":")
SIZES = 13  # places at which the curve over the size is computed
TRUSTED, LEANING = 0.75, 0.55  # weights from which a gate trusts, or leans to, a teacher


@dataclass(frozen=True)
class Choosing:
    """A gate over K teachers that an explorer can ask.

    Attributes:
        names: of the teachers, K short texts.
        teacher: a `kdlab.models.Committee`, or anything with ``members``; in eval mode.
        gate: weighs the members for each image; as ``fit`` leaves it in ``method.gate``.
        history: ``run.history.rows`` of that run: its ``teacher_0``, ... become the curve.
    """

    names: Sequence[str]
    teacher: nn.Module
    gate: TeachersGate
    history: Sequence[Mapping[str, float]]

    @torch.no_grad()
    def ask(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights ``[B, K]`` and the members' probabilities ``[B, K, C]``."""
        paths = members_of(self.teacher)
        with Taps(self.teacher, list(paths)) as taps:
            self.teacher(images)
            members = torch.stack([taps[path].float() for path in paths], dim=1)
        return self.gate(members, images, targets), members.softmax(dim=-1)

    def shares(self) -> np.ndarray:
        """Return the mean weight of each teacher in each epoch, ``[epochs, K]``."""
        columns = [f"teacher_{k}" for k in range(len(self.names))]
        rows = [[row[name] for name in columns] for row in self.history if columns[0] in row]
        return np.array(rows).reshape(-1, len(columns))


@dataclass(frozen=True)
class Trust:
    """What one gate and its teachers make of one glyph.

    Attributes:
        gate: its name.
        label, size, noise: what the glyph is made of.
        picture: ``[h, w]`` in [0, 1].
        weights: ``[K]``, the gate's for this glyph.
        answers: ``[K + 1, C]`` probabilities of each teacher, and last of all together, weighed.
        sizes: ``[SIZES]``, sizes of the same glyph.
        curve: ``[SIZES, K]``, the gate's weights at each of them.
        shares: ``[epochs, K]``, the mean weights while a student was taught.
    """

    gate: str
    label: int
    size: float
    noise: float
    picture: np.ndarray
    weights: np.ndarray
    answers: np.ndarray
    sizes: np.ndarray
    curve: np.ndarray
    shares: np.ndarray

    @property
    def said(self) -> np.ndarray:
        """The class that each teacher, and last all together, finds likeliest, ``[K + 1]``."""
        return self.answers.argmax(axis=1)


@dataclass(frozen=True)
class _Artists:
    """What moves from frame to frame: bars and letters have one entry for each row."""

    picture: Any
    bars: list[Any]
    numbers: list[Any]
    parts: list[Any]
    letters: list[list[Any]]
    lines: list[Any]
    marker: Any


class GatesExplorer(Explorer):
    """Shape a glyph; see which teacher a gate trusts, what the teachers say, and who was heard.

    The upper row has the glyph, the gate's weights and the teachers' answers, each divided among
    its likeliest classes; the right class is orange. The lower row has the weights of the same
    glyph at all sizes, and the mean weights of each epoch while a student was taught.

    Args:
        gates: name → `Choosing`; the first is shown first.
        data: glyphs; says how images are normalised, and their size in pixels.
        sizes: smallest and largest size of a glyph, as ``scale`` of `kdlab.datasets.glyphs`.
        noise: largest noise.
        options: further options of `kdlab.datasets.glyphs.sample`, such as ``difficulty``.
        goal: what to find out, shown above the controls.

    Raises:
        ValueError: no gates, more than four teachers, a gate without history or with another
            number of names than of members, classes that are not the glyphs', sizes out of order.
    """

    def __init__(
        self,
        gates: Mapping[str, Choosing],
        data: Data,
        *,
        sizes: tuple[float, float] = (0.4, 1.4),
        noise: float = 0.4,
        options: Mapping[str, Any] | None = None,
        goal: str = "",
    ) -> None:
        _check(gates, data, sizes)
        self.gates, self.data, self.options = dict(gates), data, dict(options or {})
        self.sizes = sizes
        self._panels: dict[str, Axes] = {}
        self._shown = ""  # the gate whose artists are in the panels
        low, high = sizes
        controls = {
            "gate": widgets.Dropdown(options=list(gates), description="gate"),
            "glyph": widgets.Dropdown(options=list(data.classes), description="glyph"),
            "size": widgets.FloatSlider(high, min=low, max=high, step=0.05, description="size"),
            "noise": widgets.FloatSlider(0.0, min=0.0, max=noise, step=0.02, description="noise"),
            "draw": widgets.IntSlider(0, 0, 9, description="another draw"),
        }
        super().__init__(controls, goal=goal, size=(plots.WIDTH, 4.5))

    def compute(self, state: dict[str, Any]) -> Trust:
        """Draw the glyph at the chosen size and at all others, and ask gate and teachers."""
        choosing, label = self.gates[state["gate"]], self.data.classes.index(state["glyph"])
        size, noise, low, high = float(state["size"]), float(state["noise"]), *self.sizes
        sizes = np.linspace(low, high, SIZES)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # a few small images: a second thread costs more than it gives
        try:
            pixels = [self._glyph(state, at) for at in (size, *sizes.tolist())]
            images = (torch.cat(pixels) - self.data.mean[0]) / self.data.std[0]
            weights, p = choosing.ask(images, torch.full((len(images),), label))
        finally:
            torch.set_num_threads(threads)
        together = (weights[0].unsqueeze(1) * p[0]).sum(0, keepdim=True)
        return Trust(
            gate=state["gate"],
            label=label,
            size=size,
            noise=noise,
            picture=pixels[0][0, 0].numpy(),
            weights=weights[0].numpy(),
            answers=torch.cat([p[0], together]).numpy(),
            sizes=sizes,
            curve=weights[1:].numpy(),
            shares=choosing.shares(),
        )

    def draw(self, figure: Figure, result: Trust) -> None:
        """Draw glyph, weights and answers above; weights over the size, and the past, below.

        A new gate gets new artists. Other changes move what is there, which is much faster.
        """
        if not self._panels:
            self._panels = _lay_out(figure)
        if self._shown != result.gate:
            self._artists = _new_artists(
                self._panels, list(self.gates[result.gate].names), self.sizes, result.shares
            )
            self._shown = result.gate
        self._artists.picture.set_data(result.picture)
        self._artists.marker.set_xdata([result.size, result.size])
        for k, weight in enumerate(result.weights):
            self._artists.bars[k].set_width(weight)
            self._artists.numbers[k].set_text(f"{weight:.0%}")
            self._artists.numbers[k].set_x(weight + 0.03)
            self._artists.lines[k].set_data(result.sizes, result.curve[:, k])
        for parts, letters, p in zip(
            self._artists.parts, self._artists.letters, result.answers, strict=True
        ):
            divide(parts, letters, p, result.label, self.data.classes)

    def describe(self, result: Trust) -> str:
        """Return the glyph, whom the gate trusts and how much, and who is right."""
        names = list(self.gates[result.gate].names)
        best = int(result.weights.argmax())
        weight = float(result.weights[best])
        verb = "trusts" if weight >= TRUSTED else "leans to" if weight >= LEANING else "wavers:"
        right = [
            name
            for name, said in zip([*names, "together"], result.said, strict=True)
            if said == result.label
        ]
        glyph = f"{self.data.classes[result.label]} of size {result.size:.2f}"
        return (
            f"{result.gate} | {glyph}, noise {result.noise:.2f} | {verb} {names[best]}, "
            f"about {round(10 * weight) * 10}% | right: {', '.join(right) or 'nobody'}"
        )

    def _glyph(self, state: dict[str, Any], size: float) -> Tensor:
        """Return the glyph at one size, ``[1, 1, h, w]`` in [0, 1]; all else as chosen."""
        return glyphs.sample(
            1,
            seed=int(state["draw"]),
            size=self.data.shape[-1],
            classes=[state["glyph"]],
            scale=size,
            noise=float(state["noise"]),
            **self.options,
        )[0]


def _lay_out(figure: Figure) -> dict[str, Axes]:
    """Return the five panels at fixed places: nothing jumps, and no layout has to be solved."""
    figure.set_layout_engine("none")
    places = {
        "glyph": (0.01, 0.56, 0.21, 0.36),
        "weights": (0.37, 0.56, 0.2, 0.36),
        "answers": (0.6, 0.56, 0.39, 0.36),
        "sizes": (0.08, 0.07, 0.39, 0.32),
        "history": (0.58, 0.07, 0.39, 0.32),
    }
    return {name: figure.add_axes(place) for name, place in places.items()}


def _new_artists(
    panels: dict[str, Axes], names: list[str], sizes: tuple[float, float], shares: np.ndarray
) -> _Artists:
    """Empty the panels, draw what stays as long as the gate stays, and return what will move."""
    for axis in panels.values():
        axis.clear()
    rows = range(len(names) + 1)  # the last is that of all together, which has no weight
    weights, answers = panels["weights"], panels["answers"]
    bars = weights.barh(rows[:-1], 0, color=COLORS[: len(names)], height=THICK)
    numbers = [weights.text(0, row, "", va="center", fontsize=10) for row in rows[:-1]]
    parts, letters = answer_bars(answers, len(rows))
    weights.set(xlim=(0, 1.35), ylim=answers.get_ylim(), xticks=[])
    weights.tick_params(length=0)
    weights.spines[:].set_visible(False)
    for axis, title in ((weights, "weights"), (answers, "answers")):
        axis.set_title(title, y=1.02)  # a fixed place costs less than one that is looked for
        axis.set_yticks(rows, [*names, "together"] if axis is weights else [""] * len(rows))
    looks: list[dict[str, Any]] = [
        {"color": color, "ls": dashes} for color, dashes in zip(COLORS, DASHES, strict=True)
    ][: len(names)]
    lines = [panels["sizes"].plot([], [], **look)[0] for look in looks]
    for k, look in enumerate(looks):
        panels["history"].plot(range(1, len(shares) + 1), shares[:, k], marker=".", **look)
    marker = panels["sizes"].axvline(sizes[0], color=plots.GREY, lw=1.2)
    panels["sizes"].set(xlim=sizes)
    panels["sizes"].set_title("weights over the size", y=1.04)
    panels["history"].set_title("mean weights over the epochs", y=1.04)
    panels["history"].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    panels["sizes"].xaxis.set_major_locator(MaxNLocator(5))
    for axis in (panels["sizes"], panels["history"]):
        axis.set_ylim(-0.04, 1.04)
        axis.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
        axis.grid(axis="y")
    picture = plots.draw_image(panels["glyph"], np.zeros((2, 2)))
    return _Artists(picture, list(bars), numbers, parts, letters, lines, marker)


def _check(gates: Mapping[str, Choosing], data: Data, sizes: tuple[float, float]) -> None:
    if not gates:
        raise ValueError("gates is empty: give at least one name → Choosing")
    for name, choosing in gates.items():
        members, count = len(members_of(choosing.teacher)), len(choosing.names)
        if members != count or count > len(COLORS):
            raise ValueError(
                f"gates[{name!r}].names has {count} entries; expected one for each of the "
                f"{members} members, at most {len(COLORS)}"
            )
        if not len(choosing.shares()):
            raise ValueError(
                f"gates[{name!r}].history has no row with teacher_0; give run.history.rows of a "
                "run with GatedTeachers"
            )
    strange = [name for name in data.classes if name not in glyphs.CLASSES]
    if strange or len(data.shape) != 3 or data.shape[0] != 1:
        raise ValueError(
            f"data has classes {', '.join(data.classes)} and shape {data.shape}; expected grey "
            f"glyphs, classes among {', '.join(glyphs.CLASSES)}"
        )
    if not 0.1 <= sizes[0] < sizes[1] <= 3:
        raise ValueError(f"sizes={sizes!r}; expected (low, high) with 0.1 <= low < high <= 3")
