"""Every record and claim of every run in one table."""

import itertools

import nbformat
import numpy as np
import pandas as pd
import pytest
from bulk_hands import keep, notebook_at
from report_hands import keep_twelve, tell

from kdlab.cli import report, runs
from kdlab.cli.gathering import gather, parameter_names, settled


@pytest.fixture
def kept(tmp_path):
    return keep_twelve(tmp_path / "runs")


def test_one_row_for_each_run_and_record(kept):
    table = gather(kept)
    assert list(table.columns) == [
        "lesson", "run", "status", "seconds", "error",
        "source", "kdlab", "torch", "threads", "machine", "started",
        "seed", "temperature", "alpha",
        "record", "row", "claim", "holds", "value", "after", "before",
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
    assert one.loc[("again", 0), "value"] == 2 and one.loc[("flag", 0), "value"] is True
    assert one["hidden"].unique().tolist() == ["[8, 4]"] and one["shuffle"].all()
    empty = table[table["run"] != run.name]
    assert len(empty) == 1 and empty["record"].isna().all() and empty["limit"].tolist() == [5]
    for read, name in [(pd.read_csv, "t.csv"), (pd.read_parquet, "t.parquet")]:
        path = tmp_path / name
        of_one_kind = settled(table)
        write = of_one_kind.to_csv if read is pd.read_csv else of_one_kind.to_parquet
        write(path, index=False)
        again = read(path)
        assert again["value"].tolist().count("true") == again["value"].tolist().count("2") == 1
        assert list(again.columns) == list(table.columns)
        assert again["hidden"].tolist() == table["hidden"].tolist()


def executed(path, values, exception=False, duration=3.5, **metadata):
    notebook_at(path, "pass")
    notebook = nbformat.read(path, 4)
    about = {"parameters": values, "exception": exception, "duration": duration}
    about["start_time"] = "2026-01-02T03:04:05.678+00:00"
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
    executed(tmp_path / "a" / "two.ipynb", {}, duration=-3600)  # the clock was set back
    table = gather(tmp_path).set_index("run")
    assert np.isnan(table.loc["a/two.ipynb", "seconds"])
    table = table.drop("a/two.ipynb")
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
    assert table.loc["a/one.ipynb", "started"] == "2026-01-02T03:04:05Z"


def test_what_a_later_run_wrote_beside_a_notebook_is_not_of_this_run(tmp_path):
    executed(tmp_path / "one.ipynb", {"temperature": 2})
    for temperature, claims in [(3, 0), (2, 1)]:
        values = {"profile": "fast", "seed": 0, "temperature": temperature}
        values |= {"hidden": [32], "dataset": "glyphs", "device": "auto"}
        tell(tmp_path / "one.json", values, {"it learns": True})
        assert len(report.claims(gather(tmp_path))) == claims


def test_a_damaged_notebook_is_a_failed_run(tmp_path):
    run = keep(tmp_path, {"temperature": 1.0}, [{"name": "accuracy", "value": 1}])
    (run.folder / "tiny.ipynb").write_text('{"cells": [')
    (row,) = gather(tmp_path).to_dict("records")
    assert row["status"] == "failed" and "is not a Jupyter notebook" in row["error"]


def test_a_parameter_called_as_a_column_about_the_run_is_kept(tmp_path):
    keep(tmp_path, {"threads": 3, "error": "high"}, threads=1)
    (row,) = gather(tmp_path).to_dict("records")
    assert (row["threads"], row["parameter_threads"], row["parameter_error"]) == (1, 3, "high")


def test_claims_are_rows_and_no_measures(tmp_path):
    """Two seeds at two temperatures; one run failed over its claim, and one made none."""
    for t, seed in itertools.product((1.0, 4.0), (0, 1)):
        values = {"temperature": t, "seed": seed}
        failed = {"status": runs.FAILED, "reason": "ClaimError: warm"} if t + seed == 5 else {}
        run = keep(tmp_path, values, [{"name": "accuracy", "value": t, "holds": 0.5}], **failed)
        if (t, seed) != (1.0, 1):
            tell(run.folder / "tiny.json", values, {"it learns": True, "it is warm": t + seed < 4})
    table = gather(tmp_path)
    rows = table[table["record"] == "claims"]
    assert len(rows) == 6 and rows["claim"].tolist()[:2] == ["it learns", "it is warm"]
    assert rows["holds"].tolist() == [True, True, True, False, True, False]
    assert rows["row"].tolist() == [0, 1] * 3 and rows["value"].isna().all()
    assert {(m.record, m.metric) for m in report.measures(table)} == {
        ("accuracy", "value"),
        ("accuracy", "record_holds"),
    }
    learns, warm = report.claims(table).to_dict("records")
    assert (learns["claim"], learns["held"], learns["runs"], learns["not_with"]) == (
        "it learns", 3, 3, ""
    )  # fmt: skip
    assert (warm["held"], warm["runs"]) == (1, 3)
    assert warm["not_with"] == "temperature=4, seed=0; temperature=4, seed=1"


def test_a_text_among_numbers_takes_no_number_away(tmp_path):
    """Kinds belong to records: one with a text, one with an n/a, one with truth values."""
    for seed in range(3):
        records = [
            {"name": "accuracy", "value": 0.5 + seed / 10},
            {"name": "winner", "value": "labels"},
            {"name": "settled", "value": seed == 1},
            {"name": "cost", "value": "n/a" if seed == 0 else 7.0},
            {"name": "speed", "value": True if seed == 2 else seed},
            {"name": "layers", "value": [{"layer": k, "cka": seed} for k in ("stem", 1, 2)]},
        ]
        keep(tmp_path, {"temperature": 1.0, "seed": seed}, records)
    table = gather(tmp_path)
    found = report.summary(table).set_index(["record", "setting"])[["mean", "n"]]
    assert found.loc[("accuracy", "all")].tolist() == pytest.approx([0.6, 3])
    assert found.loc[("cost", "all")].tolist() == [7.0, 2]
    assert found.loc[("speed", "all")].tolist() == [0.5, 2]
    assert {s for r, s in found.index if r == "layers"} == {"stem", "1", "2"}
    assert not {"winner", "settled"} & set(found.index.get_level_values(0))
    told = report.conditions(table).set_index("what")
    assert told.loc["cost: value"].tolist() == ["n/a", "left out of means: 1 value"]
    assert told.loc["speed: value"].tolist() == ["True", "left out of means: 1 value"]


def test_a_parameter_called_as_what_is_recorded_keeps_its_column(tmp_path):
    values = {"record": "vinyl", "row": 3, "claim": "c", "holds": 1, "parameter_record": 5}
    keep(tmp_path, values, [{"name": "loss", "value": 1.0, "row": 8, "record_row": 9}])
    (row,) = gather(tmp_path).to_dict("records")
    assert (row["record"], row["row"], row["value"]) == ("loss", 0, 1.0)
    assert (row["parameter_row"], row["parameter_claim"], row["parameter_holds"]) == (3, "c", 1)
    assert {row["parameter_record"], row["parameter_parameter_record"]} == {"vinyl", 5}
    assert {row["record_row"], row["record_record_row"]} == {8, 9}


def test_numbers_that_no_column_holds_are_kept_as_far_as_can_be(tmp_path):
    run = keep(tmp_path, {"temperature": 1.0}, [{"name": "big", "value": 1}])
    path = run.folder / "tiny.ipynb"
    path.write_text(path.read_text().replace('"value": 1', f'"value": {2**70}, "b": 1e999'))
    (row,) = gather(tmp_path).to_dict("records")
    assert row["value"] == float(2**70) and np.isnan(row["b"])


def test_what_is_no_run_is_named(tmp_path):
    keep(tmp_path, {"temperature": 1.0})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text('{"build": 7}')
    (tmp_path / "broken.ipynb").write_text("{")
    skipped = gather(tmp_path).attrs["skipped"]
    assert set(skipped) == {"other/run.json", "broken.ipynb"}
    assert "is not a Jupyter notebook" in skipped["broken.ipynb"]
    told = report.conditions(gather(tmp_path)).set_index("what")
    assert told.loc["skipped: broken.ipynb", "warning"] == "it is no run"


def test_data_of_several_versions_are_told(tmp_path):
    for seed, content in enumerate(("a", "b")):
        keep(tmp_path, {"seed": seed, "dataset": "my.npz"}, data={"my.npz": content, "x.npz": "c"})
    told = report.conditions(gather(tmp_path)).set_index("what")
    assert told.loc["tiny: my.npz", "warning"] == "the runs are of 2 versions"
    assert "tiny: x.npz" not in told.index


def test_each_notebook_has_the_record_of_its_own(tmp_path):
    """Two runs in one folder; the names of their records begin alike."""
    declared = {"profile": "fast", "seed": 0, "hidden": [32], "dataset": "glyphs"}
    for name, t in (("T1", 1.0), ("T10", 10.0)):
        executed(tmp_path / f"{name}.ipynb", {"temperature": t})
        tell(tmp_path / f"{name}-0123abcd.json", {**declared, "temperature": t}, {name: True})
    table = gather(tmp_path)
    claims = table[table["claim"].notna()]
    assert sorted(zip(claims["run"], claims["claim"], strict=True)) == [
        ("T1.ipynb", "T1"), ("T10.ipynb", "T10"),
    ]  # fmt: skip
