"""A training curve that grows while the model trains. Lesson 01."""

from __future__ import annotations

import base64
import time

import matplotlib
import torch
from IPython.display import display
from torch import Tensor

from kdlab import plots
from kdlab.training import History, Moment
from kdlab.training.progress import in_notebook


class LiveCurve:
    """A callback of ``fit`` that draws the terms of the loss; the toolbar's square stops training.

    One picture, changed in place: after the last step it is an ordinary figure in the notebook.
    Reading a loss makes a GPU wait, so that happens only when a frame is drawn.

    Use it as ``with LiveCurve() as curve: fit(..., callbacks=[curve])``.

    Args:
        every: seconds between two frames while training.
        smooth: steps averaged into one point.
        alt: a sentence that says what is seen.
    """

    def __init__(
        self,
        every: float = 0.4,
        smooth: int = 10,
        alt: str = "Curves of the loss terms over the training steps, and the validation accuracy.",
    ) -> None:
        self.every = every
        self.smooth = smooth
        self.alt = alt
        self.terms: dict[str, list[Tensor]] = {}
        self._steps, self._history = 0, History()
        self._drawn = 0.0

    def __enter__(self) -> LiveCurve:
        self._handle = display(self._bundle(), raw=True, display_id=True) if in_notebook() else None
        return self

    def __call__(self, moment: Moment) -> None:
        """Take note of one step, and draw if the last frame is old enough."""
        for name, value in moment.terms.items():
            self.terms.setdefault(name, []).append(value)
        self._steps, self._history = moment.steps, moment.history
        if time.monotonic() - self._drawn > self.every:
            self._draw()

    def __exit__(self, *error: object) -> None:
        self._draw()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        if self._handle is not None:
            self._handle.update(self._bundle(), raw=True)

    def _bundle(self) -> dict[str, object]:
        picture = base64.b64encode(plots.png(self.figure(), colors=128)).decode()
        return {"image/png": picture, "text/plain": self.alt}

    def figure(self) -> matplotlib.figure.Figure:
        """Return the curves up to now: the terms on the left, validation accuracy on the right."""
        with matplotlib.rc_context(plots.STYLE):
            figure = plots.new_figure(height=2.6)
            left, right = figure.subplots(1, 2)
            for color, (name, values) in zip(plots.PALETTE[1:], self.terms.items(), strict=False):
                heights = torch.stack(values).float().cpu()
                whole = len(heights) // self.smooth * self.smooth
                means = heights[:whole].view(-1, self.smooth).mean(dim=1).numpy()
                steps = [self.smooth * (place + 1) for place in range(len(means))]
                left.plot(steps, means, label=name, color=color)
            if self.terms:
                left.legend()
            left.set_xlabel("step")
            left.set_ylabel("weighted loss term")
            left.set_ylim(bottom=0)
            scored = [row for row in self._history.rows if "val_accuracy" in row]
            ends = [(row["epoch"] + 1) * self._steps for row in scored]
            right.plot(ends, [row["val_accuracy"] for row in scored], "o-", color=plots.BLUE)
            right.set_ylim(0, 1)
            right.set_xlabel("step")
            right.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            right.set_ylabel("validation accuracy")
        return figure
