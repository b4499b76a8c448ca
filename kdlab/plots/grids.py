"""Pictures in rows and columns: images, confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from kdlab.plots.figures import WIDTH, labelled, new_figure, one_each, styled

ROUND = MaxNLocator(6, steps=[1, 2, 5, 10])


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
    pictures = as_pictures(images)
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


def as_pictures(images: ArrayLike) -> np.ndarray:
    """Return images as an array [N, h, w] or [N, h, w, 3].

    Raises:
        ValueError: another shape, or no images.
    """
    pictures = np.asarray(images)
    if pictures.ndim not in (3, 4) or len(pictures) == 0:
        raise ValueError(f"images has shape {pictures.shape}; expected [N, h, w] or [N, h, w, 3]")
    return pictures


def draw_image(axis: Axes, image: np.ndarray) -> Any:
    """Draw one image, [h, w] or [h, w, 3] in [0, 1], sharp and without ticks."""
    axis.axis("off")
    return axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")


@styled
def class_matrix(
    matrix: ArrayLike, classes: Sequence[str], *, hide_diagonal: bool = False
) -> Figure:
    """Draw a confusion matrix, or which classes look alike to a teacher.

    Args:
        matrix: [C, C] fractions, one row per true class.
        classes: C names.
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
    axis.set_xlabel("class that the model finds likely")
    axis.set_ylabel("true class")
    scale = PercentFormatter(1.0, decimals=0)
    figure.colorbar(mesh, ax=axis, format=scale, shrink=0.8, ticks=ROUND)
    hidden = " The diagonal is left out." if hide_diagonal else ""
    return labelled(figure, f"Matrix of {len(table)} classes: true by given.{hidden}")
