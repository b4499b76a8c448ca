"""What hidden layers hold: tables as heat maps, maps over pictures, similarity matrices."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from kdlab.plots.figures import VERMILION, WIDTH, labelled, new_figure, one_each, styled
from kdlab.plots.grids import ROUND, as_pictures, draw_image
from kdlab.words import check_known

HEAT = "cividis"  # made for colour-blind eyes: its lightness alone tells the values apart
NAMED = 12  # classes of a similarity matrix; names of more would touch each other


@styled
def heat_map(
    table: pd.DataFrame,
    *,
    row: Hashable | None = None,
    cell: tuple[Hashable, Hashable] | None = None,
    low: float | None = None,
    high: float | None = None,
    form: str = "{:z.2f}",
    xlabel: str = "",
    ylabel: str = "",
    title: str = "",
) -> Figure:
    """Draw a table of numbers as colours, each number printed in its cell; the first row on top.

    Args:
        table: numbers; NaN leaves a cell white.
        row: label of a row to frame.
        cell: (row, column) of a cell to frame.
        low, high: ends of the colour scale; default: the smallest and the largest number.
        form: how numbers are printed.
        xlabel, ylabel, title: texts; none by default.

    Raises:
        ValueError: an empty table or one of something else than numbers, or an unknown label.
    """
    height = 0.6 + 0.42 * len(table) + 0.3 * bool(xlabel) + 0.3 * bool(title)
    figure = new_figure(height, width=min(WIDTH, 2.4 + 0.85 * table.shape[1]))
    axis = figure.subplots()
    draw_heat_map(axis, table, row=row, cell=cell, low=low, high=high, form=form)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    rows, columns = (", ".join(map(str, names)) for names in (table.index, table.columns))
    of = f" of {title}" if title else ""
    return labelled(figure, f"Heat map{of}; rows: {rows}; columns: {columns}.")


@styled
def draw_heat_map(
    axis: Axes,
    table: pd.DataFrame,
    *,
    row: Hashable | None = None,
    cell: tuple[Hashable, Hashable] | None = None,
    low: float | None = None,
    high: float | None = None,
    form: str = "{:z.2f}",
) -> Any:
    """Draw a ``heat_map`` into an axis, which should be empty, and return its image."""
    if table.empty or not all(map(pd.api.types.is_numeric_dtype, table.dtypes)):
        raise ValueError(
            f"table has shape {table.shape} and the types {sorted(map(str, set(table.dtypes)))}; "
            "expected numbers in at least one row and column"
        )
    values = table.to_numpy(dtype=float)
    mesh = axis.imshow(values, cmap=HEAT, vmin=low, vmax=high, aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        color = "black" if np.isnan(value) else ink(mesh.to_rgba(value))
        text = "–" if np.isnan(value) else form.format(value)
        axis.text(x, y, text, ha="center", va="center", color=color, fontsize=10)
    for side, names in ((axis.xaxis, table.columns), (axis.yaxis, table.index)):
        side.set_ticks(range(len(names)), [str(name) for name in names])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xticks(np.arange(values.shape[1] - 1) + 0.5, minor=True)
    axis.set_yticks(np.arange(values.shape[0] - 1) + 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=2)
    axis.tick_params(which="minor", length=0)
    if row is not None:
        _frame(axis, _place("row", row, table.index), 0, values.shape[1], 2.5)
    if cell is not None:
        y, x = _place("row", cell[0], table.index), _place("column", cell[1], table.columns)
        _frame(axis, y, x, 1, 4.0)
        axis.texts[y * values.shape[1] + x].set_fontweight("bold")
    return mesh


def ink(color: ArrayLike) -> str:
    """Return "black" or "white", whichever stands out more on an RGB(A) colour.

    By the contrast ratio of the Web Content Accessibility Guidelines 2.1; the better of the two is
    never below 4.5, which they ask of text.
    """
    rgb = np.asarray(color, dtype=float)[:3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    return "black" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "white"


@styled
def maps_over_images(
    images: ArrayLike, maps: Mapping[str, ArrayLike], titles: Sequence[str] | None = None
) -> Figure:
    """Draw where networks look: one column per image, below it one row per network (or stage).

    All panels share one scale: each map is divided by its own mean, so that 1 is an average place
    and maps of any size and strength compare; the colours go from 0 (the bare grey picture) to the
    99.5th percentile of all values shown. A coarse map is enlarged by linear interpolation between
    the centres of its cells, which adds no value beyond theirs.

    Args:
        images: [N, h, w] grey or [N, h, w, 3] colour, values in [0, 1]; drawn in pale grey.
        maps: name → [N, h', w'], at least 0; any size, stretched over the whole image.
        titles: N short texts, one above each image.

    Raises:
        ValueError: shapes that do not fit, no maps, negative or not finite values.
    """
    pictures = as_pictures(images)
    if not maps:
        raise ValueError("maps is empty: give at least one name → maps [N, h, w]")
    one_each("titles", titles, len(pictures), "image")
    shares = {name: relative_maps(name, given, len(pictures)) for name, given in maps.items()}
    top = scale_top(shares.values())
    left, gap, bar = 0.2 + 0.085 * max(map(len, ["image", *maps])), 0.06, 0.85  # inches
    cell = (WIDTH - left - bar) / max(len(pictures), 4)
    height = (len(maps) + 1) * cell + 0.35
    figure = new_figure(height)
    figure.set_layout_engine("none")  # fixed places, so that rows and columns stand close

    def place(x: float, y: float, width: float, depth: float) -> Axes:
        """Add an axis, in inches from the left and from the top."""
        bottom = (height - y - depth) / height
        return figure.add_axes((x / WIDTH, bottom, width / WIDTH, depth / height))

    for row, name in enumerate(["image", *maps]):
        for column, picture in enumerate(pictures):
            axis = place(left + column * cell, 0.3 + row * cell, cell - gap, cell - gap)
            if row > 0:
                draw_map(axis, picture, shares[name][column], top)
                continue
            draw_image(axis, picture)
            if titles is not None:
                axis.set_title(titles[column], loc="center", fontsize=10)
        figure.text(
            (left - 0.1) / WIDTH,
            1 - (0.3 + (row + 0.5) * cell - gap / 2) / height,
            name,
            ha="right",
            va="center",
        )
    edge = left + len(pictures) * cell + 0.05
    map_scale(figure, place(edge, 0.3 + cell, 0.11, len(maps) * cell - gap), top)
    return labelled(
        figure,
        f"{len(pictures)} images, and over each the maps of {', '.join(maps)}: bright where a map "
        "is above its mean.",
    )


def relative_maps(name: str, maps: ArrayLike, n: int) -> np.ndarray:
    """Return maps [n, h, w], each divided by its mean; one that is 0 everywhere stays so.

    Raises:
        ValueError: another shape, negative or not finite values.
    """
    given = np.asarray(maps, dtype=float)
    if given.ndim != 3 or len(given) != n or given.size == 0:
        raise ValueError(
            f"maps of {name!r} have shape {given.shape}; expected [{n}, h, w], one for each image"
        )
    if not np.isfinite(given).all() or given.min() < 0:
        raise ValueError(
            f"maps of {name!r} hold negative, NaN or infinite values; expected energies, such as "
            "the mean of the squares over the channels"
        )
    mean = given.mean((1, 2), keepdims=True)
    return np.divide(given, mean, out=np.zeros_like(given), where=mean > 0)


def scale_top(shares: Any) -> float:
    """Return the upper end of the colours for several arrays of ``relative_maps``."""
    return max(1.0, float(np.percentile(np.concatenate([np.ravel(s) for s in shares]), 99.5)))


def draw_map(axis: Axes, image: np.ndarray, share: np.ndarray, top: float) -> tuple[Any, Any]:
    """Draw one map of ``relative_maps`` over its picture; return the artists of both."""
    picture = draw_image(axis, grey(image))
    picture.set_clim(-0.5, 2.0)  # pale, between dark and middle grey: room for the colours
    height, width = image.shape[:2]
    overlay = axis.imshow(
        share,
        cmap=_glow(),
        vmin=0,
        vmax=top,
        interpolation="bilinear",
        interpolation_stage="data",
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
    )
    return picture, overlay


def grey(image: np.ndarray) -> np.ndarray:
    """Return the luma [h, w] of a picture [h, w] or [h, w, 3]."""
    return image if image.ndim == 2 else image @ np.array([0.299, 0.587, 0.114])


def map_scale(figure: Figure, axis: Axes, top: float) -> Any:
    """Draw the colour bar of maps into an axis: from 0 to ``top``, over a middle grey."""
    scale = ScalarMappable(Normalize(0, top), _glow(ground=0.4))
    bar = figure.colorbar(
        scale,
        cax=axis,
        ticks=MaxNLocator(5, steps=[1, 2, 5, 10]),
        format=lambda value, _: f"{value:g}×",
        extend="max",
    )
    bar.outline.set_visible(False)
    axis.tick_params(length=2, labelsize=9)
    bar.set_label("the map's mean", fontsize=9, labelpad=2)
    return bar


@styled
def similarity_matrices(
    matrices: Mapping[str, ArrayLike],
    labels: ArrayLike,
    classes: Sequence[str] | None = None,
) -> Figure:
    """Draw how alike a batch's samples are to several models, side by side, sorted by class.

    Where a model gathers each class, its blocks on the diagonal are bright. All panels share one
    scale: from 0 (or the smallest value, if that is negative) to the 99th percentile of what lies
    off the diagonals, since a sample's likeness to itself says nothing.

    Args:
        matrices: name → [N, N].
        labels: [N] class numbers.
        classes: names by class number; by default the numbers. Shown for up to 12 classes.

    Raises:
        ValueError: no matrices, another shape, not finite values, or labels without a name.
    """
    y = np.asarray(labels)
    if not matrices:
        raise ValueError("matrices is empty: give at least one name → [N, N]")
    if y.ndim != 1 or len(y) < 2 or y.dtype.kind not in "iu":
        raise ValueError(f"labels: {y.dtype} {y.shape}; expected [N] class numbers, at least two")
    if y.min() < 0 or (classes is not None and y.max() >= len(classes)):
        least = "at least 0" if classes is None else f"0 to {len(classes) - 1}, one name for each"
        raise ValueError(f"labels: from {y.min()} to {y.max()}; expected {least}")
    order = np.argsort(y, kind="stable")
    tables = {
        name: _square(name, given, len(y))[np.ix_(order, order)] for name, given in matrices.items()
    }
    off = ~np.eye(len(y), dtype=bool)
    low = min(0.0, *(float(table.min()) for table in tables.values()))
    high = float(np.percentile([table[off] for table in tables.values()], 99))
    scale = Normalize(low, high if high > low else low + 1)
    columns = len(tables) if len(tables) <= 4 else 3
    rows = -(-len(tables) // columns)
    figure = new_figure(height=rows * (min(3.0, (WIDTH - 1.0) / columns) + 0.55))
    axes = figure.subplots(rows, columns, squeeze=False)
    found, starts, counts = np.unique(y[order], return_index=True, return_counts=True)
    names = [str(c) if classes is None else classes[c] for c in found]
    for index, axis in enumerate(axes.flat):
        if index >= len(tables):
            axis.axis("off")
            continue
        title, table = list(tables.items())[index]
        mesh = axis.imshow(table, cmap=HEAT, norm=scale, interpolation="nearest")
        axis.set_title(title, loc="center", fontsize=11)
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
        axis.hlines(starts[1:] - 0.5, -0.5, len(y) - 0.5, color="white", linewidth=0.6)
        axis.vlines(starts[1:] - 0.5, -0.5, len(y) - 0.5, color="white", linewidth=0.6)
        shown = names if len(found) <= NAMED else [""] * len(found)
        centres = starts + (counts - 1) / 2
        axis.set_xticks(centres, shown)
        axis.set_yticks(centres, shown if index % columns == 0 else [""] * len(found))
    figure.colorbar(mesh, ax=list(axes.flat), shrink=0.8, aspect=25, ticks=ROUND, extend="max")
    return labelled(
        figure,
        f"Similarity matrices of {len(y)} samples, sorted by class, for {', '.join(tables)}.",
    )


def _glow(ground: float | None = None) -> ListedColormap:
    """Return inferno that grows opaque with the value; over a ``ground`` of grey, if one is given.

    Its lightness rises evenly, so it reads the same without colour vision. The root makes small
    values visible and leaves 0 clear.
    """
    colors = matplotlib.colormaps["inferno"](np.linspace(0, 1, 256))
    opacity = 0.9 * np.sqrt(np.linspace(0, 1, 256))
    if ground is None:
        colors[:, 3] = opacity
    else:
        colors[:, :3] = opacity[:, None] * colors[:, :3] + (1 - opacity[:, None]) * ground
    return ListedColormap(colors)


def _place(what: str, label: Hashable, labels: pd.Index) -> int:
    check_known(what, label, list(labels))
    return list(labels).index(label)


def _frame(axis: Axes, y: int, x: int, width: int, line: float) -> None:
    corner = (x - 0.5, y - 0.5)
    frame = Rectangle(corner, width, 1, fill=False, edgecolor=VERMILION, linewidth=line, zorder=5)
    axis.add_patch(frame).set_clip_on(False)


def _square(name: str, matrix: ArrayLike, n: int) -> np.ndarray:
    table = np.asarray(matrix, dtype=float)
    if table.shape != (n, n) or not np.isfinite(table).all():
        raise ValueError(
            f"matrices[{name!r}] has shape {table.shape}; expected {(n, n)}, finite, one row and "
            "column for each label"
        )
    return table
