"""The grid of attention maps: what is drawn where, and what is refused."""

from itertools import pairwise

import numpy as np
import pytest

from kdlab import plots
from kdlab.plots.attention import TOKENS

RNG = np.random.default_rng(5)
ROWS, COLUMNS = ["layer 1", "layer 2"], ["head 1", "head 2", "head 3"]


def weights(n=5):
    given = RNG.random((2, 3, n, n))
    return given / given.sum(-1, keepdims=True)


def test_each_map_is_in_its_place_on_one_scale():
    given, tokens = weights(), list("abcde")
    figure = plots.attention_grid(given, tokens, ROWS, COLUMNS)
    *panels, bar = figure.axes
    boxes = [panel.get_position() for panel in panels]
    for number, panel in enumerate(panels):
        row, column = divmod(number, 3)
        np.testing.assert_allclose(panel.images[0].get_array(), given[row, column])
        assert panel.images[0].get_clim() == pytest.approx((0, given.max()))
        assert panel.get_title() == f"{ROWS[row]}, {COLUMNS[column]}"
    assert boxes[0].y0 > boxes[3].y1 and boxes[0].x1 < boxes[1].x0
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in boxes)
    assert bar.get_ylim() == pytest.approx((0, given.max()))


def test_tokens_stand_beside_the_first_column_and_below_the_last_row():
    figure = plots.attention_grid(weights(), list("abcde"), ROWS, COLUMNS)
    *panels, _ = figure.axes
    figure.draw_without_rendering()
    left = [panel.yaxis.get_tick_params()["labelleft"] for panel in panels]
    below = [panel.xaxis.get_tick_params()["labelbottom"] for panel in panels]
    assert left == [True, False, False] * 2 and below == [False] * 3 + [True] * 3
    assert [t.get_text() for t in panels[3].get_yticklabels()] == list("abcde")


@pytest.mark.parametrize(("columns", "n"), [(3, 14), (4, 14), (6, 12)])
def test_labels_of_tokens_do_not_overlap(columns, n):
    given = np.full((1, columns, n, n), 1 / n)
    names = [f"head {i}" for i in range(columns)]
    figure = plots.attention_grid(given, ["Qgjwmd"] * n, ["layer 1"], names)
    figure.draw_without_rendering()
    first = figure.axes[0]
    rows = [t.get_window_extent() for t in first.get_yticklabels()]
    assert all(a.y0 >= b.y1 - 0.5 for a, b in pairwise(rows))
    below = [t.get_window_extent() for t in first.get_xticklabels()]
    assert all(a.x1 <= b.x0 + 0.5 for a, b in pairwise(below))


def test_of_a_long_text_the_beginning_is_shown():
    given = weights(30)
    figure = plots.attention_grid(given, [str(i) for i in range(30)], ROWS, COLUMNS)
    np.testing.assert_allclose(figure.axes[1].images[0].get_array(), given[0, 1, :TOKENS, :TOKENS])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"weights": weights()[0]}, r"weights has shape \(3, 5, 5\); expected \[·, ·, n, n\]"),
        ({"weights": 9 * weights()}, "expected probabilities"),
        ({"tokens": list("abc")}, "tokens has 3 entries; expected 5"),
        ({"rows": ["one"]}, "rows has 1 entries; expected 2"),
        ({"columns": ["one"]}, "columns has 1 entries; expected 3"),
    ],
)
def test_refuses(change, match):
    arguments = {"weights": weights(), "tokens": list("abcde"), "rows": ROWS, "columns": COLUMNS}
    with pytest.raises(ValueError, match=match):
        plots.attention_grid(**{**arguments, **change})
