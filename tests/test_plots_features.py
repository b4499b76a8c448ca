"""Figures of lesson 02: what is drawn equals what was given; ink is legible; scales are shared."""

import io

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from kdlab import plots
from kdlab.plots import features

RNG = np.random.default_rng(0)
TABLE = pd.DataFrame(
    [[0.1, 0.95, -0.001], [0.5, np.nan, 0.7]], index=["one", "two"], columns=["a", "b", "c"]
)
IMAGES = RNG.random((5, 12, 12))
MAPS = {"teacher": RNG.random((5, 6, 6)), "a student with a name": 3 * RNG.random((5, 3, 3))}
LABELS = np.array([2, 0, 2, 1, 0, 0])
MATRICES = {name: RNG.random((6, 6)) for name in ("teacher", "before", "after")}


FIGURES = {
    "heat": lambda: plots.heat_map(TABLE, row="one", xlabel="x", ylabel="y", title="CKA"),
    "long names": lambda: plots.heat_map(
        pd.DataFrame(RNG.random((12, 2)), index=[f"a long method {i}" for i in range(12)])
    ),
    "maps": lambda: plots.maps_over_images(IMAGES, MAPS, list("abcde")),
    "one map": lambda: plots.maps_over_images(IMAGES[:1], {"t": np.ones((1, 4, 4))}),
    "matrices": lambda: plots.similarity_matrices(MATRICES, LABELS, ["cat", "dog", "bird"]),
    "five": lambda: plots.similarity_matrices({str(i): np.eye(6) for i in range(5)}, LABELS),
}


@pytest.mark.parametrize("name", FIGURES)
def test_png_alt_text_and_nothing_cut(name):
    style = dict(matplotlib.rcParams)
    figure = FIGURES[name]()
    assert dict(matplotlib.rcParams) == style, "the reader's own style stays as it was"
    width, height = figure.get_size_inches() * 100
    picture = Image.open(io.BytesIO(plots.png(figure)))
    assert abs(picture.size[1] - height) < 1 and picture.size[0] == round(width) <= 700
    assert plots.alt_text(figure).endswith(".")
    light = np.asarray(picture.convert("L"))
    for edge in (light[0], light[-1], light[:, 0], light[:, -1]):
        assert (edge > 250).all(), "something reaches the edge, so it may be cut"


@pytest.mark.parametrize("name", ["heat", "maps", "matrices"])
def test_figures_are_the_same_bytes_every_time(name):
    assert plots.png(FIGURES[name]()) == plots.png(FIGURES[name]())


def contrast(first, second):
    """WCAG 2.1: (lighter + 0.05) / (darker + 0.05) of relative luminances."""
    values = []
    for color in (first, second):
        c = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in color[:3]]
        values.append(0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2] + 0.05)
    return max(values) / min(values)


def test_ink_stands_out_on_every_colour():
    for value in np.linspace(0, 1, 50):
        for colors in (matplotlib.colormaps[features.HEAT], matplotlib.colormaps["gray"]):
            background = colors(value)
            ink = matplotlib.colors.to_rgb(features.ink(background))
            assert contrast(ink, background) >= 4.5


def test_every_number_of_a_heat_map_is_legible():
    axis = plots.heat_map(pd.DataFrame([np.linspace(0, 1, 8)])).axes[0]
    for text in axis.texts:
        background = axis.images[0].to_rgba(float(text.get_text()))
        assert contrast(matplotlib.colors.to_rgb(text.get_color()), background) >= 4.4


def test_heat_map_prints_each_number_in_its_cell():
    axis = plots.heat_map(TABLE).axes[0]
    printed = {text.get_position(): text.get_text() for text in axis.texts}
    assert printed == {
        (0, 0): "0.10", (1, 0): "0.95", (2, 0): "0.00",
        (0, 1): "0.50", (1, 1): "–", (2, 1): "0.70",
    }  # fmt: skip
    np.testing.assert_array_equal(axis.images[0].get_array().filled(np.nan), TABLE)
    assert [t.get_text() for t in axis.get_xticklabels()] == ["a", "b", "c"]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["one", "two"]
    top, bottom = axis.get_ylim()[::-1]
    assert top < bottom, "the first row is on top, as in the printed table"
    percent = plots.heat_map(TABLE, form="{:.0%}").axes[0]
    assert percent.texts[1].get_text() == "95%"


def test_heat_map_scale_is_the_tables_own_or_the_given_one():
    assert plots.heat_map(TABLE).axes[0].images[0].get_clim() == (-0.001, 0.95)
    assert plots.heat_map(TABLE, low=0, high=1).axes[0].images[0].get_clim() == (0, 1)


def frames(axis):
    return [patch.get_bbox().bounds for patch in axis.patches]


def test_heat_map_frames_a_row_and_a_cell():
    assert frames(plots.heat_map(TABLE).axes[0]) == []
    axis = plots.heat_map(TABLE, row="two", cell=("one", "c")).axes[0]
    assert frames(axis) == [(-0.5, 0.5, 3, 1), (1.5, -0.5, 1, 1)]
    assert {to_hex(patch.get_edgecolor()).upper() for patch in axis.patches} == {plots.VERMILION}
    bold = [text.get_text() for text in axis.texts if text.get_fontweight() == "bold"]
    assert bold == ["0.00"]


@pytest.mark.parametrize(
    ("table", "options", "match"),
    [
        (TABLE[:0], {}, r"table has shape \(0, 3\)"),
        (TABLE.astype(str), {}, "expected numbers"),
        (TABLE, {"row": "tow"}, "unknown row 'tow' .did you mean 'two'.*known: one, two"),
        (TABLE, {"cell": ("one", "z")}, "unknown column 'z'; known: a, b, c"),
        (TABLE, {"cell": ("a", "a")}, "unknown row 'a'"),
    ],
)
def test_heat_map_refuses(table, options, match):
    with pytest.raises(ValueError, match=match):
        plots.heat_map(table, **options)


def test_maps_lie_over_their_images_row_by_row():
    figure = plots.maps_over_images(IMAGES, MAPS, list("abcde"))
    *panels, _ = figure.axes
    assert len(panels) == 15
    for column, image in enumerate(IMAGES):
        np.testing.assert_array_equal(panels[column].images[0].get_array(), image)
        assert panels[column].get_title() == "abcde"[column]
        for row, given in enumerate(MAPS.values(), start=1):
            under, over = panels[5 * row + column].images
            np.testing.assert_array_equal(under.get_array(), image)
            share = given[column] / given[column].mean()
            np.testing.assert_allclose(over.get_array(), share)
            assert over.get_extent() == list(under.get_extent()) == [-0.5, 11.5, 11.5, -0.5]
    assert [text.get_text() for text in figure.texts] == ["image", *MAPS]
    rows = np.array([axis.get_position().bounds for axis in panels]).reshape(3, 5, 4)
    assert (np.diff(rows[..., 1], axis=0) < 0).all() and (np.diff(rows[..., 0], axis=1) > 0).all()


def test_all_maps_share_one_scale_and_the_bar_shows_it():
    figure = plots.maps_over_images(IMAGES, MAPS)
    *panels, bar = figure.axes
    shares = np.concatenate([(m / m.mean((1, 2), keepdims=True)).ravel() for m in MAPS.values()])
    top = np.percentile(shares, 99.5)
    limits = {axis.images[1].get_clim() for axis in panels if len(axis.images) > 1}
    assert limits == {(0, top)}
    assert bar.get_ylim() == pytest.approx((0, top))
    figure.draw_without_rendering()
    assert bar.get_yticklabels()[0].get_text() == "0×"


def test_strength_and_size_of_a_map_do_not_matter():
    """A flat map is 1 everywhere, whatever its values and its size."""
    for flat in (np.full((2, 3, 3), 7.0), np.full((2, 5, 2), 1e-9)):
        np.testing.assert_allclose(plots.relative_maps("x", flat, 2), 1)
    dead = plots.relative_maps("x", np.zeros((2, 3, 3)), 2)
    assert (dead == 0).all()
    assert plots.scale_top([dead]) == 1


def test_the_overlays_lightness_rises_evenly_and_nothing_covers_a_zero():
    clear, solid = features._glow(), features._glow(ground=0.0)
    assert clear(0.0)[3] == 0 and 0.8 < clear(1.0)[3] < 1
    opacity = [clear(v)[3] for v in np.linspace(0, 1, 30)]
    assert (np.diff(opacity) > 0).all()
    lightness = [solid(v)[:3] @ np.array([0.2126, 0.7152, 0.0722]) for v in np.linspace(0, 1, 30)]
    assert (np.diff(lightness) > 0).all()


def drawn(share):
    """The colours [n, 3] of a map over a black picture."""
    figure = plots.new_figure(1.0, 1.0)
    figure.set_layout_engine("none")
    plots.draw_map(figure.add_axes((0, 0, 1, 1)), np.zeros((8, 8)), np.asarray(share), 3.0)
    colors = np.asarray(Image.open(io.BytesIO(plots.png(figure)))).astype(int)
    return np.unique(colors.reshape(-1, 3), axis=0)


def test_enlarging_adds_no_value_beyond_the_maps_own():
    """A flat map is one colour, edges included; a step stays between the colours of its sides."""
    low, high = (drawn(np.full((3, 3), value)) for value in (1.0, 2.0))
    assert len(low) == len(high) == 1
    step = drawn([[1.0, 1.0, 2.0, 2.0]] * 4)
    assert len(step) > 10, "it is smooth"
    brightness = step.sum(1)
    assert brightness.min() >= low.sum() - 1 and brightness.max() <= high.sum() + 1


def test_colour_images_lie_below_in_grey():
    image = RNG.random((4, 4, 3))
    np.testing.assert_allclose(
        plots.grey(image), 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]
    )
    np.testing.assert_array_equal(plots.grey(IMAGES[0]), IMAGES[0])
    figure = plots.maps_over_images(np.stack([image] * 2), {"t": np.ones((2, 3, 3))})
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), image)
    assert figure.axes[2].images[0].get_array().shape == (4, 4)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"images": IMAGES[0]}, r"images has shape \(12, 12\)"),
        ({"maps": {}}, "maps is empty"),
        ({"titles": ["a"]}, "titles has 1 entries; expected 5"),
        ({"maps": {"t": MAPS["teacher"][:4]}}, r"maps of 't' have shape \(4, 6, 6\); expected \[5"),
        ({"maps": {"t": np.ones((5, 36))}}, r"maps of 't' have shape \(5, 36\)"),
        ({"maps": {"t": -MAPS["teacher"]}}, "maps of 't' hold negative.*mean of the squares"),
        ({"maps": {"t": MAPS["teacher"] * np.nan}}, "maps of 't' hold negative, NaN"),
    ],
)  # fmt: skip
def test_maps_refuse(change, match):
    with pytest.raises(ValueError, match=match):
        plots.maps_over_images(**{"images": IMAGES, "maps": MAPS, **change})


def test_similarity_matrices_are_sorted_by_class_on_one_scale():
    figure = plots.similarity_matrices(MATRICES, LABELS, ["cat", "dog", "bird"])
    *panels, _ = figure.axes
    order = [1, 4, 5, 3, 0, 2]
    off = ~np.eye(6, dtype=bool)
    high = np.percentile([m[off] for m in MATRICES.values()], 99)
    for axis, (name, matrix) in zip(panels, MATRICES.items(), strict=True):
        assert axis.get_title() == name
        np.testing.assert_array_equal(axis.images[0].get_array(), matrix[order][:, order])
        assert axis.images[0].get_clim() == (0, high)
        assert [t.get_text() for t in axis.get_xticklabels()] == ["cat", "dog", "bird"]
        assert list(axis.get_xticks()) == [1, 3, 4.5]
        for lines, side in zip(axis.collections, (1, 0), strict=True):
            assert [segment[0, side] for segment in lines.get_segments()] == [2.5, 3.5]
    assert [t.get_text() for t in panels[0].get_yticklabels()] == ["cat", "dog", "bird"]
    assert [t.get_text() for t in panels[1].get_yticklabels()] == ["", "", ""]


def test_samples_of_a_class_stay_in_their_order():
    labels = np.arange(60) % 2
    rows = np.repeat(np.arange(60.0)[:, None], 60, axis=1)
    axis = plots.similarity_matrices({"m": rows}, labels).axes[0]
    shown = axis.images[0].get_array()[:, 0]
    assert list(shown) == [*range(0, 60, 2), *range(1, 60, 2)]


def test_similarities_may_be_negative_and_the_diagonal_does_not_set_the_scale():
    matrix = np.full((6, 6), -0.5)
    matrix[0, 1:] = 0.25
    np.fill_diagonal(matrix, 100)
    axis = plots.similarity_matrices({"m": matrix}, LABELS).axes[0]
    assert axis.images[0].get_clim() == (-0.5, 0.25)
    assert [t.get_text() for t in axis.get_xticklabels()] == ["0", "1", "2"]


def test_many_classes_have_no_names_and_many_models_several_rows():
    labels = np.arange(30)
    figure = plots.similarity_matrices({str(i): np.eye(30) for i in range(5)}, labels)
    assert len([axis for axis in figure.axes if axis.images]) == 5
    first, *_, fifth = (axis for axis in figure.axes if axis.images)
    assert first.images[0].get_clim() == fifth.images[0].get_clim() == (0, 1)
    assert {t.get_text() for t in first.get_xticklabels()} == {""}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"matrices": {}}, "matrices is empty"),
        ({"matrices": {"m": np.eye(5)}}, r"matrices\['m'\] has shape \(5, 5\); expected \(6, 6\)"),
        ({"matrices": {"m": np.full((6, 6), np.nan)}}, "finite"),
        ({"labels": LABELS / 2}, "labels: float64"),
        ({"labels": LABELS[:1]}, "at least two"),
        ({"labels": LABELS - 1}, "labels: from -1 to 1; expected at least 0"),
        ({"classes": ["a", "b"]}, "labels: from 0 to 2; expected 0 to 1"),
    ],
)
def test_similarity_matrices_refuse(change, match):
    with pytest.raises(ValueError, match=match):
        plots.similarity_matrices(**{"matrices": MATRICES, "labels": LABELS, **change})
