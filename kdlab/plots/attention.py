"""Who looks at whom: attention between the tokens of a text, with the tokens written beside it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from kdlab.plots.figures import WIDTH, labelled, new_figure, one_each, styled

WEIGHTS = "viridis"
TOKENS = 14  # of one panel: more labels of a readable size would touch each other
POINTS = 8.0  # size of a token's label
LEFT, BELOW, BAR = 0.92, 0.92, 0.62  # inches for the labels, and for the scale on the right


@styled
def attention_grid(
    weights: ArrayLike, tokens: Sequence[str], rows: Sequence[str], columns: Sequence[str]
) -> Figure:
    """Draw attention maps in rows and columns, such as layers and heads, on one scale.

    Args:
        weights: [R, C, n, n] from 0 to 1: how much token i (row) takes from token j (column). Of
            long texts the first ``TOKENS`` tokens are shown.
        tokens: n texts.
        rows, columns: R and C titles.

    Raises:
        ValueError: another shape, not finite or negative values, or not one title for each.
    """
    maps = check_weights("weights", weights, 4)
    one_each("tokens", tokens, maps.shape[-1], "token")
    one_each("rows", rows, len(maps), "row")
    one_each("columns", columns, maps.shape[1], "column")
    shown = maps[..., :TOKENS, :TOKENS]
    side = (WIDTH - LEFT - BAR) / max(len(columns), 3)
    height = len(rows) * (side + 0.28) + BELOW
    figure = new_figure(height)
    figure.set_layout_engine("none")  # fixed places, so that rows and columns stand close
    top = float(shown.max())
    points = min(POINTS, 0.82 * 72 * (side - 0.08) / shown.shape[-1])  # a line is taller than that
    for row, row_title in enumerate(rows):
        for column, column_title in enumerate(columns):
            x = LEFT + column * side
            y = BELOW + (len(rows) - 1 - row) * (side + 0.28)
            axis = place(figure, x, y, side - 0.08)
            draw_attention(axis, shown[row, column], tokens[:TOKENS], top, points)
            axis.set_title(f"{row_title}, {column_title}", loc="center", fontsize=9.5, pad=3)
            axis.tick_params(labelleft=column == 0, labelbottom=row == len(rows) - 1)
    edge = LEFT + len(columns) * side + 0.02
    weight_scale(figure, (edge, BELOW, 0.11, height - BELOW - 0.28), top)
    names = f"{', '.join(map(str, rows))}; columns: {', '.join(map(str, columns))}"
    return labelled(
        figure,
        f"Attention between the tokens of one text; rows of maps: {names}. In each map a row is "
        "the token that looks, a column the token that it looks at.",
    )


def draw_attention(
    axis: Axes, weights: np.ndarray, tokens: Sequence[str], top: float, points: float = POINTS
) -> Any:
    """Draw one map [n, n] with a token beside each row and below each column; return its image."""
    mesh = axis.imshow(weights, cmap=WEIGHTS, vmin=0, vmax=top, interpolation="nearest")
    names = [token_label(token) for token in tokens]
    plain: Any = {"fontsize": points, "parse_math": False}  # a dollar sign is a dollar sign
    axis.set_xticks(range(len(names)), names, rotation=90, **plain)
    axis.set_yticks(range(len(names)), names, **plain)
    axis.tick_params(length=0, pad=2)
    axis.spines[:].set_visible(False)
    return mesh


def weight_scale(figure: Figure, where: tuple[float, float, float, float], top: float) -> Any:
    """Draw the colour bar from 0 to ``top`` at (x, y, width, height), in inches from below left."""
    width, height = figure.get_size_inches()
    x, y, w, h = where
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, top), WEIGHTS),
        cax=figure.add_axes((x / width, y / height, w / width, h / height)),
        ticks=MaxNLocator(5, steps=[1, 2, 5, 10]),
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2, labelsize=9)
    return bar


def place(figure: Figure, x: float, y: float, side: float) -> Axes:
    """Add a square axis, in inches from below left."""
    width, height = figure.get_size_inches()
    return figure.add_axes((x / width, y / height, side / width, side / height))


@functools.lru_cache(4096)
def token_label(token: str) -> str:
    """Return a token as a text that the figures' font can write and that has room beside a map."""
    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    known = font.get_charmap()
    text = "".join(c if ord(c) in known and c.isprintable() else "□" for c in token)
    font.set_size(POINTS, 72)
    short, length = text, len(text)
    while length > 1:
        font.set_text(short)
        if font.get_width_height()[0] / 64 <= 72 * (LEFT - 0.08):  # points; it counts in 64ths
            break
        length -= 1
        short = text[:length] + "…"
    return short


def check_weights(argument: str, weights: ArrayLike, ndim: int) -> np.ndarray:
    """Return weights [..., n, n] as an array.

    Raises:
        ValueError: another number of dimensions, not square, not from 0 to 1, or not finite.
    """
    given = np.asarray(weights, dtype=float)
    if given.ndim != ndim or given.shape[-1] != given.shape[-2] or given.size == 0:
        leading = ", ".join(["·"] * (ndim - 2))
        raise ValueError(f"{argument} has shape {given.shape}; expected [{leading}, n, n]")
    if not np.isfinite(given).all() or given.min() < 0 or given.max() > 1 + 1e-4:
        raise ValueError(
            f"{argument} holds values from {given.min():g} to {given.max():g}; expected "
            "probabilities, from 0 to 1 and no NaN"
        )
    return given
