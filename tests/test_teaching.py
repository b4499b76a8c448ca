"""docs/teaching.md: its tables come from lessons and stored times, its commands and links exist."""

import re
import sys
from pathlib import Path

import pytest
import typer.main

from kdlab import cli

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")


@pytest.fixture
def teaching(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    for name in ("readme", "teaching"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import teaching

    return teaching


def test_tables_are_fresh(teaching):
    again = "run `.venv/bin/python tools/teaching.py` and commit the result"
    assert teaching.render(TEXT) == TEXT, again
    assert teaching.main(["--check"]) == 0


def test_another_time_is_noticed(teaching, monkeypatch):
    stored = teaching.read("times")
    stored["seconds"]["00_start_here"] += 100
    monkeypatch.setattr(teaching, "read", lambda name: stored)
    changed = teaching.render(TEXT)
    assert changed != TEXT
    assert changed.count(f"{stored['seconds']['00_start_here']:.0f} s") == 3, "once in each route"
    assert teaching.main(["--check"]) == 1


def test_another_exercise_is_noticed(teaching, monkeypatch):
    monkeypatch.setattr(teaching, "exercises_of", lambda path: ["a new one"])
    assert "a new one" in teaching.render(TEXT)


def test_every_lesson_is_on_the_longest_route(teaching):
    steps = [*teaching.FIRST_DAY, *teaching.SECOND_DAY]
    assert {path.stem for path in teaching.LESSONS} == {stem for stem, _, _ in steps if stem}


@pytest.mark.parametrize(
    ("step", "complaint"),
    [(("09_none", "", 0), "there is no lesson '09_none'"), (("", "", 5), "takes 95 minutes")],
)
def test_a_route_that_cannot_be_is_refused(teaching, monkeypatch, step, complaint):
    steps, minutes = teaching.ROUTES["90 minutes"]
    monkeypatch.setitem(teaching.ROUTES, "90 minutes", ([*steps, step], minutes))
    with pytest.raises(ValueError, match=complaint):
        teaching.routes()


def test_a_page_without_its_marks_is_refused(teaching):
    with pytest.raises(ValueError, match="0 places for lessons, expected one"):
        teaching.render(TEXT.replace("<!-- /lessons -->", ""))


def test_links_and_commands_exist():
    targets = set(re.findall(r"\]\(([^)#:]+)\)", TEXT))
    assert "troubleshooting.md" in targets and "../notebooks/01_soft_targets.ipynb" in targets
    assert [target for target in targets if not (ROOT / "docs" / target).exists()] == []
    commands = typer.main.get_command(cli.app).commands
    for name, options in re.findall(r"\bkdlab (\w+)([^`\n]*)", TEXT):
        known = {option for p in commands[name].params for option in p.opts}
        assert set(re.findall(r"(?<!\w)--[\w-]+", options)) <= known, f"kdlab {name}{options}"


def test_no_measured_number_is_typed():
    typed = re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", "", TEXT, flags=re.S)
    assert re.findall(r"\d+(?:\.\d+)?\s*(?:s|seconds|%)(?![\w.])", typed) == []
