"""Names beside points: none is cut off, none covers a point or another name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from kdlab.plots.figures import BLACK, GREY

DISTANCES = (11.0, 20.0, 32.0, 46.0, 62.0)  # from point to name, in typographic points
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
ALIGNED = {-1: "right", 0: "center", 1: "left"}, {-1: "top", 0: "center", 1: "bottom"}
ROOM = 7.0  # half of the square around a point that a name leaves free
APART = 3.0  # between two names, and between a name and the edge
LINKED = 25.0  # a name farther away gets a line to its point


def name_points(
    axis: Axes,
    names: Mapping[str, tuple[float, float]],
    points: Iterable[tuple[float, float]] = (),
    *,
    fontsize: float = 10.0,
) -> list[Annotation]:
    """Write each name beside its point, where there is room, and return what was written.

    Tries eight directions, near before far, and takes the first place that lies within the axes
    and covers no point and no other name; where there is none, the one that covers least. The
    limits of the axes, and their place in the figure, must be final.

    Args:
        axis: where to write.
        names: name → its point; earlier ones choose first.
        points: all points that should stay in sight, in the axes' own units.
        fontsize: of the names.
    """
    pixels = axis.figure.dpi / 72  # of a typographic point
    kept = [tuple(axis.transData.transform(at)) for at in (*points, *names.values())]
    taken = [_around(x, y, ROOM * pixels) for x, y in kept]
    written = []
    for name, at in names.items():
        note = axis.annotate(
            name, at, (0, 0), textcoords="offset points", fontsize=fontsize, parse_math=False,
            zorder=9, path_effects=[withStroke(linewidth=3, foreground="white")], color=BLACK,
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.8, "shrinkA": 0, "shrinkB": 5},
        )  # fmt: skip
        size = note.get_window_extent().size
        x, y = axis.transData.transform(at)
        places = [(distance, *way) for distance in DISTANCES for way in DIRECTIONS]
        boxes = [_beside(x, y, size, place, pixels) for place in places]
        covered = [_covered(box, taken, axis.bbox) for box in boxes]
        best = covered.index(min(covered))
        distance, right, up = places[best]
        near = distance / math.hypot(right, up)
        note.set_position((right * near, up * near))
        note.set(ha=ALIGNED[0][right], va=ALIGNED[1][up])
        if distance < LINKED and note.arrow_patch is not None:
            note.arrow_patch.set_visible(False)
        taken.append(boxes[best].padded(APART * pixels))
        written.append(note)
    return written


def _around(x: float, y: float, half: float) -> Bbox:
    return Bbox.from_extents(x - half, y - half, x + half, y + half)


def _beside(
    x: float, y: float, size: tuple[float, float], place: tuple[float, int, int], pixels: float
) -> Bbox:
    """The box, in pixels, of a name in one direction and distance from a point in pixels."""
    distance, right, up = place
    near = distance * pixels / math.hypot(right, up)
    left = x + right * near - size[0] * (1 - right) / 2
    bottom = y + up * near - size[1] * (1 - up) / 2
    return Bbox.from_bounds(left, bottom, *size)


def _covered(box: Bbox, taken: list[Bbox], inside: Bbox) -> float:
    """How bad a place is: the area that covers others, and far worse, what would be cut off."""
    area = sum(_area(Bbox.intersection(box, other)) for other in taken)
    within = Bbox.intersection(box, inside.padded(-APART))
    return area + 1e3 * (_area(box) - _area(within))


def _area(box: Bbox | None) -> float:
    return 0.0 if box is None else float(box.width * box.height)
