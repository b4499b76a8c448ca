"""Names of classes that are no plain words: a $ is a $, and no letter stops or warns."""

import warnings

import matplotlib.font_manager
import numpy as np
import pytest

from kdlab import plots

NAMES = ("cost $5 and $6", "$\\frac{", "犬", "🐶 dog", "ไทย", "a_b^c", "\\alpha", "100 % & #")


def drawn(names) -> bytes:
    figure = plots.class_matrix(np.eye(len(names)), list(names))
    return plots.png(figure)


@pytest.mark.parametrize("name", NAMES)
def test_any_name_can_be_drawn(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert drawn((name, "plain"))[:4] == b"\x89PNG"
        grid = plots.image_grid(np.zeros((2, 4, 4)), [name, "plain"])
        assert grid.axes[0].get_title() == name and plots.png(grid)


def test_dollars_are_seen():
    texts = plots.class_matrix(np.eye(2), ["$a$", "a"]).axes[0].get_xticklabels()
    assert [text.get_parse_math() for text in texts] == [False, False]
    assert drawn(("$a$", "b")) != drawn(("a", "b"))


def test_fonts_are_those_that_are_here():
    names = matplotlib.font_manager.get_font_names()
    family = plots.STYLE["font.family"]
    assert family[0] == "DejaVu Sans" and set(family) <= set(names)


def test_logarithmic_axes_keep_their_powers():
    own = matplotlib.rcParams["text.parse_math"]
    figure = plots.new_figure()
    with matplotlib.rc_context({"text.parse_math": False}):  # as within the house
        axis = figure.subplots()
        axis.plot([1, 10, 1000], [1, 2, 3], label="$x$")
        axis.set_xscale("log")
    plots.png(figure)
    labels = [t for t in axis.get_xticklabels() if "mathdefault" in t.get_text()]
    assert labels and all(label.get_parse_math() for label in labels)
    assert matplotlib.rcParams["text.parse_math"] is own is True
