"""What lessons say of each other is made by one command; here it is held fresh."""

import re
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    for name in ("course_map", "readme", "rerun"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import course_map

    return course_map


@pytest.fixture
def course(tool, tmp_path):
    """Three lessons without any link."""
    return [
        lesson(tool, tmp_path, stem, title)
        for stem, title in (("00_start_here", "00 · Start here"), ("01_a", "01 · A"), ("02_b", "B"))
    ]


def lesson(tool, folder, stem, title, run=True):
    header = "| | |\n|---|---|\n| **You need** | patience |\n| **Time** | an hour |"
    body = "## The map\n\n<!-- map -->\n<!-- /map -->\n\nand so on"
    texts = (f"# {title}\n\nWhat {title} shows.", header, body)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(t) for t in texts])
    if run:
        notebook.metadata["kdlab"] = {"source": tool.source_hash(notebook)}
    path = folder / f"{stem}.ipynb"
    path.write_text(nbformat.writes(notebook).rstrip("\n") + "\n")
    return path


def links(path):
    return re.findall(r"\]\((.+?)\)", nbformat.read(path, 4).cells[0].source)


def test_lessons_are_fresh(tool):
    lessons = list(tool.readme.LESSONS)
    assert tool.update(lessons, check=True) == [], "run `python tools/course_map.py` and commit"
    for number, path in enumerate(lessons):  # said once more, by counting
        around = {p.name for p in lessons[max(0, number - 1) : number + 2]} - {path.name}
        assert set(links(path)) - {"00_start_here.ipynb"} == around - {"00_start_here.ipynb"}
    start = "\n".join(c.source for c in nbformat.read(lessons[0], 4).cells)
    assert all(f"]({path.name})" in start for path in lessons[1:])


def test_a_second_run_changes_nothing(tool, course):
    assert tool.update(course, check=False) == course
    before = [path.read_bytes() for path in course]
    assert tool.update(course, check=False) == []
    assert [path.read_bytes() for path in course] == before


def test_a_check_writes_nothing(tool, course):
    before = [path.read_bytes() for path in course]
    assert tool.update(course, check=True) == course
    assert [path.read_bytes() for path in course] == before


def test_links_lead_back_to_the_start_and_on(tool, course):
    tool.update(course, check=False)
    assert [links(path) for path in course] == [
        ["01_a.ipynb"],
        ["00_start_here.ipynb", "02_b.ipynb"],
        ["01_a.ipynb", "00_start_here.ipynb"],
    ]
    assert "[← A](01_a.ipynb) · [Start here]" in nbformat.read(course[2], 4).cells[0].source


def test_a_new_lesson_needs_one_run(tool, course, tmp_path):
    tool.update(course, check=False)
    new = lesson(tool, tmp_path, "01b_new", "01b · New")
    more = [*course[:2], new, course[2]]
    assert tool.update(more, check=False) == [course[0], course[1], new, course[2]]
    assert links(new) == ["01_a.ipynb", "00_start_here.ipynb", "02_b.ipynb"]
    assert links(course[2])[0] == links(course[1])[1] == "01b_new.ipynb"
    body = nbformat.read(course[0], 4).cells[2].source
    row = "| [01b · New](01b_new.ipynb) | What 01b · New shows. | patience | not timed yet |"
    assert row in body
    assert body.startswith("## The map") and body.endswith("and so on")


def test_times_are_the_stored_ones(tool, course, monkeypatch):
    tool.update(course, check=False)
    assert "**Time** | an hour |" in nbformat.read(course[1], 4).cells[1].source
    for seconds, told in ((53.3, "about 55 s"), (1.2, "about 5 s")):
        monkeypatch.setattr(tool.readme, "read", lambda _, s=seconds: {"seconds": {"01_a": s}})
        assert tool.update(course, check=False) == course[:2]
        header = nbformat.read(course[1], 4).cells[1].source
        assert header.endswith(f"| **Time** | an hour; running takes {told} |")
        assert f"| patience | {told} |" in nbformat.read(course[0], 4).cells[2].source


def test_stored_outputs_stay_as_fresh_as_they_were(tool, course, tmp_path):
    never = lesson(tool, tmp_path, "03_c", "03 · C", run=False)
    changed = lesson(tool, tmp_path, "04_d", "04 · D")
    edited = nbformat.read(changed, 4)
    edited.cells[2].source += ", edited by hand"
    nbformat.write(edited, changed)
    lessons = [*course, never, changed]
    tool.update(lessons, check=False)

    def fresh(path):
        notebook = nbformat.read(path, 4)
        return notebook.metadata.get("kdlab", {}).get("source") == tool.source_hash(notebook)

    assert [fresh(path) for path in lessons] == [True, True, True, False, False]
