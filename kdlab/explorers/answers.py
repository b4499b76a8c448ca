"""Answers as bars of one length, each divided among its likeliest classes. For explorers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from kdlab import plots

SHOWN = 3  # classes of an answer that are named; the others are one grey rest
THICK, REST = 0.62, "#DDDDDD"  # a bar's height; the colour of all classes without a name
NARROW = 0.11  # an answer's part that is too narrow for one letter


def answer_bars(axis: Axes, rows: int) -> tuple[list[Any], list[list[Any]]]:
    """Draw empty bars, one a row from the top, and return their parts and the letters in them."""
    parts = [
        axis.barh([row] * (SHOWN + 1), 0, height=THICK, edgecolor="white") for row in range(rows)
    ]
    letters = [
        [axis.text(0, row, "", ha="center", va="center", fontsize=10) for _ in range(SHOWN)]
        for row in range(rows)
    ]
    axis.set(xlim=(0, 1), ylim=(rows - 0.5, -0.5), xticks=[])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return parts, letters


def divide(
    parts: Any, letters: list[Any], p: np.ndarray, label: int, classes: Sequence[str]
) -> None:
    """Divide one bar of full length among the likeliest classes; the right one is orange."""
    order = np.argsort(-p, kind="stable")[: len(letters)]
    widths = [*p[order], 1 - p[order].sum()]
    lefts = np.cumsum([0.0, *widths])
    colors = [plots.ORANGE if c == label else plots.SKY for c in order]
    for part, left, width, color in zip(parts, lefts, widths, [*colors, REST], strict=False):
        part.set(x=left, width=width, facecolor=color)
    for letter, left, width, c in zip(letters, lefts, widths, order, strict=False):
        fits = width > NARROW * (1 + len(classes[c])) / 2
        letter.set(x=left + width / 2, text=classes[c] if fits else "")
