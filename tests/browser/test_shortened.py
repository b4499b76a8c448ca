"""What a browser test leaves out of a lesson, and what it must not."""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from shortened import explorers, shortened

LESSONS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def lesson(*sources):
    first = new_code_cell("images: int = 9  # how many", metadata={"tags": ["parameters"]})
    return new_notebook(cells=[new_markdown_cell("# A"), first, *map(new_code_cell, sources)])


def left(notebook, **parameters):
    return [cell.source for cell in shortened(notebook, **parameters).cells[2:]]


def test_a_study_goes_with_all_that_reads_its_result():
    cells = [
        "settings = {}\nresults = training.study(settings)\nseeds = 3",
        "table = results.mean()\ndef best():\n    return table.max()",
        "print(f'{best():.1f}', seeds)\nkept = [results for results in settings]",
        "total = 1\nwith quiet():\n    table = 2",
        "total += table",
        "MapsExplorer(settings, total)",
    ]
    assert left(lesson(*cells)) == [
        "settings = {}\nseeds = 3",
        "",
        "kept = [results for results in settings]",
        *cells[3:],
    ]


def test_what_grows_out_of_a_study_goes_too():
    cells = ["n = study()", "m = 1", "m += n", "k = m", "SlopesExplorer()"]
    assert left(lesson(*cells)) == ["", "m = 1", "", "", "SlopesExplorer()"]


def test_names_within_functions_and_lists_are_their_own():
    cells = [
        "x = study()",
        "def f(x):\n    y = x\n    return y",
        "[x for x in f(3)]",
        "AExplorer()",
    ]
    assert left(lesson(*cells)) == ["", *cells[1:]]
    cells[1] = "def f(y):\n    return x + y"
    assert left(lesson(*cells)) == ["", "", "", "AExplorer()"]


def test_all_studies_stay_where_an_explorer_shows_one():
    cells = ["results = study()", "import os", "other = study()", "view = CKAExplorer(results)"]
    assert left(lesson(*cells)) == cells


def test_nothing_stays_after_the_last_use_of_an_explorer():
    cells = ["a = AExplorer()", "a.set(b=1)", "b = 2", "def f():\n    return a.b", "f()", "b = 3"]
    assert left(lesson(*cells)) == cells[:4]
    assert left(lesson(*cells, "print(BExplorer())", "b = 4")) == [*cells, "print(BExplorer())"]


def test_parameters_are_given_like_papermill_gives_them():
    original = lesson("AExplorer(images)")
    assert left(original, images=3, words="a") == ["images = 3\nwords = 'a'", "AExplorer(images)"]
    assert len(original.cells) == 3


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_the_lessons_keep_their_explorers(path):
    notebook = nbformat.read(path, 4)
    short = shortened(notebook)
    made, used = explorers([c.source if c.cell_type == "code" else "" for c in notebook.cells])
    kept, _ = explorers([c.source if c.cell_type == "code" else "" for c in short.cells])
    assert kept == made
    if used:
        assert len(short.cells) == used[-1] + 1 < len(notebook.cells)
