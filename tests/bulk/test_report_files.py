"""The files of a report: whole, offline, right after a kill."""

import random
import re
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from bulk_hands import forking, in_a_fork, kdlab, keep
from report_hands import keep_twelve

from kdlab.cli import parameters, running, runs
from kdlab.cli.gathering import gather

FILES = [f"report.{ending}" for ending in ("parquet", "csv", "html", "ipynb")]


@pytest.fixture
def kept(tmp_path):
    return keep_twelve(tmp_path / "runs")


@pytest.fixture
def no_kernel(monkeypatch):
    """The notebook of a report is not executed, only copied."""

    def stand_in(lesson, output, values, **options):
        output.write_bytes(lesson.read_bytes())

    monkeypatch.setattr(running, "run_lesson", stand_in)


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
