"""Pictures in rows and columns: images, heat maps, confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike

from kdlab.plots.figures import WIDTH, labelled, new_figure, one_each, styled


@styled
def image_grid(images: ArrayLike, titles: Sequence[str] | None = None, columns: int = 10) -> Figure:
    """Draw images in rows of ``columns``.

    Args:
        images: [N, h, w] grey or [N, h, w, 3] colour, values in [0, 1] (``Data.image`` gives them).
        titles: N short texts, one above each image.
        columns: images per row.

    Raises:
        ValueError: images of another shape, or not one title for each.
    """
    pictures = np.asarray(images)
    if pictures.ndim not in (3, 4) or len(pictures) == 0:
        raise ValueError(f"images has shape {pictures.shape}; expected [N, h, w] or [N, h, w, 3]")
    one_each("titles", titles, len(pictures), "image")
    columns = max(1, min(columns, len(pictures)))
    rows = -(-len(pictures) // columns)
    cell = WIDTH / max(columns, 5)
    figure = new_figure(height=rows * (cell + (0.24 if titles is not None else 0.05)) + 0.1)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for index, axis in enumerate(axes):
        axis.axis("off")
        if index >= len(pictures):
            continue
        draw_image(axis, pictures[index])
        if titles is not None:
            axis.set_title(titles[index], loc="center", fontsize=10)
    return labelled(figure, f"Grid of {len(pictures)} images, {rows} × {columns}.")


def draw_image(axis: Axes, image: np.ndarray) -> Any:
    """Draw one image, [h, w] or [h, w, 3] in [0, 1], sharp and without ticks."""
    axis.axis("off")
    return axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")


@styled
def heatmap(
    values: ArrayLike,
    xlabels: Sequence[Any],
    ylabels: Sequence[Any],
    *,
    annotate: bool | str = True,
    xlabel: str = "",
    ylabel: str = "",
    label: str = "",
    percent: bool = False,
) -> Figure:
    """Draw a table of numbers as colours, light for large.

    Args:
        values: [rows, columns]; NaN stays white.
        xlabels, ylabels: names of the columns and the rows.
        annotate: write the numbers into the cells; a format such as ``".1f"`` says how.
        xlabel, ylabel: what the columns and the rows are.
        label: what the numbers are, beside the colour bar.
        percent: the values are fractions, shown as percentages.

    Raises:
        ValueError: ``values`` is not a table, or the names do not fit it.
    """
    table = np.asarray(values, dtype=float)
    if table.ndim != 2:
        raise ValueError(f"values has shape {table.shape}; expected [rows, columns]")
    one_each("ylabels", ylabels, table.shape[0], "row")
    one_each("xlabels", xlabels, table.shape[1], "column")
    figure = new_figure(height=min(7.0, max(2.2, 1.1 + 0.38 * table.shape[0])))
    axis = figure.subplots()
    mesh = axis.imshow(table, aspect="auto", cmap="viridis")
    axis.set_xticks(range(len(xlabels)), [str(name) for name in xlabels])
    axis.set_yticks(range(len(ylabels)), [str(name) for name in ylabels])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    scale = PercentFormatter(1.0, decimals=0) if percent else None
    figure.colorbar(mesh, ax=axis, label=label, format=scale)
    if annotate:
        pattern = annotate if isinstance(annotate, str) else (".0%" if percent else ".2g")
        middle = (np.nanmin(table) + np.nanmax(table)) / 2
        for (row, column), value in np.ndenumerate(table):
            if np.isfinite(value):
                ink = "black" if value > middle else "white"
                axis.text(
                    column, row, format(value, pattern), ha="center", va="center", color=ink,
                    fontsize=9,
                )  # fmt: skip
    what = label or "values"
    return labelled(figure, f"Heat map of {what}: {ylabel or 'rows'} by {xlabel or 'columns'}.")


@styled
def class_matrix(
    matrix: ArrayLike,
    classes: Sequence[str],
    *,
    xlabel: str = "class the model gives",
    ylabel: str = "true class",
    hide_diagonal: bool = False,
) -> Figure:
    """Draw a confusion matrix, or which classes look alike to a teacher.

    Args:
        matrix: [C, C] fractions, one row per true class.
        classes: C names.
        xlabel, ylabel: what columns and rows are.
        hide_diagonal: leave the right answers white, so that the colours serve the small numbers.

    Raises:
        ValueError: the matrix is not square, or not one name per class.
    """
    table = np.array(matrix, dtype=float)
    if table.ndim != 2 or table.shape[0] != table.shape[1]:
        raise ValueError(f"matrix has shape {table.shape}; expected [C, C]")
    one_each("classes", classes, len(table), "class")
    if hide_diagonal:
        np.fill_diagonal(table, np.nan)
    figure = new_figure(height=5.6, width=6.6)
    axis = figure.subplots()
    mesh = axis.imshow(table, cmap="Blues", vmin=0)
    size = 10 if len(classes) <= 20 else 8
    axis.set_xticks(range(len(classes)), list(classes), fontsize=size)
    axis.set_yticks(range(len(classes)), list(classes), fontsize=size)
    if max(map(len, classes)) > 2:
        axis.tick_params(axis="x", rotation=90)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    figure.colorbar(mesh, ax=axis, format=PercentFormatter(1.0, decimals=0), shrink=0.8)
    hidden = " The diagonal is left out." if hide_diagonal else ""
    return labelled(figure, f"Matrix of {len(table)} classes: {ylabel} by {xlabel}.{hidden}")
