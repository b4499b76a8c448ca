"""The compression explorer: what it looks up, what it draws, and what it recomputes."""

import math
from itertools import pairwise, product

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from kdlab import plots
from kdlab.explorers import CompressionExplorer
from kdlab.metrics import mean_interval

SHARES, BITS, WAYS = (0.0, 0.5, 0.625, 0.9), (2, 4, 32), ("labels", "no", "distilled")
GAIN = {"no": 0.0, "labels": 0.1, "distilled": 0.15}


def accuracy(kind, share, bits, way, seed):
    loss = share * (1.0 if kind == "channels" else 0.7) - GAIN[way] * share
    return 0.9 - 0.7 * loss - (0.3 / bits if bits < 32 else 0) + 0.01 * seed * (1 + share)


def table(seeds=3):
    rows = [
        {
            "kind": kind, "share": share, "bits": bits, "recovered": way, "seed": seed,
            "accuracy": accuracy(kind, share, bits, way, seed), "val_accuracy": 0.5,
            "parameters": 1000 if kind == "weights" else round(1000 * (1 - share) ** 2),
            "nonzero": round(1000 * (1 - share)) if kind == "weights" else
            round(1000 * (1 - share) ** 2),
        }
        for kind, share, bits, way, seed in product(
            ("weights", "channels"), SHARES, BITS, WAYS, range(seeds)
        )
    ]  # fmt: skip
    return pd.DataFrame(rows)


class Counting:
    """A recomputation that remembers what it was asked."""

    def __init__(self, answer=0.4321):
        self.asked, self.answer = [], answer

    def __call__(self, **setting):
        self.asked.append(setting)
        return self.answer


@pytest.fixture
def explorer():
    return CompressionExplorer(table(), goal="Find it.")


PLACE = {"kind": "channels", "share": 0.5, "bits": 4, "recovered": "distilled"}


def test_the_setting_is_looked_up(explorer):
    result = explorer.set(**PLACE)
    values = [accuracy("channels", 0.5, 4, "distilled", seed) for seed in range(3)]
    assert result.accuracies == pytest.approx(values)
    wanted = mean_interval(values)
    assert (result.interval.low, result.interval.high) == pytest.approx((wanted.low, wanted.high))
    assert (result.parameters, result.nonzero, result.recomputed) == (250, 250, None)
    assert result.bytes == 250 * 4 / 8


def test_the_loss_is_paired_with_the_same_seeds_whole():
    runs = table()
    # training on alone changes the whole model too, which is not what is compared with
    runs.loc[(runs["share"] == 0) & (runs["recovered"] != "no"), "accuracy"] += 0.05
    shuffled = CompressionExplorer(runs.sample(frac=1, random_state=2))
    change = shuffled.set(**PLACE).change
    whole = [accuracy("channels", 0.0, 32, "no", seed) for seed in range(3)]
    each = [accuracy("channels", 0.5, 4, "distilled", s) - whole[s] for s in range(3)]
    wanted = mean_interval(each)
    assert (change.mean, change.low) == pytest.approx((wanted.mean, wanted.low))


def test_readout(explorer):
    assert repr(explorer) == (
        "<CompressionExplorer 0% of the weights pruned, not rounded, not recovered | accuracy "
        "91.0%, 3 seeds | 1,000 parameters × 32 bits = 4.0 kB, 100% of them not 0>"
    )
    explorer.set(share=0.9, bits=4)
    assert repr(explorer) == (
        "<CompressionExplorer 90% of the weights pruned, 4 bits, not recovered | accuracy 40.3%, "
        "3 seeds | -50.7 points [-52.9, -48.5] against whole and not rounded | 1,000 parameters × "
        "4 bits = 0.5 kB, 10% of them not 0>"
    )
    explorer.set(share=0.625, recovered="labels")
    assert "62.5% of the weights pruned, 4 bits, recovered: labels |" in repr(explorer)
    assert "Find it." in explorer.children[0].value


def test_curves_hold_the_means_of_the_chosen_kind_and_bits(explorer):
    explorer.set(**PLACE)
    left, _ = explorer.figure.axes
    lines = {line.get_label(): line for line in left.lines}
    for way, name in (("no", "not recovered"), ("labels", "recovered: labels"),
                      ("distilled", "recovered: distilled")):  # fmt: skip
        means = [np.mean([accuracy("channels", s, 4, way, i) for i in range(3)]) for s in SHARES]
        assert list(lines[name].get_xdata()) == list(SHARES)
        assert lines[name].get_ydata() == pytest.approx(means)
    assert len(left.collections) == 3  # bands
    band = left.collections[0].get_paths()[0].vertices
    wanted = mean_interval([accuracy("channels", 0.9, 4, "no", seed) for seed in range(3)])
    at = band[np.isclose(band[:, 0], 0.9), 1]
    assert (at.min(), at.max()) == pytest.approx((wanted.low, wanted.high))
    marker = next(line for line in left.lines if line.get_marker() == "s")
    wanted = np.mean([accuracy("channels", 0.5, 4, "distilled", seed) for seed in range(3)])
    assert tuple(marker.get_xydata()[0]) == pytest.approx((0.5, wanted))
    looks = [(to_hex(line.get_color()), line.get_linestyle()) for line in left.lines[:3]]
    assert len(set(looks)) == 3
    assert "4 bits" in left.get_title("left") and "channels" in left.get_xlabel()


def test_the_map_holds_all_shares_and_bits_and_frames_the_chosen(explorer):
    explorer.set(**PLACE)
    _, right = explorer.figure.axes
    shown = right.images[0].get_array()
    for (y, bits), (x, share) in product(enumerate(BITS[::-1]), enumerate(SHARES)):
        wanted = np.mean([accuracy("channels", share, bits, "distilled", s) for s in range(3)])
        assert shown[y, x] == pytest.approx(100 * wanted)
        assert right.texts[y * len(SHARES) + x].get_text() == f"{100 * wanted:.0f}"
    assert right.images[0].get_clim() == (0, 100)
    (frame,) = right.patches
    assert frame.get_bbox().bounds == (0.5, 0.5, 1, 1)  # second share, second bits from the top
    assert to_hex(frame.get_edgecolor()).upper() == plots.VERMILION
    assert [t.get_text() for t in right.get_xticklabels()] == ["0%", "50%", "62.5%", "90%"]
    assert [t.get_text() for t in right.get_yticklabels()] == ["32", "4", "2"]


def test_the_map_is_drawn_anew_for_another_kind_or_way_and_the_frame_moves(explorer):
    _, right = explorer.figure.axes
    for place in (PLACE, {"share": 0.9}, {"bits": 2}, {"kind": "weights"}, {"recovered": "no"}):
        result = explorer.set(**place)
        wanted = np.mean([accuracy(result.kind, 0.625, 4, result.recovered, s) for s in range(3)])
        assert right.images[0].get_array()[1, 2] == pytest.approx(100 * wanted)
        (frame,) = right.patches
        x, y = SHARES.index(result.share), BITS[::-1].index(result.bits)
        assert frame.get_bbox().bounds == (x - 0.5, y - 0.5, 1, 1)
        bold = [text for text in right.texts if text.get_fontweight() == "bold"]
        assert [text.get_position() for text in bold] == [(x, y)]
        assert result.kind in right.get_xlabel()


def test_texts_are_neither_cut_nor_on_top_of_each_other():
    explorer = CompressionExplorer(table(), recompute=Counting())
    explorer.figure.draw_without_rendering()
    left, right = explorer.figure.axes
    (legend,) = (box.get_window_extent() for box in explorer.figure.legends)
    assert legend.x0 >= 0 and legend.y0 >= 0 and legend.x1 <= explorer.figure.bbox.x1
    ticks = [
        [label for at, label in zip(axis.get_xticks(), axis.get_xticklabels(), strict=True)
         if axis.get_xlim()[0] <= at <= axis.get_xlim()[1]]
        for axis in (left, right)
    ]  # fmt: skip
    for axis, labels in zip((left, right), ticks, strict=True):
        for text in (*labels, axis.title, axis.xaxis.label, axis.yaxis.label):
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.y0 >= 0
            assert box.x1 <= explorer.figure.bbox.x1 and box.y1 <= explorer.figure.bbox.y1
        boxes = [label.get_window_extent() for label in labels]
        assert legend.y1 < axis.xaxis.label.get_window_extent().y0
        assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_without_a_callable_nothing_is_recomputed(explorer):
    assert list(explorer.controls) == ["kind", "recovered", "share", "bits"]
    assert explorer.controls["share"].continuous_update
    with pytest.raises(ValueError, match="unknown control 'recompute'"):
        explorer.set(recompute=True)


def test_recomputing_asks_for_the_setting_and_marks_the_answer():
    recompute = Counting()
    explorer = CompressionExplorer(table(), recompute=recompute)
    explorer.set(**PLACE)
    assert recompute.asked == [] and explorer.result.recomputed is None
    assert "recomputed" not in repr(explorer)
    result = explorer.set(recompute=True)
    assert recompute.asked == [{"kind": "channels", "share": 0.5, "bits": 4}]
    assert result.recomputed == 0.4321
    assert repr(explorer).endswith("| recomputed here, not recovered: 43%>")
    left, _ = explorer.figure.axes
    cross = next(line for line in left.lines if line.get_label() == "recomputed here")
    assert tuple(cross.get_xydata()[0]) == (0.5, 0.4321)
    square = next(line for line in left.lines if line.get_marker() == "s")
    assert square.get_ydata()[0] == pytest.approx(result.interval.mean)  # both are there
    assert not explorer.controls["share"].continuous_update  # it fires when it is let go
    explorer.set(recompute=False)
    assert len(recompute.asked) == 1
    assert not any(line.get_label() == "recomputed here" for line in left.lines)


@pytest.mark.parametrize("answer", [1.5, -0.1, math.nan])
def test_a_recomputed_accuracy_that_is_none_is_refused(answer):
    explorer = CompressionExplorer(table(), recompute=Counting(answer))
    with pytest.raises(ValueError, match=r"recompute gave .*; expected an accuracy from 0 to 1"):
        explorer.set(recompute=True)


def test_settings_that_are_not_stored_are_said_to_be():
    gaps = table()
    gaps = gaps[~(gaps["recovered"].eq("labels") & gaps["bits"].ne(32))]
    explorer = CompressionExplorer(gaps, recompute=Counting(0.5))
    result = explorer.set(recovered="labels", bits=4, share=0.5, recompute=True)
    assert len(result.accuracies) == 0 and math.isnan(result.interval.mean)
    assert math.isnan(result.change.mean) and math.isnan(result.bytes)
    assert repr(explorer) == (
        "<CompressionExplorer 50% of the weights pruned, 4 bits, recovered: labels | not stored | "
        "recomputed here, not recovered: 50%>"
    )
    left, right = explorer.figure.axes
    assert "recovered: labels" not in [line.get_label() for line in left.lines]
    assert not any(line.get_marker() == "s" for line in left.lines)
    assert right.texts[len(SHARES)].get_text() == "–"
    explorer.set(bits=32)
    assert "accuracy" in repr(explorer)


def test_without_the_whole_model_there_is_no_loss():
    explorer = CompressionExplorer(table().query("share > 0"))
    assert math.isnan(explorer.set(share=0.5).change.mean)
    assert "points" not in repr(explorer) and "nan" not in repr(explorer)
    one = CompressionExplorer(table(seeds=1))
    one.set(share=0.5)
    assert "1 seed |" in repr(one) and "[" not in repr(one) and "nan" not in repr(one)


def test_shares_need_not_be_exact_to_the_last_digit():
    noisy = table()
    noisy["share"] = noisy["share"] + 1e-12
    explorer = CompressionExplorer(noisy)
    assert len(explorer.set(share=0.625).accuracies) == 3


def test_impossible_choices_name_what_there_is(explorer):
    with pytest.raises(ValueError, match=r"share=0.3 is not possible; expected one of 0.0, 0.5, 0"):
        explorer.set(share=0.3)
    with pytest.raises(ValueError, match="bits=5 is not possible; expected one of 2, 4, 32"):
        explorer.set(bits=5)
    with pytest.raises(ValueError, match="expected one of no, labels, distilled"):
        explorer.set(recovered="magic")


def test_compute_is_pure_and_frames_do_not_depend_on_the_way(explorer):
    picture = explorer.picture.value
    assert explorer.compute(PLACE).kind == "channels"
    assert explorer.picture.value == picture
    straight = CompressionExplorer(table())
    straight.set(**PLACE)
    for change in ({"share": 0.9}, {"kind": "channels", "bits": 2}, {"recovered": "labels"}, PLACE):
        explorer.set(**change)
    assert explorer.picture.value == straight.picture.value and repr(explorer) == repr(straight)
    assert explorer._repr_mimebundle_()[0]["image/png"]


def twice():
    return pd.concat([table(), table().head(1)])


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (table().drop(columns=["bits", "nonzero"]), "column bits, nonzero is missing"),
        (table().iloc[:0], "sweep has no rows"),
        (table().assign(parameters=math.nan), "parameters has a NaN"),
        (table().assign(accuracy=93.0), "accuracy goes from 93 to 93; expected 0 to 1"),
        (table().assign(share=50.0), "share goes from 50 to 50; expected 0 to 1"),
        (twice(), "kind=weights, share=0, bits=2, recovered=labels, seed=0 comes twice"),
    ],
)
def test_refuses(given, match):
    with pytest.raises(ValueError, match=match):
        CompressionExplorer(given)
