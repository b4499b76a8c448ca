"""The files of a report: whole, offline, right after a kill."""

import random
import re
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from bulk_hands import forking, in_a_fork, kdlab, keep
from report_hands import keep_twelve, tell

from kdlab.cli import parameters, report_files, report_page, running, runs
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
    assert page.count("<svg ") == page.count("</svg>") == 2 * 2 == page.count("<figure>")
    assert "12 runs of tiny, 1 failed" in page
    assert "MemoryError: &lt;b&gt;no &amp; room&lt;/b&gt;" in page and "<b>" not in page
    links = [link for link in re.findall(r'href="(.*?)"', page) if link[0] != "#"]
    assert len(links) == 12 + 3 and all((kept / link).is_file() for link in links)
    assert [p.name for p in kept.glob(".*") if p.name not in (".report.lock", ".work")] == []


def test_every_name_in_the_page_is_there_once(kept, no_kernel):
    """Links to headings, and the parts of figures, which are drawn by name."""
    kdlab("report", kept)
    page = (kept / "report.html").read_text()
    names = re.findall(r'\bid="(.*?)"', page)
    assert len(names) == len(set(names)) > 20
    used = set(re.findall(r'href="#(.*?)"|url\(#(.*?)\)', page))
    assert {a or b for a, b in used} <= set(names)
    contents = re.findall(r'<a href="#(.*?)">(.*?)<', page)
    assert [words for _, words in contents] == [
        "Conditions", "Failed", "tiny", "accuracy", "counts", "Runs",
    ]  # fmt: skip
    for name, words in contents:
        assert re.search(rf'<h\d id="{name}">{words}</h\d>', page)


def test_figures_take_their_colours_from_the_page(kept, no_kernel):
    kdlab("report", kept)
    page = (kept / "report.html").read_text()
    drawn = "".join(re.findall(r"<svg .*?</svg>", page, re.DOTALL))
    colours = set(re.findall(r"(?:fill|stroke): (#\w+|currentColor|var\(.*?\)|none)", drawn))
    assert colours == {"none", "currentColor", "var(--line)", "#0072b2", "#e69f00"}
    assert ">temperature</text>" in drawn and "prefers-color-scheme: dark" in page


def test_accuracy_comes_first_and_the_rest_is_folded_away(tmp_path, no_kernel):
    for t in (1.0, 2.0):
        rows = [{"nll": t, "accuracy": t / 2, "same": 3.0}]
        records = [{"name": "counts", "value": 1}, {"name": "methods", "value": rows}]
        run = keep(tmp_path, {"temperature": t}, records)
        tell(run.folder / "tiny.json", {}, {"it learns": t > 1, "it is quick": True})
    kdlab("report", tmp_path)
    page = (tmp_path / "report.html").read_text()
    open_part, folded = page.split("<details>")
    assert re.findall(r"<h3.*?>(.*?)</h3>", page) == ["Claims", "methods", "counts"]
    assert re.findall(r"<h4>(.*?)</h4>", open_part) == ["accuracy"]
    assert "<summary>2 other measures: nll, same</summary>" in folded
    assert open_part.count("<figure>") == 1 and page.count("<figure>") == 2, "same has none"
    assert re.search(r"it learns</td><td.*?>1 of 2 runs</td><td>temperature=1", page)
    assert page.count(">1 run<") == 8, "what n counts stands beside it"
    kdlab("report", tmp_path, "-m", "same", "-m", "nll")
    asked = (tmp_path / "report.html").read_text()
    assert "<details>" not in asked and re.findall(r"<h4>(.*?)</h4>", asked) == ["nll", "same"]


def test_warnings_and_conditions_stand_in_the_page(kept, no_kernel):
    run = keep(kept, {"temperature": 7.0, "alpha": 0.5}, kdlab="0.1", started=1_700_000_000)
    keep(kept, {"temperature": 8.0, "alpha": 0.5}, kdlab="0.2")
    tell(run.folder / "tiny.json", {}, {}, name="<abacus>")
    kdlab("report", kept)
    page = (kept / "report.html").read_text()
    assert '0.1, 0.2 <strong class="bad">the runs are of 2 versions</strong>' in page
    assert "&lt;abacus&gt;, cpu" in page
    assert '<span class="whole">2023-11-14T22:13:20Z</span>' in page, "a date does not break"


def test_figures_for_papers(kept, no_kernel, tmp_path):
    there = tmp_path / "a" / "figures"
    assert kdlab("report", kept, "--figures", there)[0] == 0
    names = [f"tiny--{what}--over_{x}" for what in ("accuracy", "counts--before")
             for x in ("alpha", "temperature")]  # fmt: skip
    assert sorted(path.name for path in there.iterdir()) == sorted(
        f"{name}.{ending}" for name in names for ending in ("pdf", "svg")
    )
    first = {path: path.read_bytes() for path in there.iterdir()}
    assert all(text.startswith((b"%PDF", b"<?xml")) for text in first.values())
    kdlab("report", kept, "--figures", there)
    assert first == {path: path.read_bytes() for path in there.iterdir()}, "the same each time"


def test_what_is_more_than_a_page_holds_is_said(kept, no_kernel, monkeypatch):
    monkeypatch.setattr(report_files, "MOST_FIGURES", 3)
    monkeypatch.setattr(report_page, "MOST_LINES", 11)
    kdlab("report", kept)
    page = (kept / "report.html").read_text()
    assert page.count("<figure>") == 3 and "1 more figure: choose with" in page
    assert "1 more line: see report.csv" in page


def test_the_files_may_lie_elsewhere(kept, no_kernel, tmp_path):
    there = tmp_path / "a b" / "c"
    assert kdlab("report", kept, "-o", there, "-m", "before")[0] == 0
    assert sorted(p.name for p in there.iterdir() if p.name[0] != ".") == sorted(FILES)
    page = (there / "report.html").read_text()
    assert page.count("<figure>") == 2 and "Counts: before over alpha" in page
    links = [link for link in re.findall(r'href="(.*?)"', page) if link[0] not in "#r"]
    assert len(links) == 12 and all(link.startswith("../") for link in links)
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
    assert "Nothing was recorded" in (tmp_path / "report.html").read_text()


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
