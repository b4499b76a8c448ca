"""Figures: what is drawn equals what was given; the same bytes every time; alt texts."""

import base64
import io

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from kdlab import plots
from kdlab.metrics import mean_interval, reliability

STUDY = pd.DataFrame(
    [
        {"setting": name, "seed": seed, "test_accuracy": mean + 0.01 * seed}
        for name, mean in (("labels", 0.60), ("soft", 0.70), ("smooth", 0.65))
        for seed in range(4)
    ]
)
RNG = np.random.default_rng(0)
LOGITS, TARGETS = RNG.normal(size=(200, 5)), RNG.integers(0, 5, 200)


def every_figure() -> dict[str, Figure]:
    rng = np.random.default_rng(3)
    bars = plots.new_figure()
    plots.probability_bars(bars.subplots(), [0.7, 0.3], ["a", "b"])
    bars.set_label("Two bars.")
    return {
        "grid": plots.image_grid(rng.random((7, 8, 8)), list("abcdefg"), columns=5),
        "bars": bars,
        "curves": plots.curves({"a": [1, 2, 3], "b": rng.random((3, 4))}),
        "points": plots.interval_points(STUDY, "test_accuracy", baseline="labels", percent=True),
        "matrix": plots.class_matrix(np.eye(3), ["a", "b", "c"], hide_diagonal=True),
        "reliability": plots.reliability({"m": reliability(LOGITS, TARGETS)}),
    }


FIGURES, AGAIN = every_figure(), every_figure()


@pytest.mark.parametrize("name", FIGURES)
def test_png_has_the_size_of_the_figure_and_no_trace_of_version_or_date(name):
    data = plots.png(FIGURES[name])
    image = Image.open(io.BytesIO(data))
    width, height = FIGURES[name].get_size_inches() * 100
    assert image.size == (int(width), int(height))
    assert image.info.keys() <= {"dpi"}
    assert data == plots.png(AGAIN[name])
    assert np.asarray(image.convert("L")).std() > 1, "nothing is drawn"


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_is_cut_and_axis_names_do_not_touch_the_ticks(name):
    figure = AGAIN[name]
    figure.draw_without_rendering()
    width, height = figure.get_size_inches() * figure.dpi
    for axis in (axis for axis in figure.axes if axis.axison):
        for direction in (axis.xaxis, axis.yaxis):
            low, high = sorted(direction.get_view_interval())
            ticks = zip(direction.get_ticklocs(), direction.get_ticklabels(), strict=True)
            boxes = [
                label.get_window_extent()
                for tick, label in ticks
                if label.get_text() and low - 1e-9 <= tick <= high + 1e-9
            ]
            if direction.label.get_text():
                title = direction.label.get_window_extent()
                assert not any(title.overlaps(box) for box in boxes)
                boxes.append(title)
            for box in boxes:
                assert box.x0 >= -1 and box.y0 >= -1
                assert box.x1 <= width + 1 and box.y1 <= height + 1


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_an_alt_sentence(name):
    alt = plots.alt_text(FIGURES[name])
    assert alt.endswith(".") and len(alt) > 8


def test_png_restores_the_figure_and_takes_another_dpi():
    figure = plots.new_figure(2.0, 3.0)
    canvas = figure.canvas
    assert Image.open(io.BytesIO(plots.png(figure, dpi=50))).size == (150, 100)
    assert figure.dpi == 100 and figure.canvas is canvas


def test_the_readers_own_style_stays_as_it_was():
    before = dict(matplotlib.rcParams)
    every_figure()
    assert dict(matplotlib.rcParams) == before


def test_figures_look_the_same_under_another_style():
    def draw():
        return plots.png(plots.curves({"a": [1, 2, 3], "b": [2, 2, 1]}))

    plain = draw()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        styled = draw()
    # only what STYLE speaks of is fixed; the face colour of axes is the reader's
    with matplotlib.rc_context({"font.size": 30}):
        assert draw() == plain
    assert styled != plain


def test_show_outside_ipython_prints_the_sentence(capsys):
    plots.show(plots.new_figure(), "A white figure.")
    assert capsys.readouterr().out == "A white figure.\n"


def test_show_in_ipython_displays_picture_text_and_alt(monkeypatch):
    calls = []
    monkeypatch.setattr(plots.figures, "get_ipython", object)
    monkeypatch.setattr(plots.figures, "display", lambda data, **kw: calls.append((data, kw)))
    figure = FIGURES["curves"]
    plots.show(figure)
    ((data, options),) = calls
    assert data["text/plain"] == plots.alt_text(figure)
    assert base64.b64decode(data["image/png"]) == plots.png(figure, colors=128)
    assert options == {"raw": True, "metadata": {"image/png": {"alt": data["text/plain"]}}}


def test_show_refuses_a_figure_without_a_sentence():
    with pytest.raises(ValueError, match="alt is missing"):
        plots.show(plots.new_figure())


def test_palette_is_okabe_ito():
    assert len(set(plots.PALETTE)) == 8
    assert plots.PALETTE[:2] == ("#0072B2", "#E69F00")


def test_image_grid_draws_each_image_once_in_order():
    images = RNG.random((5, 4, 4, 3))
    figure = plots.image_grid(images, list("vwxyz"), columns=3)
    assert len(figure.axes) == 6
    drawn = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in drawn] == list("vwxyz")
    for axis, image in zip(drawn, images, strict=True):
        np.testing.assert_array_equal(axis.images[0].get_array(), image)
        assert axis.images[0].get_clim() == (0, 1)


@pytest.mark.parametrize(
    ("images", "titles", "match"),
    [
        (np.zeros((4, 4)), None, r"shape \(4, 4\)"),
        (np.zeros((0, 4, 4)), None, r"shape \(0, 4, 4\)"),
        (np.zeros((2, 4, 4)), ["one"], "titles has 1 entries; expected 2"),
    ],
)
def test_image_grid_refuses(images, titles, match):
    with pytest.raises(ValueError, match=match):
        plots.image_grid(images, titles)


def test_bars_have_the_given_heights_and_update_in_place():
    axis = plots.new_figure().subplots()
    bars = plots.probability_bars(axis, [0.6, 0.397, 0.003], ["a", "b", "c"], highlight=1)
    assert [bar.get_height() for bar in bars] == [0.6, 0.397, 0.003]
    assert [text.get_text() for text in axis.texts] == ["60%", "40%", ""]
    face = [matplotlib.colors.to_hex(bar.get_facecolor()).upper() for bar in bars]
    assert face == [plots.BLUE, plots.ORANGE, plots.BLUE]
    plots.update_bars(axis, bars, [0.1, 0.2, 0.7])
    assert [bar.get_height() for bar in bars] == [0.1, 0.2, 0.7]
    assert [text.get_text() for text in axis.texts] == ["10%", "20%", "70%"]
    assert [text.xy[1] for text in axis.texts] == [0.1, 0.2, 0.7]


def test_bars_slant_long_names_only():
    axis = plots.new_figure().subplots()
    for names, angle in ((["Q", "O"], 0), (["airplane", "cat"], 35)):
        plots.probability_bars(axis, [0.5, 0.5], names)
        assert {label.get_rotation() for label in axis.get_xticklabels()} == {angle}


def test_bars_refuse_another_number_of_names():
    with pytest.raises(ValueError, match="classes has 1 entries; expected 2"):
        plots.probability_bars(plots.new_figure().subplots(), [0.5, 0.5], ["a"])


def test_curves_take_frames_values_and_runs():
    frame = pd.DataFrame({"epoch": [1, 2, 3], "val_accuracy": [0.1, 0.5, 0.6]})
    runs = np.array([[0.0, 1.0], [1.0, 2.0]])
    axis = plots.curves({"frame": frame, "values": [3, 2, 1], "runs": runs}).axes[0]
    lines = {line.get_label(): line for line in axis.lines}
    np.testing.assert_array_equal(lines["frame"].get_ydata(), [0.1, 0.5, 0.6])
    np.testing.assert_array_equal(lines["values"].get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(lines["runs"].get_ydata(), [0.5, 1.5])
    assert len(axis.collections) == 1  # a band for the runs only
    assert axis.collections[0].get_datalim(axis.transData).bounds == (1, 0, 1, 2)
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("epoch", "val accuracy")


@pytest.mark.parametrize(
    ("series", "match"),
    [
        ({}, "series is empty"),
        ({"a": pd.DataFrame({"epoch": [1]})}, r"series\['a'\] lacks val_accuracy; it has epoch"),
        ({"a": np.zeros((1, 1, 1))}, r"shape \(1, 1, 1\)"),
    ],
)
def test_curves_refuse(series, match):
    with pytest.raises(ValueError, match=match):
        plots.curves(series)


def test_interval_table_equals_the_metric_per_setting():
    table = plots.interval_table(STUDY, "test_accuracy")
    assert list(table.index) == ["labels", "soft", "smooth"]
    for name, group in STUDY.groupby("setting"):
        interval = mean_interval(group["test_accuracy"])
        assert tuple(table.loc[name]) == (interval.mean, interval.low, interval.high, 4)


def test_interval_points_sorts_and_draws_means_intervals_seeds_and_baseline():
    axis = plots.interval_points(STUDY, "test_accuracy", baseline="labels").axes[0]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["labels", "smooth", "soft"]
    table = plots.interval_table(STUDY, "test_accuracy")
    baseline, *rest = axis.lines
    assert list(baseline.get_xdata()) == [table.loc["labels", "mean"]] * 2
    for row, name in enumerate(["labels", "smooth", "soft"]):
        seeds, interval, mean = rest[3 * row : 3 * row + 3]
        own = STUDY[STUDY["setting"] == name]["test_accuracy"]
        np.testing.assert_array_equal(seeds.get_xdata(), own)
        np.testing.assert_array_equal(interval.get_xdata(), table.loc[name, ["low", "high"]])
        assert mean.get_xdata()[0] == table.loc[name, "mean"]
    down = plots.interval_points(STUDY, "test_accuracy", ascending=False).axes[0]
    assert [t.get_text() for t in down.get_yticklabels()] == ["soft", "smooth", "labels"]


def test_interval_points_with_one_seed_draws_the_mean_without_an_interval():
    figure = plots.interval_points(STUDY[STUDY["seed"] == 0], "test_accuracy")
    assert len(plots.png(figure)) > 1000


@pytest.mark.parametrize(
    ("frame", "options", "match"),
    [
        (STUDY, {"metric": "nll"}, "metric='nll' is no column of the frame; it has setting"),
        (STUDY, {"metric": "seed", "by": "x"}, "by='x' is no column"),
        (STUDY, {"metric": "seed", "baseline": "hard"}, "baseline='hard' is no setting; known"),
        (STUDY[:0], {"metric": "seed"}, "frame has no rows"),
    ],
)
def test_interval_points_refuse(frame, options, match):
    with pytest.raises(ValueError, match=match):
        plots.interval_points(frame, **options)


def test_class_matrix_hides_the_diagonal_and_leaves_its_argument_alone():
    matrix = np.array([[0.9, 0.1], [0.3, 0.7]])
    image = plots.class_matrix(matrix, ["a", "b"], hide_diagonal=True).axes[0].images[0]
    assert image.get_array().mask.tolist() == [[True, False], [False, True]]
    assert image.get_clim() == (0, 0.3)
    assert matrix[0, 0] == 0.9
    with pytest.raises(ValueError, match=r"shape \(1, 2\); expected \[C, C\]"):
        plots.class_matrix(matrix[:1], ["a", "b"])
    with pytest.raises(ValueError, match="classes has 1"):
        plots.class_matrix(matrix, ["a"])


def test_reliability_leaves_nearly_empty_bins_out_and_sizes_dots_by_samples():
    table = reliability(LOGITS, TARGETS)
    axis = plots.reliability({"model": table}).axes[0]
    filled = table.count >= plots.charts.FEWEST
    assert 0 < filled.sum() < len(filled)
    points = axis.collections[0]
    np.testing.assert_allclose(
        points.get_offsets(), np.stack([table.confidence[filled], table.accuracy[filled]], 1)
    )
    assert points.get_sizes().argmax() == table.count[filled].argmax()
    with pytest.raises(ValueError, match="tables is empty"):
        plots.reliability({})
