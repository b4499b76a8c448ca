"""Hand-outs under nbgrader: full points for the solutions, none without."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from cells import FOLDER, secrets, tags

from kdlab.cli import student


def solved(notebook, lesson):
    """A learner's notebook in which each placeholder is followed by the lesson's answer."""
    answers = {c.id: c.source for c in student.for_nbgrader(lesson).cells}
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("solution"):
            cell.source = answers[cell.id].replace("### BEGIN SOLUTION", "# my answer")
            cell.source = cell.source.replace("### END SOLUTION", "")
    return notebook


@pytest.mark.notebook
def test_nbgrader_gives_full_points_and_none(kdlab, tmp_path):
    """The exercises of lesson 01 without the training between them."""
    name = "01_soft_targets"
    lesson = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    few = {"parameters", "exercise", "solution"}
    lesson.cells = [c for c in lesson.cells if tags(c) & few or student.START.search(c.source)]
    (tmp_path / "notebooks").mkdir()
    nbformat.write(lesson, tmp_path / "notebooks" / f"{name}.ipynb")
    course = tmp_path / "course"
    words = ("student", course, "--nbgrader", "--lessons", tmp_path / "notebooks")
    assert "nbgrader generate_assignment" in kdlab(*words)[1]

    def nbgrader(*words):
        command = [sys.executable, "-m", "nbgrader", *words, "--create"]
        private = {"HOME": str(tmp_path), "JUPYTER_CONFIG_DIR": str(tmp_path / "config")}
        programs = (str(Path(sys.executable).parent), os.environ["PATH"])
        private["PATH"] = os.pathsep.join(programs)  # nbgrader calls alembic by its name
        done = subprocess.run(
            command, cwd=course, env=os.environ | private, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]

    nbgrader("generate_assignment", name)
    released = course / "release" / name / f"{name}.ipynb"
    text = released.read_text()
    assert [line for line in secrets(lesson) if json.dumps(line)[1:-1] in text] == []
    assert "SOLUTION" not in text and text.count("replace the ... above") == 4
    release = nbformat.read(released, 4)
    for person, handed_in in [("solved", solved(release, lesson)), ("unsolved", None)]:
        folder = course / "submitted" / person / name
        folder.mkdir(parents=True)
        nbformat.write(handed_in or nbformat.read(released, 4), folder / f"{name}.ipynb")
    nbgrader("autograde", name)

    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as book:
        scores = {s.student.id: (s.score, s.max_score) for s in book.assignment_submissions(name)}
    assert scores == {"solved": (4.0, 4.0), "unsolved": (0.0, 4.0)}
    assert not (tmp_path / ".kdlab").exists() and not (tmp_path / "progress.json").exists()
