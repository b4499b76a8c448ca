"""Reports: every record of every run in one table, honest intervals, files that are whole."""

import itertools
import random
import re
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from bulk_hands import forking, in_a_fork, kdlab, keep, notebook_at
from scipy import stats

from kdlab import plots
from kdlab.cli import parameters, report, running, runs
from kdlab.cli.gathering import gather, parameter_names

FILES = [f"report.{ending}" for ending in ("parquet", "csv", "html", "ipynb")]


@pytest.fixture
def no_kernel(monkeypatch):
    """The notebook of a report is not executed, only copied."""

    def stand_in(lesson, output, values, **options):
        output.write_bytes(lesson.read_bytes())

    monkeypatch.setattr(running, "run_lesson", stand_in)


@pytest.fixture
def kept(tmp_path):
    """Two temperatures × two weights × three seeds; one run failed after its first record."""
    out = tmp_path / "runs"
    for t in (1.0, 4.0):
        for alpha in (0.5, 0.9):
            for seed in range(3):
                values = {"temperature": t, "alpha": alpha, "seed": seed}
                records = [
                    {"name": "accuracy", "value": t / 10 + alpha + seed / 100},
                    {"name": "counts", "before": seed, "after": 7},
                ]
                if (t, alpha, seed) == (4.0, 0.9, 2):
                    error = {"status": runs.FAILED, "reason": "MemoryError: <b>no & room</b>"}
                    keep(out, values, records[:1], **error)
                else:
                    keep(out, values, records)
    return out


def test_one_row_for_each_run_and_record(kept):
    table = gather(kept)
    assert list(table.columns) == [
        "lesson", "run", "status", "seconds", "error",
        "seed", "temperature", "alpha",
        "record", "row", "value", "after", "before",
    ]  # fmt: skip
    assert parameter_names(table) == ["seed", "temperature", "alpha"]
    assert len(table) == 12 * 2 - 1 and table["run"].nunique() == 12
    assert table["seed"].dtype == "int64" and table["temperature"].dtype == float
    one = table[(table["alpha"] == 0.9) & (table["seed"] == 1) & (table["temperature"] == 4.0)]
    assert one["record"].tolist() == ["accuracy", "counts"]
    assert one["value"].tolist() == pytest.approx([1.31, float("nan")], nan_ok=True)
    assert one["after"].tolist()[1] == 7 and one["before"].tolist()[1] == 1
    (failed,) = table[table["status"] == "failed"].to_dict("records")
    assert failed["error"] == "MemoryError: <b>no & room</b>" and failed["record"] == "accuracy"
    assert table[table["status"] == "done"]["error"].isna().all()


def test_records_of_every_shape(tmp_path):
    rows = [{"setting": "kd", "seed": 5, "loss": 0.25}, {"setting": "ce", "seed": 6, "loss": None}]
    run = keep(
        tmp_path,
        {"hidden": [8, 4], "limit": None, "shuffle": True},
        [
            {"name": "again", "value": 1},
            {"name": "again", "value": 2},
            {"name": "methods", "value": rows},
            {"name": "nested", "value": {"a": 1, "b": [1, 2]}, "text": "x"},
            {"name": "flag", "value": True},
        ],
    )
    keep(tmp_path, {"hidden": [8], "limit": 5, "shuffle": False})
    table = gather(tmp_path)
    one = table[table["run"] == run.name].set_index(["record", "row"])
    assert list(one.index) == [
        ("again", 0), ("methods", 0), ("methods", 1), ("nested", 0), ("flag", 0),
    ]  # fmt: skip
    assert one.loc[("methods", 0), ["setting", "record_seed", "loss"]].tolist() == ["kd", 5, 0.25]
    assert (one["seed"] == 0).all(), "the run's seed stays what it is"
    assert np.isnan(one.loc[("methods", 1), "loss"])
    assert one.loc[("nested", 0), ["value.a", "value.b", "text"]].tolist() == [1, "[1, 2]", "x"]
    assert one.loc[("again", 0), "value"] == "2" and one.loc[("flag", 0), "value"] == "true"
    assert one["hidden"].unique().tolist() == ["[8, 4]"] and one["shuffle"].all()
    empty = table[table["run"] != run.name]
    assert len(empty) == 1 and empty["record"].isna().all() and empty["limit"].tolist() == [5]
    for read, name in [(pd.read_csv, "t.csv"), (pd.read_parquet, "t.parquet")]:
        path = tmp_path / name
        (table.to_csv if read is pd.read_csv else table.to_parquet)(path, index=False)
        again = read(path)
        assert list(again.columns) == list(table.columns)
        assert again["hidden"].tolist() == table["hidden"].tolist()


def executed(path, values, exception=False, duration=3.5, **metadata):
    notebook_at(path, "pass")
    notebook = nbformat.read(path, 4)
    about = {"parameters": values, "exception": exception, "duration": duration}
    notebook.metadata |= {"papermill": about, **metadata}
    if exception:
        error = nbformat.v4.new_output("error", ename="KeyError", evalue="'x'", traceback=[])
        notebook.cells[2].outputs = [error]
    nbformat.write(notebook, path)


def test_runs_of_kdlab_run_are_gathered_and_nothing_else(tmp_path):
    for name in ("a", "b", "c", ".work", ".ipynb_checkpoints"):
        (tmp_path / name).mkdir()
    executed(tmp_path / "a" / "one.ipynb", {"temperature": 2})
    executed(tmp_path / "b" / "two.ipynb", {}, exception=True)
    executed(tmp_path / "c" / "cut.ipynb", {}, exception=None, duration=None)
    (tmp_path / "a" / "run.json").write_text('{"lesson": "run"}')  # of a lesson called so
    executed(tmp_path / ".work" / "one.ipynb", {})
    executed(tmp_path / ".ipynb_checkpoints" / "one.ipynb", {})
    executed(tmp_path / "report.ipynb", {}, kdlab_report=True)
    notebook_at(tmp_path / "never_run.ipynb")
    (tmp_path / "broken.ipynb").write_text("{")
    table = gather(tmp_path).set_index("run")
    assert sorted(table.index) == ["a/one.ipynb", "b/two.ipynb", "c/cut.ipynb"]
    assert table.loc["a/one.ipynb", ["lesson", "status", "seconds"]].tolist() == [
        "one",
        "done",
        3.5,
    ]
    assert (
        table["temperature"].sort_index().tolist() == [2, 4, 4]
        and (table["dataset"] == "glyphs").all()
    )
    assert table.loc["b/two.ipynb", "error"] == "KeyError: 'x'"
    assert table.loc["c/cut.ipynb", "error"] == "it came to no end"


def test_a_damaged_notebook_is_a_failed_run(tmp_path):
    run = keep(tmp_path, {"temperature": 1.0}, [{"name": "accuracy", "value": 1}])
    (run.folder / "tiny.ipynb").write_text('{"cells": [')
    (row,) = gather(tmp_path).to_dict("records")
    assert row["status"] == "failed" and "is not a Jupyter notebook" in row["error"]


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


def test_four_files_that_need_no_network(kept, no_kernel):
    code, told = kdlab("report", kept)
    assert code == 0 and "12 runs (1 failed), 23 rows" in told
    table = gather(kept)
    pd.testing.assert_frame_equal(pd.read_parquet(kept / "report.parquet"), table)
    from_csv = pd.read_csv(kept / "report.csv")
    assert from_csv["value"].tolist() == pytest.approx(table["value"].tolist(), nan_ok=True)
    page = (kept / "report.html").read_text()
    assert not re.search(r"https?:|<script|<link|@import", page)
    assert page.count("data:image/png;base64,") == 2 * 2 == page.count("<figure>")
    assert "prefers-color-scheme: dark" in page and "12 runs of tiny, 1 failed" in page
    assert "MemoryError: &lt;b&gt;no &amp; room&lt;/b&gt;" in page and "<b>" not in page
    links = re.findall(r'href="(.*?)"', page)
    assert len(links) == 12 and all((kept / link).is_file() for link in links)
    assert [p.name for p in kept.glob(".*") if p.name not in (".report.lock", ".work")] == []


def test_the_files_may_lie_elsewhere(kept, no_kernel, tmp_path):
    there = tmp_path / "a b" / "c"
    assert kdlab("report", kept, "-o", there, "-m", "before")[0] == 0
    assert sorted(p.name for p in there.iterdir() if p.name[0] != ".") == sorted(FILES)
    page = (there / "report.html").read_text()
    assert page.count("<figure>") == 2 and "Counts: before over alpha" in page
    links = re.findall(r'href="(.*?)"', page)
    assert links and all(link.startswith("../") for link in links)
    assert all((there / link).resolve().is_file() for link in links)
    source = nbformat.read(there / "report.ipynb", 4).cells[1].source
    assert "runs: str = '../../runs'" in source and "= ['before']" in source


def test_what_cannot_be_reported_is_said(kept, no_kernel, tmp_path):
    (tmp_path / "empty").mkdir()
    for words, complaint in [
        ([tmp_path / "empty"], "no run in"),
        ([tmp_path / "nowhere"], "no run in"),
        ([kept, "-m", "lass"], "unknown metric 'lass'"),
        ([kept, "-o", kept / "report"], "exists"),
    ]:
        (kept / "report").write_text("in the way")
        code, told = kdlab("report", *words)
        assert code == 1 and complaint in told, told
    assert not any((kept / name).exists() for name in FILES)


def test_runs_that_all_failed_make_a_report_too(tmp_path, no_kernel):
    for seed in range(2):
        keep(tmp_path, {"seed": seed}, status=runs.FAILED, reason="no")
    assert kdlab("report", tmp_path)[0] == 0
    assert "nothing was recorded" in (tmp_path / "report.html").read_text()


def whole(folder):
    """Every file of a report that is there can be read."""
    reads = (pd.read_parquet, pd.read_csv, Path.read_text, lambda p: nbformat.read(p, 4))
    there = [path for name in FILES if (path := folder / name).exists()]
    for path in there:
        read = reads[FILES.index(path.name)]
        assert len(read(path))
    return len(there)


@forking
def test_killed_at_any_moment_the_next_report_is_right(kept, no_kernel, monkeypatch):
    dice, kills = random.Random(0), 0
    steps = ["to_parquet", "to_csv"]
    for name in steps:  # long enough to be met
        slow = getattr(pd.DataFrame, name)

        def half(self, path, *rest, slow=slow, **options):
            Path(path).write_text("half")
            time.sleep(0.4)
            slow(self, path, *rest, **options)

        monkeypatch.setattr(pd.DataFrame, name, half)
    for _ in range(4):
        process = in_a_fork("report", kept)
        process.join(0.1 + 0.9 * dice.random())
        kills += process.is_alive()
        process.kill()
        process.join()
        whole(kept)
    assert kills, "it was always done before the kill"
    (kept / ".report.csv.abc.part").write_text("half")
    assert kdlab("report", kept)[0] == 0
    assert whole(kept) == 4 and not list(kept.glob(".*.part"))
    pd.testing.assert_frame_equal(pd.read_parquet(kept / "report.parquet"), gather(kept))


def test_the_notebook_is_run_and_has_parameters(kept):
    code, told = kdlab("report", kept)
    assert code == 0, told
    notebook = nbformat.read(kept / "report.ipynb", 4)
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 4
    assert any("12 runs, 1 failed; swept: temperature, alpha." in str(o) for o in outputs)
    assert gather(kept)["run"].nunique() == 12, "the report's own notebook is no run"
    declared = parameters.read(notebook)
    assert [p.default for p in declared.values()] == [".", []]
    assert parameters.accept(declared, {"metrics": '["after"]'}) == {"metrics": ["after"]}


def test_without_a_notebook_the_other_files_are_there(kept, monkeypatch):
    def broken(*arguments, **options):
        raise running.LessonFailed("the kernel died", "the kernel died")

    monkeypatch.setattr(running, "run_lesson", broken)
    code, told = kdlab("report", kept)
    assert code == 1 and "the kernel died" in told and whole(kept) == 3
