"""Names beside points: whole, apart, and nearer to their own point than to any other."""

from itertools import combinations

import numpy as np
import pytest

from kdlab import plots
from kdlab.plots import labels


def axis_with(points, width=5.0, height=3.0):
    figure = plots.new_figure(height, width)
    figure.set_layout_engine("none")
    axis = figure.add_axes((0.1, 0.1, 0.85, 0.85))
    axis.plot(*zip(*points, strict=True), "o")
    axis.set(xlim=(0, 10), ylim=(0, 10))
    return axis


def boxes(axis, notes):
    axis.figure.draw_without_rendering()
    return [super(type(note), note).get_window_extent() for note in notes]  # without the line


def gap(box, point):
    return np.hypot(*np.maximum(0, np.maximum(box.min - point, point - box.max)))


CASES = {
    "alone": [(5, 5)],
    "in the corners": [(0.1, 0.1), (9.9, 0.1), (0.1, 9.9), (9.9, 9.9)],
    "side by side": [(4, 5), (5, 5), (6, 5)],
    "a crowd": [(4 + 0.7 * (i % 4), 4 + 0.7 * (i // 4)) for i in range(12)],
    "one above the other": [(5, y) for y in (3, 3.6, 4.2, 4.8)],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("text", ["ab", "distilled, pruned", "two lines\nof a long name"])
def test_names_are_whole_and_cover_nothing(case, text):
    points = CASES[case]
    axis = axis_with(points)
    named = {f"{text}{number}": at for number, at in enumerate(points) if number in (0, 2)}
    notes = plots.name_points(axis, named, points)
    assert [note.get_text() for note in notes] == list(named)
    found = boxes(axis, notes)
    for box in found:
        assert axis.bbox.x0 <= box.x0 and box.x1 <= axis.bbox.x1
        assert axis.bbox.y0 <= box.y0 and box.y1 <= axis.bbox.y1
        for at in points:
            assert gap(box, axis.transData.transform(at)) > 4
    assert not any(a.overlaps(b) for a, b in combinations(found, 2))


@pytest.mark.parametrize("case", CASES)
def test_a_name_is_nearest_to_its_own_point_or_has_a_line(case):
    points = CASES[case]
    axis = axis_with(points)
    notes = plots.name_points(axis, {"name": points[0]}, points)
    (box,) = boxes(axis, notes)
    gaps = [gap(box, axis.transData.transform(at)) for at in points]
    assert np.argmin(gaps) == 0 or notes[0].arrow_patch.get_visible()


def test_where_there_is_room_a_name_stands_close_on_the_right():
    axis = axis_with([(5, 5)])
    (note,) = plots.name_points(axis, {"near": (5, 5)}, [(5, 5)])
    assert note.get_position() == (labels.DISTANCES[0], 0)
    assert (note.get_ha(), note.get_va()) == ("left", "center")
    assert not note.arrow_patch.get_visible()


@pytest.mark.parametrize(
    "text", ["teacher, of low rank", "teacher, int8", "half", "a name\nin two"]
)
def test_at_the_right_edge_a_name_stands_close_on_the_left(text):
    axis = axis_with([(9.7, 4.3)])
    (note,) = plots.name_points(axis, {text: (9.7, 4.3)}, [(9.7, 4.3), (1, 1)])
    assert note.get_position() == (-labels.DISTANCES[0], 0) and note.get_ha() == "right"


def test_a_neighbour_sends_the_name_to_the_other_side():
    points = [(5, 5), (5.6, 5)]
    axis = axis_with(points)
    (note,) = plots.name_points(axis, {"left of it": points[0]}, points)
    assert note.get_position()[0] < 0 and note.get_ha() == "right"


def test_a_name_far_from_its_point_has_a_line_to_it():
    points = [(5 + 0.35 * x, 5 + 0.6 * y) for x in range(-3, 4) for y in range(-2, 3)]
    axis = axis_with(points)
    (note,) = plots.name_points(axis, {"in the midst": (5, 5)}, points)
    assert note.arrow_patch.get_visible()


def test_without_names_nothing_is_written():
    assert plots.name_points(axis_with([(5, 5)]), {}, [(5, 5)]) == []


def test_dollars_are_dollars():
    axis = axis_with([(5, 5)])
    (note,) = plots.name_points(axis, {"$a$ or $b$": (5, 5)})
    assert not note.get_parse_math()
