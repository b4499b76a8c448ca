"""Each rule of tools/lint_notebooks.py finds what it is for, and nothing in a sound lesson."""

import copy
import json
import re

import lint_notebooks as tool
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

HEADER = """\
| you will be able to | you need | time  | runs on |
|---------------------|----------|-------|---------|
| learn               | Python   | short | CPU     |"""
FILLER = "Words about teachers and students which say why before they say how. " * 4


def text(source):
    return new_markdown_cell(source)


def code(source, *tags, ran=True):
    cell = new_code_cell(source, execution_count=1 if ran else None)
    cell.metadata["tags"] = list(tags)
    if "solution" in tags:
        cell.metadata["jupyter"] = {"source_hidden": True}
    return cell


def sound_lesson():
    return new_notebook(
        cells=[
            text("# Soft targets\nWhat a teacher knows."),
            text(HEADER),
            code('profile: str = "fast"  # fast or full\nseed: int = 0  # of all', "parameters"),
            code("from kdlab import lab\nlab = lab.start(globals())"),
            *(text(FILLER) for _ in range(14)),
            text(
                "## 1.2 Softness\nSee [the papers](https://example.org/1.5), `T = 2.5`, $T = 0.5$."
            ),
            code("answer = 1", "exercise"),
            code('lab.check("one", answer)'),
            code("answer = 2", "solution"),
            code('lab.claim("Soft targets help", 1, at_least=0)'),
            text("## Take-aways\n" + FILLER),
            text("## Common mistakes\nNone here within a 95 % interval."),
            text("## Think further\nMore."),
            text("## Papers\nHinton, Vinyals, Dean, 2015, arXiv:1503.02531, 93.2 % there."),
        ]
    )


@pytest.fixture
def lint(tmp_path):
    def lint_notebook(notebook, name="01_soft_targets.ipynb"):
        path = tmp_path / name
        path.write_text(json.dumps(notebook), encoding="utf-8")  # nbformat would mend the ids
        return tool.lint(path)

    return lint_notebook


def at(position):
    """An edit that hands one cell to a change."""
    return lambda change: lambda notebook: change(notebook.cells[position])


def source(position, new):
    return at(position)(lambda cell: cell.__setitem__("source", new))


def code_in(position, line):
    """Put one more line into a code cell."""
    return at(position)(lambda c: c.__setitem__("source", f"{line}\n{c['source']}"))


def unrun(cell):
    cell["execution_count"] = None


def to_front(notebook):
    notebook.cells.insert(0, notebook.cells.pop(3))


def silence(notebook):
    for cell in notebook.cells[4:18]:
        cell["source"] = "Short."


def append(cell):
    return lambda notebook: notebook.cells.append(cell)


def drop(position):
    return lambda notebook: notebook.cells.pop(position)


def repeat_id(notebook):
    notebook.cells[1]["id"] = notebook.cells[0]["id"]


BROKEN = {
    "two titles": (append(text("# Another")), "title: 2"),
    "no title": (source(0, "Soft targets"), "title: 0"),
    "header field": (source(1, HEADER.replace("runs on", "where")), "header: .*'runs on'"),
    "header missing": (drop(1), "header: "),
    "no parameters": (drop(2), "parameters: 0 cells"),
    "untyped": (source(2, "seed = 0  # of all"), "parameters: 'seed = 0  # of all' is not"),
    "derived": (source(2, "n: int = 2 * 3  # six"), "parameters: .* is not"),
    "no help": (source(2, "seed: int = 0"), "parameters: .* has no help"),
    "equals": (source(2, "seed: int = 0  # any, 0 = first"), "parameters: .* has `=`"),
    "no start": (source(3, "import kdlab"), "start: 0 calls"),
    "start without globals": (source(3, "lab.start()"), "start: 0 calls"),
    "start first": (
        lambda nb: nb.cells.insert(0, nb.cells.pop(3)),
        "start: lab.start comes before",
    ),
    "too few cells": (lambda nb: nb.cells.__delitem__(slice(5, 15)), "size: 17 cells"),
    "too many cells": (lambda nb: nb.cells.extend(text("More.") for _ in range(30)), "size: 57"),
    "long cell": (source(19, "x = 1\n" * 21), "size: cell 19 has 21 lines"),
    "heavy": (source(4, FILLER * 1100), "size: .* kB"),
    "few words": (
        lambda nb: [c.__setitem__("source", "Short.") for c in nb.cells[4:18]],
        "words: ",
    ),
    "many words": (source(4, FILLER * 30), "words: "),
    "percent": (source(4, FILLER + "It reaches 93 % of it."), "numbers: cell 4 has '93 %'"),
    "decimal": (source(4, FILLER + "Accuracy rises by 0.42 here."), "numbers: cell 4 has '0.42'"),
    "no claim": (drop(22), "claims: "),
    "no exercise": (drop(19), "exercises: no cell"),
    "no solution": (drop(21), "exercises: cell 19 has no cell tagged `solution`"),
    "open solution": (
        at(21)(lambda c: c["metadata"].pop("jupyter")),
        "exercises: solution 21 stands open",
    ),
    "shown solution": (
        at(21)(lambda c: c["metadata"]["jupyter"].update(source_hidden=False)),
        "exercises: solution 21 stands open",
    ),
    "no check": (drop(20), "exercises: cell 19 is not followed by lab.check"),
    "interact": (
        code_in(22, "interact(f, x=1)"),
        "forbidden: cell 22 calls interact",
    ),
    "Output": (
        code_in(22, "widgets.Output()"),
        "forbidden: cell 22 calls Output",
    ),
    "clear": (
        code_in(22, "clear_output()"),
        "forbidden: cell 22 calls clear_output",
    ),
    "pyplot": (code_in(22, "plt.plot([1])"), "forbidden: cell 22 uses plt"),
    "warnings": (
        code_in(22, "%time\nwarnings.filterwarnings('ignore')"),
        "forbidden: cell 22 calls filterwarnings",
    ),
    "never run": (
        at(22)(lambda c: c.__setitem__("execution_count", None)),
        "executed: code cell 22",
    ),
    "empty": (source(22, ""), "executed: code cell 22 is empty"),
    "ids": (repeat_id, "ids: "),
    "closing": (drop(24), "closing: no heading “Common mistakes”"),
    "dead link": (source(4, FILLER + "[next](02_none.ipynb)"), "links: cell 4 points at 02_none"),
}


def test_a_sound_lesson_has_nothing_wrong(lint):
    assert lint(sound_lesson()) == []


@pytest.mark.parametrize("name", BROKEN)
def test_what_a_rule_is_for_is_found(lint, name):
    edit, complaint = BROKEN[name]
    notebook = copy.deepcopy(sound_lesson())
    edit(notebook)
    found = lint(notebook)
    assert any(re.match(complaint, problem) for problem in found), found


def test_every_rule_has_a_broken_lesson():
    covered = {complaint.split(":")[0] for _, complaint in BROKEN.values()}
    assert covered == {rule.__name__ for rule in tool.RULES}


def test_the_tour_and_the_clinic_may_be_shorter(lint):
    short = sound_lesson()
    del short.cells[5:13]
    assert lint(short, "01b_broken_distillers.ipynb") == []
    assert lint(short, "02_others.ipynb") != []


def test_the_command_prints_and_fails(lint, tmp_path, capsys):
    notebook = sound_lesson()
    lint(notebook)
    assert tool.main([str(tmp_path / "01_soft_targets.ipynb")]) == 0
    notebook.cells.pop(22)
    lint(notebook)
    assert tool.main([str(tmp_path / "01_soft_targets.ipynb")]) == 1
    assert "claims" in capsys.readouterr().out
