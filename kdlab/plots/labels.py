"""Names beside points: none is cut off, none covers a point or another name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation

from kdlab.plots.figures import BLACK, GREY

DISTANCES = (11.0, 20.0, 32.0, 46.0, 62.0)  # from point to name, in typographic points
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
PLACES = [(distance, *way) for distance in DISTANCES for way in DIRECTIONS]
ALIGNED = {-1: "right", 0: "center", 1: "left"}, {-1: "top", 0: "center", 1: "bottom"}
ROOM = 7.0  # half of the square around a point that a name leaves free
AMBIGUOUS, CUT_OFF = 300.0, 1e3  # how bad: as many covered pixels; for each pixel
APART = 3.0  # between two names, and between a name and the edge
LINKED = 15.0  # a name farther away gets a line to its point


def name_points(
    axis: Axes,
    names: Mapping[str, tuple[float, float]],
    points: Iterable[tuple[float, float]] = (),
    *,
    fontsize: float = 10.0,
) -> list[Annotation]:
    """Write each name beside its point, where there is room, and return what was written.

    Tries eight directions, near before far, and takes the first place that lies within the axes,
    covers no point and no other name, and is nearer to its own point than to any other; where
    there is none, the least bad one. The limits of the axes, and their place in the figure, must
    be final.

    Args:
        axis: where to write.
        names: name → its point; earlier ones choose first.
        points: all points that should stay in sight, in the axes' own units.
        fontsize: of the names.
    """
    if not names:
        return []
    pixels = axis.figure.dpi / 72  # of a typographic point
    kept = axis.transData.transform([*points, *names.values()])
    taken = np.hstack([kept - ROOM * pixels, kept + ROOM * pixels])
    inside = np.array([axis.bbox.padded(-APART * pixels).extents])
    written = []
    for name, at in names.items():
        note = axis.annotate(
            name, at, (0, 0), textcoords="offset points", fontsize=fontsize, parse_math=False,
            zorder=9, path_effects=[withStroke(linewidth=3, foreground="white")], color=BLACK,
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.8, "shrinkA": 0, "shrinkB": 5},
        )  # fmt: skip
        size = np.array(note.get_window_extent().size)
        own = axis.transData.transform(at)
        boxes = _around(own, size, pixels)
        others = kept[(np.abs(kept - own) > 1).any(axis=1)]
        bad = (
            _common(boxes, taken).sum(axis=1)
            + CUT_OFF * (size.prod() - _common(boxes, inside)[:, 0])
            + AMBIGUOUS * (_gaps(boxes, others) <= _gaps(boxes, own[None])).any(axis=1)
        )
        best = int(bad.round(3).argmin())  # noise in the last digit is no reason
        distance, right, up = PLACES[best]
        near = distance / math.hypot(right, up)
        note.set_position((right * near, up * near))
        note.set(ha=ALIGNED[0][right], va=ALIGNED[1][up])
        if distance < LINKED and note.arrow_patch is not None:
            note.arrow_patch.set_visible(False)
        room = APART * pixels * np.array([-1, -1, 1, 1])
        taken = np.vstack([taken, boxes[best] + room])
        written.append(note)
    return written


def _around(point: np.ndarray, size: np.ndarray, pixels: float) -> np.ndarray:
    """Return the boxes [places, 4] (left, bottom, right, top) that a name could have, in pixels."""
    distances, ways = np.split(np.array(PLACES), [1], axis=1)
    moved = ways * distances * pixels / np.hypot(*ways.T)[:, None]
    corners = point + moved - size * (1 - ways) / 2
    return np.hstack([corners, corners + size])


def _common(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the areas [N, M] that boxes [N, 4] and others [M, 4] have in common."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.clip(high - low, 0, None).prod(axis=-1)


def _gaps(boxes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the distances [N, M] from boxes [N, 4] to points [M, 2]."""
    below, above = boxes[:, None, :2] - points, points - boxes[:, None, 2:]
    return np.hypot(*np.moveaxis(np.maximum(0, np.maximum(below, above)), -1, 0))
