"""Slopes of an answer by the image: which pixels would raise it, which would lower it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy.ndimage import uniform_filter

from kdlab.plots.figures import WIDTH, labelled, new_figure, one_each, styled
from kdlab.plots.grids import as_pictures, draw_image

SIGNED = "PuOr_r"  # orange above 0, purple below: told apart by every common colour vision
SHOWN = 99.5  # percentile of the strengths that gets the full colour


@styled
def slopes_over_images(
    images: ArrayLike, slopes: Mapping[str, ArrayLike], titles: Sequence[str] | None = None
) -> Figure:
    """Draw input gradients over images: one column per image, below it one row per network.

    Each slope is divided by its own length, because Jacobian matching compares directions alone;
    then all share one scale. Channels of a colour image are added up. Orange: a brighter pixel
    raises the answer; purple: it lowers it. The contours of the image stay visible in grey.

    Args:
        images: [N, h, w] grey or [N, h, w, 3] colour, values in [0, 1].
        slopes: name → [N, c, h, w], the images' own size.
        titles: N short texts, one above each image.

    Raises:
        ValueError: shapes that do not fit, no slopes.
    """
    pictures = as_pictures(images)
    if not slopes:
        raise ValueError("slopes is empty: give at least one name → slopes [N, c, h, w]")
    one_each("titles", titles, len(pictures), "image")
    rows = {name: _directions(name, given, pictures.shape[:3]) for name, given in slopes.items()}
    top = float(np.percentile(np.abs(list(rows.values())), SHOWN)) or 1.0
    grey = pictures if pictures.ndim == 3 else pictures.mean(axis=-1)
    cell = WIDTH / max(len(pictures) + 1, 6)
    figure = new_figure(height=(len(rows) + 1) * cell + 0.4)
    axes = figure.subplots(len(rows) + 1, len(pictures), squeeze=False)
    for axis, picture in zip(axes[0], pictures, strict=True):
        draw_image(axis, picture)
    for axis, title in zip(axes[0], titles or (), strict=False):
        axis.set_title(title, loc="center", fontsize=10)
    for line, maps in zip(axes[1:], rows.values(), strict=True):
        for axis, picture, slope in zip(line, grey, maps, strict=True):
            axis.axis("off")
            axis.imshow(slope, cmap=SIGNED, vmin=-top, vmax=top, interpolation="nearest")
            smooth = uniform_filter(picture, 3)  # else noise has contours, too
            if np.ptp(smooth) > 0:
                middle = (smooth.min() + smooth.max()) / 2
                axis.contour(smooth, levels=[middle], colors="black", linewidths=0.6, alpha=0.6)
    for line, name in zip(axes, ("image", *rows), strict=True):
        line[0].text(
            -0.12, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=10
        )
    return labelled(
        figure,
        f"{len(pictures)} images, and below each the slopes of {', '.join(rows)}: orange where a "
        "brighter pixel raises the answer, purple where it lowers it.",
    )


def _directions(name: str, given: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """Return slopes [N, h, w] of length 1 each, the channels added up."""
    values = np.asarray(given, dtype=float)
    if values.ndim != 4 or (values.shape[0], *values.shape[2:]) != shape:
        n, height, width = shape
        raise ValueError(
            f"slopes of {name!r} have shape {values.shape}; expected [{n}, c, {height}, {width}]"
        )
    flat = values.sum(axis=1)
    lengths = np.sqrt((flat**2).sum(axis=(1, 2), keepdims=True))
    return flat / np.where(lengths > 0, lengths, 1.0)
