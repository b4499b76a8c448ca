"""One curve, two students: one learns values, the other values and slopes. Lesson 03."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from kdlab import plots
from kdlab.explorers.base import Explorer
from kdlab.losses.checks import unchecked_values
from kdlab.losses.gradients import input_gradient, sobolev_loss

LOW, HIGH = -2.0, 2.0
WAVES = ((1.0, 2.2, 0.0), (0.45, 5.1, 0.6))  # amplitude, frequency and phase of each sine
WEIGHTS = (0.0, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
HIDDEN, STEPS, LR = 32, 300, 0.01
UPPER_ASPECT, TANGENT = 0.34, 0.024  # height by width of the upper part; half a tangent by width
PLACES = 401  # where the students are drawn and measured
NAMES = ("learned values", "learned values and slopes")
STYLES: tuple[dict[str, Any], ...] = (
    {"color": plots.BLUE, "lw": 3.0},
    {"color": plots.VERMILION, "lw": 1.8},
)


@dataclass(frozen=True)
class Samples:
    """What the teacher says at ``n`` places, float64 ``[n]`` each.

    Attributes:
        x: the places, both ends among them.
        values: f(x), with noise.
        slopes: f'(x), with noise.
    """

    x: Tensor
    values: Tensor
    slopes: Tensor


@dataclass(frozen=True)
class TwoStudents:
    """Both students after training: row 0 learned values, row 1 values and slopes.

    Attributes:
        samples: what they learned from.
        weight: of the second student's slope term.
        noise: percent of the teacher's typical value, and of its typical slope.
        values, slopes: of the students at ``places()``, ``[2, PLACES]``.
        value_errors, slope_errors: root mean square over all places, as a share of the teacher's
            own root mean square, ``[2]``.
    """

    samples: Samples
    weight: float
    noise: int
    values: np.ndarray
    slopes: np.ndarray
    value_errors: np.ndarray
    slope_errors: np.ndarray


class SlopesExplorer(Explorer):
    """Two students of one curve, trained anew at each move: without the slopes, and with them.

    Both are the same smooth network from the same start, with the same samples and steps. The
    first minimises the squared error of its values; to the second's the Sobolev loss is added,
    times a weight. Between the samples nobody told them anything: that is where they differ.

    Args:
        goal: what to find out, shown above the controls.
    """

    def __init__(self, *, goal: str = "") -> None:
        self.truth = tuple(row.numpy() for row in teacher(places()))
        weights = [(f"{weight:g}", weight) for weight in WEIGHTS]
        controls = {
            "samples": widgets.IntSlider(6, 2, 20, description="samples"),
            "weight": widgets.SelectionSlider(
                options=weights, value=0.1, description="weight of the slopes"
            ),
            "noise": widgets.IntSlider(0, 0, 50, 5, description="noise in percent"),
            "draw": widgets.IntSlider(0, 0, 9, description="another draw"),
        }
        super().__init__(controls, goal=goal, size=(plots.WIDTH, 4.8), continuous=False)

    def compute(self, state: dict[str, Any]) -> TwoStudents:
        """Draw ``state["samples"]`` samples and train both students on them."""
        samples = ask_teacher(state["samples"], state["noise"] / 100, state["draw"])
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # so small a network is slowed down by a second one
        try:
            answers = train_both(samples, state["weight"], seed=state["draw"])
        finally:
            torch.set_num_threads(threads)
        errors = (
            np.sqrt(((given - true) ** 2).mean(axis=-1) / (true**2).mean())
            for given, true in zip(answers, self.truth, strict=True)
        )
        return TwoStudents(samples, state["weight"], state["noise"], *answers, *errors)

    def draw(self, figure: Figure, result: TwoStudents) -> None:
        """Draw the values above, the slopes below; samples carry a short tangent."""
        figure.clear()
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1.7, 1))
        upper.set_title("values")
        lower.set_title("slopes")
        rows = ((upper, result.values), (lower, result.slopes))
        for (axis, students), true in zip(rows, self.truth, strict=True):
            axis.plot(places(), true, color=plots.BLACK, lw=1.4, ls=(0, (4, 2)), label="teacher")
            for student, name, style in zip(students, NAMES, STYLES, strict=True):
                axis.fill_between(places(), true, student, color=style["color"], alpha=0.13, lw=0)
                axis.plot(places(), student, label=name, **style)
            middle, half = (true.max() + true.min()) / 2, np.ptp(true) / 2
            axis.set_ylim(middle - 1.7 * half, middle + 1.7 * half)
            axis.grid(axis="y")
        lower.set_xlim(LOW - 0.1, HIGH + 0.1)
        lower.set_xlabel("x")
        samples = result.samples
        _tangents(upper, samples)
        upper.plot(samples.x, samples.values, "o", color=plots.BLACK, ms=6, label="samples")
        lower.plot(samples.x, samples.slopes, "o", color=plots.BLACK, ms=5)
        figure.legend(
            *upper.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=10
        )

    def describe(self, result: TwoStudents) -> str:
        """Return the setting and both students' errors in percent."""
        told = (
            f"{name}: values {value:.0%} off, slopes {slope:.0%} off"
            for name, value, slope in zip(
                NAMES, result.value_errors, result.slope_errors, strict=True
            )
        )
        return " | ".join([f"{len(result.samples.x)} samples", *told])


def teacher(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the teacher's values and slopes at ``x``, a sum of two sines."""
    size, speed, phase = torch.tensor(WAVES, dtype=torch.float64).T.unsqueeze(-1)
    angles = speed * x + phase
    return (size * angles.sin()).sum(0), (size * speed * angles.cos()).sum(0)


def places() -> Tensor:
    """Return the places where the students are drawn and measured, float64 ``[PLACES]``."""
    return torch.linspace(LOW, HIGH, PLACES, dtype=torch.float64)


def ask_teacher(count: int, noise: float, seed: int) -> Samples:
    """Return ``count`` >= 2 samples, evenly spread and then moved a little; ``noise`` is a share.

    Noise is normal; its size is that share of the root mean square of all values, or slopes.
    """
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(LOW, HIGH, count, dtype=torch.float64)
    shift, *errors = torch.randn(3, count, dtype=torch.float64, generator=generator)
    gap = (HIGH - LOW) / (count - 1)
    shift[[0, -1]] = 0.0  # the ends stay, so that all other places lie between samples
    x = spread + 0.15 * gap * shift.clamp(-2, 2)
    sizes = (row.square().mean().sqrt() for row in teacher(places()))
    noisy = [
        row + noise * size * error
        for row, size, error in zip(teacher(x), sizes, errors, strict=True)
    ]
    return Samples(x, *noisy)


def train_both(samples: Samples, weight: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Train the two students as one stacked network; return values and slopes at ``places()``.

    Full batches, Adam, a learning rate that falls to 0 along a cosine.
    """
    layers = start(seed)
    optimizer = torch.optim.Adam(layers, lr=LR, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    inputs = samples.x.repeat(2).requires_grad_()
    values, slopes = samples.values.repeat(2), samples.slopes.repeat(2)
    weights = torch.tensor([[0.0], [weight]], dtype=torch.float64)
    with unchecked_values():
        for _ in range(STEPS):
            outputs = students(layers, inputs)
            slope = input_gradient(outputs, inputs, create_graph=True)
            value_loss = (outputs - values).square()
            slope_loss = sobolev_loss(slope.view(-1, 1, 1), slopes.view(-1, 1, 1), reduction="none")
            both = value_loss.view(2, -1) + weights * slope_loss.view(2, -1)
            optimizer.zero_grad()
            both.mean(dim=1).sum().backward()
            optimizer.step()
            schedule.step()
    everywhere = places().repeat(2).requires_grad_()
    outputs = students(layers, everywhere)
    gradient = input_gradient(outputs, everywhere, create_graph=False)
    return outputs.detach().view(2, -1).numpy(), gradient.view(2, -1).numpy()


def start(seed: int) -> list[Tensor]:
    """Return weights and biases of two students, equal in pairs: 1 - HIDDEN - HIDDEN - 1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, dtype=torch.float64, generator=generator)

    first = 2.0 * normal(1, HIDDEN)
    bends = torch.rand(1, HIDDEN, dtype=torch.float64, generator=generator)
    layers = [
        first,
        -first * (LOW + (HIGH - LOW) * bends),  # each unit bends somewhere within the range
        normal(HIDDEN, HIDDEN) / math.sqrt(HIDDEN),
        torch.zeros(1, HIDDEN, dtype=torch.float64),
        normal(HIDDEN, 1) / math.sqrt(HIDDEN),
        torch.zeros(1, 1, dtype=torch.float64),
    ]
    return [torch.stack([layer, layer]).requires_grad_() for layer in layers]


def students(layers: list[Tensor], inputs: Tensor) -> Tensor:
    """Return both students' outputs ``[2n]``: the first's for n inputs, then the second's."""
    w1, b1, w2, b2, w3, b3 = layers
    hidden = torch.baddbmm(b1, inputs.view(2, -1, 1), w1).tanh()
    hidden = torch.baddbmm(b2, hidden, w2).tanh()
    return torch.baddbmm(b3, hidden, w3).flatten()


def _tangents(axis: Axes, samples: Samples) -> None:
    """Draw a short piece of the tangent at each sample, of one length on the paper."""
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    tall = UPPER_ASPECT * (right - left) / (high - low)  # how much longer one unit is upwards
    reach = TANGENT * (right - left) / torch.sqrt(1 + (tall * samples.slopes) ** 2)
    x = torch.stack([samples.x - reach, samples.x + reach])
    y = torch.stack(
        [samples.values - reach * samples.slopes, samples.values + reach * samples.slopes]
    )
    axis.plot(x, y, color=plots.BLACK, lw=3.0, solid_capstyle="round")
