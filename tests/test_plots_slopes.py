"""Figures of lesson 03: slopes over images, and comparisons over a column of numbers."""

import numpy as np
import pandas as pd
import pytest

from kdlab import plots
from kdlab.metrics import mean_interval

RNG = np.random.default_rng(0)
IMAGES = RNG.random((3, 9, 9))
SLOPES = {"teacher": RNG.normal(size=(3, 1, 9, 9)), "student": RNG.normal(size=(3, 1, 9, 9))}
RUNS = pd.DataFrame(
    [
        {"setting": name, "images": images, "seed": seed, "score": start + seed + images / 100}
        for name, start in (("one", 0.0), ("other", 5.0))
        for images in (1000, 100, 300)
        for seed in range(4)
    ]
)


def drawn(figure):
    """The slopes on the paper, [row, image, h, w], and their common scale."""
    rows = [
        axis for axis in figure.axes if axis.images and axis.images[0].get_cmap().name != "gray"
    ]
    images = [axis.images[0] for axis in rows]
    scales = {image.get_clim() for image in images}
    return np.array([np.asarray(image.get_array()) for image in images]), scales


def test_slopes_are_drawn_as_directions_on_one_scale_that_is_even_around_zero():
    shown, scales = drawn(plots.slopes_over_images(IMAGES, SLOPES, list("abc")))
    given = np.concatenate([SLOPES["teacher"], SLOPES["student"]])[:, 0]
    lengths = np.sqrt((given**2).sum(axis=(1, 2), keepdims=True))
    assert np.allclose(shown, given / lengths)
    ((low, high),) = scales
    assert low == -high and 0 < high <= np.abs(given / lengths).max()


def test_the_length_of_a_slope_does_not_matter_and_zero_stays_zero():
    one = drawn(plots.slopes_over_images(IMAGES, {"s": SLOPES["student"]}))[0]
    tenfold = drawn(plots.slopes_over_images(IMAGES, {"s": 10 * SLOPES["student"]}))[0]
    assert np.allclose(one, tenfold)
    nothing, _ = drawn(plots.slopes_over_images(IMAGES, {"s": np.zeros((3, 1, 9, 9))}))
    assert (nothing == 0).all()


def test_channels_are_added_up_over_a_colour_image():
    colour, slopes = RNG.random((2, 9, 9, 3)), RNG.normal(size=(2, 3, 9, 9))
    shown, _ = drawn(plots.slopes_over_images(colour, {"s": slopes}))
    added = slopes.sum(axis=1)
    assert np.allclose(shown, added / np.sqrt((added**2).sum(axis=(1, 2), keepdims=True)))


def test_names_titles_and_the_sentence():
    figure = plots.slopes_over_images(IMAGES, SLOPES, list("abc"))
    texts = {text.get_text() for axis in figure.axes for text in axis.texts}
    assert texts == {"image", "teacher", "student"}
    assert [axis.get_title() for axis in figure.axes[:3]] == list("abc")
    assert plots.alt_text(figure).startswith("3 images, and below each the slopes of teacher, stu")


def test_a_flat_image_has_no_contour_and_no_warning():
    plots.png(plots.slopes_over_images(np.ones((1, 9, 9)), {"s": SLOPES["student"][:1]}))


@pytest.mark.parametrize(
    ("images", "slopes", "titles", "match"),
    [
        (IMAGES[0, 0], SLOPES, None, "images has shape"),
        (IMAGES, {}, None, "slopes is empty"),
        (IMAGES, {"s": SLOPES["student"][:, 0]}, None, "slopes of 's' have shape"),
        (IMAGES, {"s": SLOPES["student"][:2]}, None, r"expected \[3, c, 9, 9\]"),
        (IMAGES, SLOPES, ["a"], "titles has 1 entries"),
    ],
)
def test_slopes_refuse(images, slopes, titles, match):
    with pytest.raises(ValueError, match=match):
        plots.slopes_over_images(images, slopes, titles)


@pytest.mark.parametrize("log", [False, True])
def test_interval_curves_draw_means_and_intervals_at_their_places(log):
    figure = plots.interval_curves(RUNS, "score", x="images", log=log, levels={"other": 3.0})
    (axis,) = figure.axes
    assert axis.get_xscale() == ("log" if log else "linear")
    assert [text.get_text() for text in axis.get_xticklabels()] == ["100", "300", "1000"]
    for (line, _, (bars,)), name in zip(axis.containers, ("one", "other"), strict=True):
        for place, at, mean, bar in zip(
            (100, 300, 1000), *line.get_data(), bars.get_segments(), strict=True
        ):
            rows = RUNS[(RUNS["setting"] == name) & (RUNS["images"] == place)]
            expected = mean_interval(rows["score"].to_numpy())
            assert at == pytest.approx(place, abs=0.03 * 900)
            assert mean == pytest.approx(expected.mean)
            assert bar[:, 1] == pytest.approx([expected.low, expected.high])
    (level,) = [line for line in axis.lines if line.get_linestyle() == "--"]
    assert set(level.get_ydata()) == {3.0}
    assert level.get_color() == axis.containers[1][0].get_color()


def test_interval_curves_stand_beside_one_another():
    (axis,) = plots.interval_curves(RUNS, "score", x="images", log=True).axes
    first, second = (container[0].get_xdata() for container in axis.containers)
    assert (first < second).all()


def test_interval_curves_say_what_they_show():
    figure = plots.interval_curves(
        RUNS, "score", x="images", percent=True, label="accuracy", xlabel="training images"
    )
    assert plots.alt_text(figure) == (
        "Accuracy over training images, mean and 95 % interval: one, other."
    )
    assert figure.axes[0].yaxis.get_major_formatter()(0.5) == "50%"


def test_interval_curves_refuse_an_unknown_column():
    with pytest.raises(ValueError, match="no column"):
        plots.interval_curves(RUNS, "height", x="images")
