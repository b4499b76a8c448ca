"""The figure of a swept parameter: what it draws is what was computed."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdlab import plots
from kdlab.words import short


def frame(**columns):
    return pd.DataFrame({"loss": [1.0, 2.0, 6.0, 4.0, 4.0], **columns})


def bars_and_means(figure):
    lines = [line for line in figure.axes[0].lines if len(line.get_ydata())]
    means = [list(line.get_ydata()) for line in lines if line.get_marker() == "o"]
    return [list(line.get_ydata()) for line in lines if line.get_marker() != "o"], means


def ticks(figure):
    return [label.get_text() for label in figure.axes[0].get_xticklabels()]


def test_means_and_intervals_stand_in_order():
    figure = plots.swept_points(frame(t=[10.0, 10.0, 10.0, 2.0, 2.0]), "loss", x="t")
    bars, means = bars_and_means(figure)
    reach = stats.t.ppf(0.975, 2) * np.std([1, 2, 6], ddof=1) / np.sqrt(3)
    assert ticks(figure) == ["2", "10"] and means == [[4.0, 3.0]]
    assert bars[0] == pytest.approx([4, 4]) and bars[1] == pytest.approx([3 - reach, 3 + reach])
    assert figure.axes[0].get_xlabel() == "t" and not figure.legends
    assert plots.alt_text(figure) == "Loss over t, mean and 95 % interval."


def test_lines_by_a_column_and_values_that_are_missing_or_texts():
    values = [None, 5.0, None, 5.0, 0.5]
    runs = frame(limit=values, how=["a", "a", "b", "b", "b"])
    figure = plots.swept_points(runs, "loss", x="limit", by="how", label="the loss")
    assert ticks(figure) == ["0.5", "5", "none"]
    _, means = bars_and_means(figure)
    assert means[0] == pytest.approx([np.nan, 2, 1], nan_ok=True) and means[1] == [4, 4, 6]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert figure.axes[0].get_ylabel() == "the loss" and figure.axes[0].get_legend() is None
    words = plots.swept_points(frame(data=["b", "a", "b", "a", "a"]), "loss", x="data")
    assert ticks(words) == ["a", "b"]
    assert [plot.axes[0].lines[0].get_linestyle() for plot in (words, figure)] == ["None", "-"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"metric": "lass"}, "metric='lass' is no column of the frame; it has loss, t"),
        ({"x": "T"}, "x='T' is no column"),
        ({"by": "how"}, "by='how' is no column"),
        ({"metric": "none"}, "metric='none': no row of the frame has a number"),
        ({"by": "many"}, "by='many' names 9 lines; expected at most 8"),
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
