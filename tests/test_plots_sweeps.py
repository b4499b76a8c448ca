"""The figure of a swept parameter: what it draws is what was computed."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdlab import plots
from kdlab.words import short


def frame(**columns):
    return pd.DataFrame({"loss": [1.0, 2.0, 6.0, 4.0, 4.0], **columns})


def bars_and_means(figure, panel=0):
    """(lower and upper end of the bars of each line, (places, heights) of its means)."""
    lines = figure.axes[panel].containers
    bars = [[[y for _, y in bar] for bar in line.lines[2][0].get_segments()] for line in lines]
    means = [line.lines[0].get_data() for line in lines]
    return bars, [(list(places), list(heights)) for places, heights in means]


def ticks(figure, panel=0):
    axis = figure.axes[panel]
    texts = [label.get_text() for label in axis.get_xticklabels()]
    return dict(zip(texts, axis.get_xticks(), strict=True))


def legends(figure):
    """The names of each legend, first the figure's own."""
    there = [*figure.legends, *(axis.get_legend() for axis in figure.axes)]
    return [[text.get_text() for text in legend.get_texts()] for legend in there if legend]


def test_means_and_intervals_stand_where_their_numbers_are():
    figure = plots.swept_points(frame(t=[10.0, 10.0, 10.0, 2.0, 2.0]), "loss", x="t")
    bars, means = bars_and_means(figure)
    reach = stats.t.ppf(0.975, 2) * np.std([1, 2, 6], ddof=1) / np.sqrt(3)
    assert ticks(figure) == {"2": 2, "10": 10} and means == [([2, 10], [4.0, 3.0])]
    (axis,) = figure.axes
    assert axis.get_xscale() == "linear" and axis.get_ylim()[0] < 3 - reach
    assert bars[0][0] == pytest.approx([4, 4])
    assert bars[0][1] == pytest.approx([3 - reach, 3 + reach])
    assert axis.get_xlabel() == "t" and not legends(figure)
    assert plots.alt_text(figure) == "Loss over t, mean and 95 % interval."


def test_an_axis_of_wide_numbers_is_logarithmic_and_its_labels_do_not_touch():
    for values, scale, labels in [
        ([1, 2, 4, 10, 20], "linear", ["1", "4", "10", "20"]),
        ([1, 2, 4, 10, 20.5], "log", ["1", "2", "4", "10", "20.5"]),
        ([0, 1, 10, 100, 1000], "linear", ["0", "100", "1000"]),
        ([-1, 1, 10, 100, 1000], "linear", ["-1", "100", "1000"]),
    ]:
        figure = plots.swept_points(frame(t=values), "loss", x="t")
        assert figure.axes[0].get_xscale() == scale and list(ticks(figure)) == labels
        assert bars_and_means(figure)[1][0][0] == values
        assert plots.alt_text(figure) == "Loss over t.", "one number has no interval"


@pytest.mark.parametrize(("values", "apart"), [([1, 2, 4], 1), ([1, 2, 40], np.log(2))])
def test_lines_are_moved_by_little(values, apart):
    runs = frame(t=[*values, 1, 2], how=["a"] * 3 + ["b"] * 2)
    (a, _), (b, _) = bars_and_means(plots.swept_points(runs, "loss", x="t", by="how"))[1]
    move = np.log if max(values) > 20 else np.asarray
    for places, exact in ((a, values), (b, values[:2])):
        moved = np.abs(move(places) - move(exact))
        assert np.all(moved > 0) and np.all(moved <= 0.03 * apart + 1e-12)


def test_lines_by_a_column_and_values_that_are_missing_or_texts():
    values = [None, 5.0, None, 5.0, 0.5]
    runs = frame(limit=values, how=["a", "a", "b", "b", "b"])
    figure = plots.swept_points(runs, "loss", x="limit", by="how", label="the loss")
    assert list(ticks(figure)) == ["0.5", "5", "none"] and ticks(figure)["none"] > 5.5
    _, means = bars_and_means(figure)
    assert [heights for _, heights in means] == [[2, 1], [4, 4, 6]]
    assert legends(figure) == [["a", "b"]] and figure.axes[0].get_ylabel() == "the loss"
    words = plots.swept_points(frame(data=["b", "a", "b", "a", "a"]), "loss", x="data")
    truths = plots.swept_points(frame(shuffle=[True, False] * 2 + [True]), "loss", x="shuffle")
    assert list(ticks(words)) == ["a", "b"] and list(ticks(truths)) == ["False", "True"]
    assert words.axes[0].get_xlim() == (-0.5, 1.5), "texts have room on both sides"
    styles = [plot.axes[0].lines[0].get_linestyle() for plot in (words, truths, figure)]
    assert styles == ["None", "None", "-"]


@pytest.mark.parametrize(("scale", "limited"), [(1.0, True), (1.2, False)])
def test_the_axis_of_a_share_ends_where_shares_end(scale, limited):
    runs = pd.DataFrame({"share": [0.1 * scale, 0.9 * scale], "t": 1.0})
    figure = plots.swept_points(runs, "share", x="t")
    assert bars_and_means(figure)[0][0][0][1] > 1.2, "the interval itself stays what it is"
    assert (figure.axes[0].get_ylim() == (0, 1)) == limited
    near = plots.swept_points(pd.DataFrame({"share": [0.8, 0.9], "t": [1, 2]}), "share", x="t")
    assert near.axes[0].get_ylim()[0] > 0.7, "an axis is not made longer than it needs to be"


def test_panels_have_the_same_axes_and_colours():
    runs = frame(t=[1, 2, 1, 2, 2], how=["a", "a", "b", "b", "b"], width=[8, 8, 8, 8, 16])
    figure = plots.swept_points(runs, "loss", x="t", by="how", panels="width", title="All.")
    first, second = figure.axes
    assert [axis.get_title(loc="left") for axis in (first, second)] == ["8", "16"]
    assert first.get_ylim() == second.get_ylim() and first.get_xlim() == second.get_xlim()
    assert legends(figure) == [["a", "b"]] and figure.get_suptitle() == "All."
    colours = [[line.lines[0].get_color() for line in axis.containers] for axis in (first, second)]
    assert colours[0] == colours[1] and len(set(colours[0])) == 2
    assert [heights for _, heights in bars_and_means(figure, 1)[1]] == [[], [4.0]]
    assert plots.alt_text(figure) == "Loss over t: a, b; panels: 8, 16. All."


@pytest.mark.parametrize("length", [1, 14, 40, 90])
def test_a_legend_stays_within_the_figure(length):
    names = [f"{number}" * length for number in range(6)]
    runs = pd.DataFrame({"loss": range(6), "t": 1.0, "how": names})
    figure = plots.swept_points(runs, "loss", x="t", by="how")
    plots.png(figure)
    box = figure.legends[0].get_window_extent()
    assert length == 90 or box.x1 <= figure.bbox.x1
    assert figure.axes[0].get_window_extent().height > 60, "the lines keep their room"


def test_panels_of_lines_of_their_own_name_them_each():
    runs = pd.DataFrame({"loss": range(20), "t": [1, 2] * 10})
    runs["how"] = [f"way {number // 2}" for number in range(20)]
    runs["part"] = [number // 8 for number in range(20)]
    figure = plots.swept_points(runs, "loss", x="t", by="how", panels="part")
    names = [f"way {number}" for number in range(10)]
    assert legends(figure) == [names[:4], names[4:8], names[8:]]
    assert [axis.get_visible() for axis in figure.axes] == [True, True, True, False]
    assert bars_and_means(figure, 2)[1][1][1] == [18, 19]
    assert plots.alt_text(figure) == f"Loss over t: {', '.join(names)}."


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"metric": "lass"}, "metric='lass' is no column of the frame; it has loss, t"),
        ({"x": "T"}, "x='T' is no column"),
        ({"by": "how"}, "by='how' is no column"),
        ({"metric": "none"}, "metric='none': no row of the frame has a number"),
        ({"by": "many"}, "by='many' names 9 lines; expected at most 8"),
        ({"panels": "where"}, "panels='where' is no column"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, complaint):
    wide = pd.DataFrame({"loss": range(9), "t": 1.0, "none": np.nan, "many": range(9)})
    with pytest.raises(ValueError) as error:
        plots.swept_points(wide, **{"metric": "loss", "x": "t", **options})
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("value", "text"), [(4.0, "4"), (0.5, "0.5"), (7, "7"), (None, "none"), (float("nan"), "none")]
)
def test_values_in_short(value, text):
    assert short(value) == text
