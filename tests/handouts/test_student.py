"""Hand-outs: nothing of a solution is left, what is needed stands in, nbgrader's cells."""

import contextlib
import io
import json
import re
import sys

import nbformat
import pytest
from cells import LESSONS, lines, secrets, tagged, tags
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from kdlab.cli import student
from kdlab.exercises import StandIn, find, is_placeholder
from kdlab.lab import Lab

lessons = pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)


def code(source, *tags, name=None):
    cell = new_code_cell(source, outputs=[new_output("stream", text="said")], execution_count=3)
    cell.metadata["tags"] = list(tags)
    cell["id"] = name or cell["id"]
    return cell


ASK = 'def soften(logits, T):\n    return ...\n\n\nlab.check("soften", soften)'
ANSWER = (
    "import torch as t\n\n\ndef soften(logits, T):\n    return t.softmax(logits / T, dim=-1)\n\n\n"
    'lab.check("soften", soften)'
)
NUMBER, FOUND = 'lab.check("two to one", ...)', 'x = 4 / 0.6931\nlab.check("two to one", x)'
FIRST = 'profile: str = "fast"  # fast or full\nseed: int = 0  # of all'
START = 'import torch\nfrom kdlab import lab\nlab = lab.start(\n    globals(), lesson="01_tiny"\n)'


def tiny(*more):
    """A lesson with two exercises, of which a later cell needs the first."""
    note = new_markdown_cell("Ask who has seen softmax.")
    note.metadata["tags"] = ["instructor"]
    text = new_markdown_cell("# Tiny\n\n[next](01b_more.ipynb#top) and [docs](x.md)")
    cells = [
        text, note, code(FIRST, "parameters"), code(START, name="start"),
        code(ASK, "exercise", name="ask"), code(ANSWER, "solution"),
        code("%time\nprint(soften(torch.zeros(1, 2), 1.0).sum().item())", name="use"),
        code(NUMBER, "exercise", name="number"), code(FOUND, "solution"),
        code("secret = 1", "instructor"), *more,
    ]  # fmt: skip
    return new_notebook(cells=cells, metadata={"kdlab": {"source": "x"}})


def run(notebook):
    """Run the code cells here, in one namespace; gives all that they print."""
    names, said = {}, io.StringIO()
    with contextlib.redirect_stdout(said):
        for cell in notebook.cells:
            if cell.cell_type == "code":
                exec(re.sub(r"^%.*", "", cell.source, flags=re.M), names)
    return said.getvalue().splitlines()[1:]  # the first line is the headline


# --- every lesson


@lessons
def test_no_solution_is_left_in_any_lesson(lesson, tmp_path):
    notebook = nbformat.read(lesson, 4)
    (written,) = student.write([lesson], tmp_path)
    text, made = written.read_text(), nbformat.read(written, 4)
    assert [line for line in secrets(notebook) if json.dumps(line)[1:-1] in text] == []
    assert [line for line in secrets(notebook) if line in text] == []
    for cell in tagged(notebook, "solution"):
        assert lines([cell]) & secrets(notebook), f"nothing in {cell.id} would be missed"
    assert not any(tags(cell) & {"solution", "instructor"} for cell in made.cells)
    code_cells = [cell for cell in made.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code_cells)
    asked, given = (tagged(n, "exercise") for n in (notebook, made))
    assert [c.source for c in given] == [c.source for c in asked]
    assert all("..." in cell.source for cell in given)


@lessons
def test_exercises_are_not_yet_answered_and_solutions_pass(lesson, tmp_path):
    """Exercise and solution cells with what the lesson imports; nothing is trained."""
    notebook = nbformat.read(lesson, 4)
    start = next(n for n, c in enumerate(notebook.cells) if student.START.search(c.source))
    begin = [c for c in notebook.cells[: start + 1] if c.cell_type == "code"]
    for kind, mark in (("exercise", "…"), ("solution", "✓")):
        cells = tagged(notebook, kind)
        said = run(new_notebook(cells=[*begin, *cells]))
        said = [line for line in said if line[:1] in "…✗≈✓"]
        assert len(said) == len(cells) and all(line.startswith(mark) for line in said), said


# --- what a hand-out is


def test_what_a_later_cell_needs_stands_in_until_it_is_right():
    handed = student.hand_out(tiny())
    assert not any(tags(cell) & {"solution", "instructor"} for cell in handed.cells)
    assert "secret" not in nbformat.writes(handed) and "Ask who" not in nbformat.writes(handed)
    stand_in = handed.cells[[c.id for c in handed.cells].index("ask") + 1]
    assert stand_in.id == "stand-in-ask"
    assert 'soften = lab.stand_in("soften", soften)' in stand_in.source
    assert sum("stand_in" in cell.source for cell in handed.cells) == 1
    unsolved = run(handed)
    assert unsolved[:3] == [
        "… soften: not yet: replace the ...",
        "until soften is ✓, the package's own function stands in for yours",
        "1.0",
    ]
    asked = next(cell for cell in handed.cells if cell.id == "ask")
    asked.source = asked.source.replace("...", "torch.softmax(logits / T, dim=-1)")
    assert run(handed)[:2] == ["✓ soften: right", "1.0"]
    asked.source = asked.source.replace("/ T", "* T")
    assert run(handed)[2] == "1.0", "a wrong answer does not stop the lesson, either"


def test_a_stand_in_is_no_answer(capsys):
    lab = Lab("tiny", {"profile": "fast"})
    ours = lab.stand_in("soften", lambda logits, T: ...)
    assert isinstance(ours, StandIn) and is_placeholder(ours)
    assert lab.points("soften", ours) == 0.0
    assert lab.stand_in("soften", ours).function is find("soften").reference
    right = find("soften").reference
    assert lab.stand_in("soften", right) is right
    with pytest.raises(ValueError, match="did you mean 'soften'"):
        lab.stand_in("sofen", right)
    with pytest.raises(ValueError, match="'two to one' compares with no function"):
        lab.stand_in("two to one", 4)


def test_points_say_nothing_on_stderr(capsys):
    def noisy(logits, T):
        print("careful", file=sys.stderr)
        return find("soften").reference(logits, T)

    lab = Lab("tiny", {"profile": "fast"})
    assert lab.points("soften", noisy) == 1.0
    assert lab.points("two to one", 5.6) == 0.5 and lab.points("two to one", 1) == 0.0
    assert lab.points("two to one", ...) == 0.0 and lab.points("nobody", 1) == 0.0
    assert capsys.readouterr().err == ""


def test_links_lead_only_to_what_is_handed_out(tmp_path):
    there, alone = tmp_path / "there", tmp_path / "alone"
    path = tmp_path / "01_tiny.ipynb"
    nbformat.write(tiny(), path)
    nbformat.write(new_notebook(), tmp_path / "01b_more.ipynb")
    student.write([path, tmp_path / "01b_more.ipynb"], there)
    student.write([path], alone)
    first = [nbformat.read(p / path.name, 4).cells[0].source for p in (there, alone)]
    assert "[next](01b_more.ipynb#top) and [docs](x.md)" in first[0]
    assert "next and [docs](x.md)" in first[1]


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ([code(ASK.replace("...", "logits"), "exercise", name="q")], "'q' has no placeholder"),
        (
            [code("y = 3", "solution"), code("def f():\n    return y", name="late")],
            "cell 'late' needs y, which only a solution defines",
        ),
    ],
    ids=["placeholder", "name"],
)
def test_a_lesson_that_could_not_be_handed_out_is_refused(more, complaint, tmp_path):
    path = tmp_path / "01_tiny.ipynb"
    nbformat.write(tiny(*more), path)
    with pytest.raises(ValueError, match=f"01_tiny.ipynb: .*{complaint}"):
        student.write([path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "bound", "taken"),
    [
        ("x = y", {"x"}, {"y"}),
        ("import a.b as c, d.e", {"c", "d"}, set()),
        ("def f(p):\n    return p + q", {"f"}, {"q"}),
        ("z = [k * w for k in range(n)]", {"z"}, {"w", "n", "range"}),
        ("x = 1\nprint(x)", {"x"}, {"print"}),
        ("%time y\n!ls\nv", set(), {"v"}),
    ],
)
def test_names_that_a_cell_binds_and_takes(source, bound, taken):
    assert student.defined(source) == bound and student.needed(source) == taken


def test_the_command_refuses_to_overwrite(kdlab, tmp_path):
    source, out = tmp_path / "notebooks", tmp_path / "out"
    source.mkdir()
    nbformat.write(tiny(), source / "01_tiny.ipynb")
    before = (source / "01_tiny.ipynb").read_bytes()
    words = ("student", out, "--lessons", source)
    code, told = kdlab(*words)
    assert code == 0 and "1 lesson without solutions; the teachers are found" in told
    handed = (out / "01_tiny.ipynb").read_bytes()
    assert kdlab(*words)[0] == 0, "the same once more"
    (out / "01_tiny.ipynb").write_text("a learner's work")
    code, told = kdlab(*words)
    assert code == 1 and "other 01_tiny.ipynb; --force overwrites" in told
    assert (out / "01_tiny.ipynb").read_text() == "a learner's work"
    assert kdlab(*words, "--force")[0] == 0 and (out / "01_tiny.ipynb").read_bytes() == handed
    for wrong, complaint in [
        (("student", source, "--lessons", source), "holds the lessons themselves"),
        (("student", out, "07", "--lessons", source), "no such notebook"),
        (("student", out, "--lessons", tmp_path / "none"), "no notebook in"),
        (("student", out, "--lessons", source, "--nbgrader"), "holds a hand-out; choose another"),
        (("student", tmp_path / "twice", "--lessons", out), "it is a hand-out already"),
        (("student", "01", "01", "--lessons", source), "'01' is a lesson's name; the folder comes"),
    ]:
        code, told = kdlab(*wrong)
        assert code == 1 and complaint in told, told
    assert (source / "01_tiny.ipynb").read_bytes() == before


# --- nbgrader


def test_nbgrader_s_cells():
    made = {cell.id: cell for cell in student.for_nbgrader(tiny()).cells}
    roles = {name: cell.metadata.get("nbgrader", {}) for name, cell in made.items()}
    assert made["ask"].source == (
        "def soften(logits, T):\n    return ...\n\n### BEGIN SOLUTION\nimport torch as t\n\n\n"
        "def soften(logits, T):\n    return t.softmax(logits / T, dim=-1)\n### END SOLUTION"
    )
    assert made["number"].source == (
        "answer_two_to_one = ...\n\n### BEGIN SOLUTION\nx = 4 / 0.6931\nanswer_two_to_one = x\n"
        "### END SOLUTION"
    )
    assert made["points-number"].source == 'lab.points("two to one", answer_two_to_one)'
    names = list(made)
    assert names.index("points-ask") == names.index("ask") + 1 == names.index("stand-in-ask") - 1
    assert roles["ask"]["solution"] and not roles["ask"]["grade"]
    assert roles["points-ask"]["grade"] and roles["points-ask"]["points"] == 1
    assert roles["start"]["locked"] and roles["points-ask"]["locked"] and not roles["use"]
    with pytest.raises(ValueError, match="'last' has no lab\\.check"):
        student.for_nbgrader(tiny(code(NUMBER, "exercise", name="last")))
