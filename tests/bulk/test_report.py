"""What reports compute: honest intervals, claims, conditions, figures."""

import itertools
import json

import numpy as np
import pytest
from bulk_hands import keep
from report_hands import keep_twelve, tell
from scipy import stats

from kdlab import plots
from kdlab.cli import report
from kdlab.cli.gathering import gather


@pytest.fixture
def kept(tmp_path):
    return keep_twelve(tmp_path / "runs")


def test_another_lesson_makes_no_parameter_of_this_one_swept(tmp_path):
    """Lessons have other parameters, which are missing in each other's runs."""
    for lesson, values in [("tiny", {"temperature": 1.0}), ("other", {"alpha": 0.5})] * 2:
        seed = len(list(tmp_path.glob("*/run.json")))
        run = keep(tmp_path, values | {"seed": seed}, [{"name": "loss", "value": 1}], lesson=lesson)
        tell(run.folder / "tiny.json", {}, {"it learns": seed > 1})
    table = gather(tmp_path)
    assert report.swept(table) == [] and list(report.figures(table)) == []
    assert sorted(report.claims(table)["not_with"]) == ["seed=0", "seed=1"]
    swept = table.assign(alpha=table["seed"].where(table["lesson"] == "other"))
    assert report.swept(swept) == ["alpha"]
    assert sorted(report.claims(swept)["not_with"]) == ["alpha=1, seed=1", "seed=0"]


def test_a_claim_stated_twice_in_a_run_holds_if_both_do(tmp_path):
    run = keep(tmp_path, {"temperature": 1.0})
    tell(run.folder / "tiny.json", {}, {"it learns": True})
    told = json.loads((run.folder / "tiny.json").read_text())
    told["claims"] += [told["claims"][0] | {"holds": False}]
    (run.folder / "tiny.json").write_text(json.dumps(told))
    assert report.claims(gather(tmp_path))[["held", "runs"]].to_numpy().tolist() == [[0, 1]]


def test_a_record_of_a_lesson_may_be_called_claims(tmp_path):
    run = keep(
        tmp_path, {"temperature": 1.0}, [{"name": "claims", "value": [{"how": "kd", "n1": 2}]}]
    )
    tell(run.folder / "tiny.json", {}, {"it learns": True})
    (measure,) = report.measures(gather(tmp_path))
    assert (measure.record, measure.metric, measure.keys) == ("claims", "n1", [])


def test_conditions_are_told_and_versions_that_differ(tmp_path):
    for seed in (0, 1):
        started = {"started": 1_700_000_000.5 + 3600 * seed, "threads": 7, "kdlab": "0.1"}
        values = {"temperature": 1.0, "seed": seed, "alpha": 0.5}
        run = keep(tmp_path, values, source="abc", **started)
        tell(run.folder / "tiny.json", values, {})
    table = gather(tmp_path)
    told = report.conditions(table).set_index("what")
    assert told["value"].to_dict() == {
        "tiny: all runs": "temperature=1, alpha=0.5",
        "tiny: notebook": "abc",
        "kdlab": "0.1",
        "torch": "2.9",
        "machine": "abacus, cpu",
        "threads": "2",
        "started": "2023-11-14T22:13:20Z to 2023-11-14T23:13:20Z",
    }
    assert set(told["warning"]) == {""}
    for name in ("source", "kdlab", "torch"):
        other = table.assign(**{name: ["abc", "other"]})
        warned = report.conditions(other).set_index("what")["warning"]
        what = "tiny: notebook" if name == "source" else name
        assert warned[warned != ""].to_dict() == {what: "the runs are of 2 versions"}
    bare = keep(tmp_path / "bare", {"temperature": 2.0})
    assert report.conditions(gather(bare.out))["value"].tolist()[1:] == ["not known"] * 6


def test_a_seed_that_came_twice_counts_once(tmp_path):
    """Runs with the seeds 0 to 2 that each train with s and s + 1 hold four trainings, not six."""
    for seed in range(3):
        rows = [{"seed": inner, "loss": float(inner**2)} for inner in (seed, seed + 1)]
        keep(tmp_path, {"seed": seed}, [{"name": "methods", "value": rows}])
    (line,) = report.summary(gather(tmp_path)).to_dict("records")
    values = np.array([0.0, 1.0, 4.0, 9.0])
    reach = stats.t.ppf(0.975, 3) * values.std(ddof=1) / 2
    assert line["n"] == 4 and line["mean"] == values.mean() and line["setting"] == "all"
    assert line["high"] - line["mean"] == pytest.approx(reach)
    assert line["counted"] == "seeds"


def test_trainings_that_the_seed_of_the_run_changes_are_no_repetitions(tmp_path):
    """The run's seed draws the images: equal inner seeds are other trainings, and n counts runs."""
    for size in (100, 300):
        for seed in range(3):
            rows = [{"seed": s, "loss": size + 10.0 * seed + s} for s in (seed, seed + 1)]
            keep(tmp_path, {"seed": seed, "size": size}, [{"name": "methods", "value": rows}])
    summary = report.summary(gather(tmp_path)).set_index("setting")
    means = np.array([100.5, 111.5, 122.5])
    reach = stats.t.ppf(0.975, 2) * means.std(ddof=1) / np.sqrt(3)
    line = summary.loc["size=100"]
    assert (line["n"], line["counted"]) == (3, "runs") and line["mean"] == 111.5
    assert line["high"] - line["mean"] == pytest.approx(reach)


@pytest.mark.parametrize(("apart", "n"), [(5e-7, 2), (1e-4, 1)])
def test_trainings_are_one_up_to_rounding(tmp_path, apart, n):
    """Values as low as -100: the distance counts in proportion. One run has only its seeds."""
    for name, share in (("a", 0.0), ("b", apart)):
        rows = [{"seed": s, "loss": -(100.0 + s) * (1 + share)} for s in (0, 1)]
        keep(tmp_path / name, {"seed": 0}, [{"name": "methods", "value": rows}])
    (line,) = report.summary(gather(tmp_path)).to_dict("records")
    assert line["n"] == n and line["counted"] == ("seeds" if n == 2 else "runs")
    (alone,) = report.summary(gather(tmp_path / "a")).to_dict("records")
    assert (alone["n"], alone["counted"]) == (2, "seeds")


def test_means_of_settings(kept):
    summary = report.summary(gather(kept)).set_index(["metric", "setting"])
    assert set(summary["record"]) == {"accuracy", "counts"}
    line = summary.loc[("value", "temperature=4, alpha=0.5")]
    assert line["n"] == 3 and line["mean"] == pytest.approx(0.91)
    assert summary.loc[("value", "temperature=4, alpha=0.9"), "n"] == 2, "a failed run counts not"
    assert len(summary) == 3 * 4
    only = report.summary(gather(kept), ["after"])
    assert set(only["metric"]) == {"after"} and len(report.summary(gather(kept), ["counts"])) == 8
    with pytest.raises(ValueError, match=r"unknown metric 'acuracy' \(did you mean 'accuracy'"):
        report.summary(gather(kept), ["acuracy"])


def test_what_tells_rows_apart_is_no_result(tmp_path):
    """A lesson measures two methods at three temperatures, with the parameters of each method."""
    for seed in range(3):
        rows = [
            {"method": m, "T": t, "size": 7 if m == "ce" else 9, "loss": seed + t + (m == "kd")}
            for m in ("ce", "kd")
            for t in (1.0, 2.0, 4.0)
        ]
        keep(tmp_path, {"seed": seed}, [{"name": "walk", "value": rows}])
    summary = report.summary(gather(tmp_path)).set_index(["metric", "setting"])
    assert set(summary.index.get_level_values(0)) == {"loss", "size"}
    assert len(summary.loc["loss"]) == 6
    assert summary.loc[("loss", "kd, T=4"), ["mean", "n"]].tolist() == [6.0, 3]
    with pytest.raises(ValueError, match="unknown metric 'T'"):
        report.summary(gather(tmp_path), ["T"])


def test_the_bounds_of_an_interval_are_no_results_of_their_own(tmp_path):
    for seed in (0, 1):
        rows = [{"setting": s, "mean": 0.5, "low": 0.4, "high": 0.6, "n": 5} for s in ("a", "b")]
        keep(tmp_path, {"seed": seed}, [{"name": "accuracy", "value": rows}])
    table = gather(tmp_path)
    assert {m.metric for m in report.measures(table)} == {"mean"}
    assert {m.metric for m in report.measures(table, ["low"])} == {"low"}


def test_numbers_that_differ_between_runs_are_results(tmp_path):
    for seed in range(3):
        rows = [{"loss": seed + part} for part in (0.25, 0.75)]
        keep(tmp_path, {"seed": seed}, [{"name": "parts", "value": rows}])
    (line,) = report.summary(gather(tmp_path)).to_dict("records")
    assert line["metric"] == "loss" and line["mean"] == 1.5 and line["n"] == 3


def drawn(figure):
    """Legend name → heights of the means of a line, of each panel."""
    panels = []
    (shared,) = figure.legends or [None]
    for axis in filter(lambda axis: axis.get_visible(), figure.axes):
        heights = [list(line.lines[0].get_ydata()) for line in axis.containers]
        legend = shared or axis.get_legend()
        names = [text.get_text() for text in legend.get_texts()] if legend else ["all"]
        panels.append(dict(zip(names, heights, strict=True)))
    return panels


def test_figures_over_each_parameter(kept):
    made = list(report.figures(gather(kept), ["accuracy"]))
    assert [plots.alt_text(figure) for figure in made] == [
        "Accuracy over temperature, mean and 95 % interval: alpha=0.5, alpha=0.9.",
        "Accuracy over alpha, mean and 95 % interval: temperature=1, temperature=4.",
    ]
    (lines,) = drawn(made[0])
    assert lines["alpha=0.5"] == pytest.approx([0.61, 0.91])
    assert lines["alpha=0.9"] == pytest.approx([1.01, 1.305])
    assert [label.get_text() for label in made[0].axes[0].get_xticklabels()] == ["1", "4"]


def keep_settings(out, settings, **swept):
    """Keep one run for each combination of two values and more; losses tell them all apart."""
    for t, width in itertools.product(swept["temperature"], swept.get("width", [0])):
        rows = [{"setting": s, "loss": t + 10 * width + 1000 * k} for k, s in enumerate(settings)]
        values = {"temperature": float(t), "width": width}
        keep(out, values, [{"name": "methods", "value": rows}])


def test_what_a_lesson_compares_is_never_averaged_over(tmp_path):
    """Ten settings are too many for a panel: they come in two."""
    keep_settings(tmp_path, list("abcdefghij"), temperature=[1, 2])
    (figure,) = report.figures(gather(tmp_path))
    first, second = drawn(figure)
    assert first == {s: [1000 * k + 1, 1000 * k + 2] for k, s in enumerate("abcde")}
    assert second["j"] == [9001, 9002] and list(second) == list("fghij")
    assert "Averaged" not in plots.alt_text(figure) and not figure.get_suptitle()


def test_many_settings_and_another_parameter_are_panels_and_lines(tmp_path):
    keep_settings(tmp_path, list("abcdefghij"), temperature=[1, 2], width=[1, 2, 3])
    over_temperature, over_width = report.figures(gather(tmp_path))
    panels = drawn(over_temperature)
    assert [axis.get_title(loc="left") for axis in over_temperature.axes] == list("abcdefghij")
    assert panels[9] == {"width=1": [9011, 9012], "width=2": [9021, 9022], "width=3": [9031, 9032]}
    assert drawn(over_width)[0]["temperature=2"] == [12, 22, 32]


def test_a_parameter_without_room_is_averaged_over_and_the_title_says_so(tmp_path):
    keep_settings(tmp_path, ["ce", "kd"], temperature=[1, 2, 3], width=range(13))
    over_temperature, over_width = report.figures(gather(tmp_path))
    assert over_temperature.get_suptitle() == "Averaged over width."
    assert plots.alt_text(over_temperature).endswith(": ce, kd. Averaged over width.")
    assert drawn(over_temperature) == [{"ce": [61, 62, 63], "kd": [1061, 1062, 1063]}]
    assert "ce, temperature=1" in plots.alt_text(over_width) and not over_width.get_suptitle()


def test_more_settings_than_anybody_can_read_make_no_figure(tmp_path):
    keep_settings(tmp_path, [f"layer {n}" for n in range(73)], temperature=[1, 2])
    assert list(report.figures(gather(tmp_path))) == []
    assert len(report.summary(gather(tmp_path))) == 146
