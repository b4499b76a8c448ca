"""What a learner has solved: whose answers are kept, where, and what a broken file does."""

import json
import multiprocessing
import os
import time
from pathlib import Path

import nbformat
import pytest
from filelock import FileLock
from jupyter_client.manager import start_new_kernel
from nbformat.v4 import new_code_cell, new_notebook
from typer.testing import CliRunner

from kdlab import cli, exercises
from kdlab.exercises import Exercise, number
from kdlab.lab import Lab, progress

ROOT = Path(__file__).parents[1]
HINTS = ("first", "second", "third")
LESSON = "01_soft_targets"


def entry(status="right", hints=0, lesson=LESSON):
    return {"lesson": lesson, "status": status, "hints": hints}


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A progress file of the test's own, in a folder that does not exist yet."""
    monkeypatch.setenv("KDLAB_PROGRESS", str(tmp_path / "mine" / "progress.json"))
    monkeypatch.setenv("KDLAB_RECORDS", str(tmp_path / "records"))
    return tmp_path / "mine" / "progress.json"


@pytest.fixture
def live(monkeypatch):
    """What JupyterLab would say of the running cell; a test may add tags."""
    said = {"cellId": "exercise-soften"}
    monkeypatch.setattr(progress, "request", lambda: said)
    return said


@pytest.fixture
def lab(monkeypatch, file):
    """A lesson with one exercise whose answer is 4."""
    exercise = Exercise("four", number(4, close=1), HINTS)
    monkeypatch.setattr(exercises, "find", lambda name: exercise)
    return Lab(LESSON, {"profile": "fast"})


def stored(file):
    return json.loads(file.read_text())["exercises"]


# --- whose answers, and where


def test_the_file_is_in_the_home_folder_unless_moved_or_switched_off(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KDLAB_PROGRESS", raising=False)
    assert progress.path() == tmp_path / ".kdlab" / "progress.json"
    monkeypatch.setenv("KDLAB_PROGRESS", "~/mine.json")
    assert progress.path() == tmp_path / "mine.json"
    for word in ("off", "OFF", " no ", "0"):
        monkeypatch.setenv("KDLAB_PROGRESS", word)
        assert progress.path() is None


def test_only_answers_of_a_person_are_kept(lab, live, file):
    lab.check("four", ...)
    assert not file.exists(), "a placeholder is no answer"
    live["tags"] = ["solution"]
    lab.check("four", 4)
    assert not file.exists(), "a solution cell is not the learner's"
    live["tags"] = ["exercise"]
    lab.check("four", 9)
    lab.check("four", 4)
    assert stored(file) == {"four": entry("right", 1)}
    del live["cellId"]
    lab.check("four", 5)
    file.unlink()
    lab.check("four", 4)
    assert not file.exists(), "nobody ran this"


def test_switched_off_nothing_is_written(lab, live, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KDLAB_PROGRESS", "off")
    lab.check("four", 4)
    assert capsys.readouterr().out == "✓ four: right\n"
    assert not list(tmp_path.rglob("progress*"))


def test_in_a_real_kernel_the_request_decides(file, tmp_path):
    """The same cell, asked for as JupyterLab does, as papermill and nbval do, and as a solution."""
    manager, client = start_new_kernel(kernel_name="python3", extra_arguments=["--log-level=ERROR"])
    source = "lab.check('two to one', 5.77)"

    def run(code, **metadata):
        if not metadata:
            return client.execute_interactive(code, timeout=60, output_hook=said.append)
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}}
        message = client.session.msg("execute_request", content, metadata=metadata)
        client.shell_channel.send(message)
        while client.get_shell_msg(timeout=60)["parent_header"].get("msg_id") != message["msg_id"]:
            pass

    said = []
    try:
        run(f"from kdlab.lab import Lab; lab = Lab({LESSON!r}, {{'profile': 'fast'}})")
        run(source)
        assert "✓ two to one" in "".join(m["content"].get("text", "") for m in said)
        run(source, cellId="solution-ratio", tags=["solution"])
        assert not file.exists()
        run(source, cellId="exercise-ratio", tags=["exercise"])
        assert stored(file) == {"two to one": entry()}
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


# --- what is kept


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        (None, entry("wrong", 1), entry("wrong", 1)),
        (entry("wrong", 2), entry("close", 1), entry("close", 2)),
        (entry("close", 2), entry("wrong", 3), entry("close", 3)),
        (entry("close", 1), entry("right", 0), entry("right", 1)),
        (entry("right", 1), entry("wrong", 3), entry("right", 1)),
        (entry("right", 1), entry("right", 0), entry("right", 1)),
    ],
)
def test_the_best_verdict_stays(file, old, new, kept):
    if old:
        progress.keep(file, "soften", old)
    assert progress.keep(file, "soften", new) == ""
    assert stored(file) == {"soften": kept}


def test_what_is_known_is_not_written_again(file):
    progress.keep(file, "soften", entry())
    os.utime(file, (1, 1))
    progress.keep(file, "soften", entry("wrong", 2))
    assert file.stat().st_mtime == 1


def _solve(file, first, count):
    for n in range(first, first + count):
        progress.keep(file, f"exercise {n}", entry())


def test_two_kernels_at_once_lose_nothing(file):
    fork, count = multiprocessing.get_context("fork"), 60
    kernels = [fork.Process(target=_solve, args=(file, n * count, count)) for n in range(2)]
    for kernel in kernels:
        kernel.start()
    for kernel in kernels:
        kernel.join(60)
    assert [kernel.exitcode for kernel in kernels] == [0, 0]
    assert len(stored(file)) == 2 * count


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"exercises": []}',
        b'{"exercises": {"a": 1}}',
        b'{"exercises": {"a": {"lesson": "x", "status": "perfect", "hints": 0}}}',
        b'{"exercises": {"a": {"lesson": "x", "status": "right", "hints": "0"}}}',
        b'{"exercises": {"a": {"status": "right", "hints": 0}}}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_is_set_aside(lab, live, file, content, capsys):
    file.parent.mkdir()
    for times in (1, 2):
        file.write_bytes(content)
        lab.check("four", 4)
        told = capsys.readouterr().out.splitlines()
        assert told[0] == "✓ four: right"
        assert f"it is now progress.damaged-{times}.json" in told[1]
        assert (file.parent / f"progress.damaged-{times}.json").read_bytes() == content
        assert stored(file) == {"four": entry()}


def test_a_place_that_cannot_be_written_costs_one_line(lab, live, file, capsys):
    file.parent.write_text("a file where a folder should be")
    lab.check("four", 4)
    lab.check("four", 4)
    told = capsys.readouterr().out.splitlines()
    assert [line[:6] for line in told] == ["✓ four", "progre", "✓ four"]
    assert "progress is not kept: FileExistsError" in told[1] and "KDLAB_PROGRESS=off" in told[1]


def test_a_lock_that_is_never_freed_costs_one_line(lab, live, file, monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE", 0.1)
    file.parent.mkdir()
    with FileLock(f"{file}.lock"):
        start = time.monotonic()
        lab.check("four", 4)
    assert time.monotonic() - start < 5 and not file.exists()
    assert "progress is not kept: another kernel holds the file" in capsys.readouterr().out


def test_nothing_but_the_answer_s_verdict_is_in_the_file(lab, live, file):
    lab.check("four", 4)
    assert json.loads(file.read_text()) == {"exercises": {"four": entry()}}


# --- what is shown


@pytest.fixture
def folder(tmp_path):
    """Two lessons: one with two exercises, one in nbgrader's form, and something else."""
    ask = 'lab.check("soften", soften)\nlab.check("two to one", ...)'
    solution = 'lab.check("two to one", 4)'
    for name, sources in {
        "01_a": ["%time", ask, solution],
        "02_b": ['lab.points("it\'s", 1)', "lab.check(name, 2)"],
        "00_none": ["x = 1"],
    }.items():
        nbformat.write(
            new_notebook(cells=[new_code_cell(source) for source in sources]),
            tmp_path / f"{name}.ipynb",
        )
    (tmp_path / "broken.ipynb").write_text("{")
    return tmp_path


def test_the_table_has_a_row_for_each_lesson_with_exercises(folder):
    solved = {
        "two to one": entry("right", 2, "01_a"),
        "it's": entry("close", 1, "02_b"),
        "elsewhere": entry("wrong", 0, "09_z"),
    }
    table = progress.table(solved, folder)
    assert list(table.columns) == ["solved", 1, 2]
    assert {lesson: list(row) for lesson, row in table.iterrows()} == {
        "01_a": ["1 of 2", "– soften", "✓ two to one (2 hints)"],
        "02_b": ["0 of 1", "≈ it's (1 hint)", ""],
        "09_z": ["0 of 1", "✗ elsewhere", ""],
    }
    assert progress.table({}, folder / "nowhere").empty


def test_every_exercise_of_a_lesson_is_known():
    for lesson in sorted((ROOT / "notebooks").glob("*.ipynb")):
        names = progress.exercises_of(lesson)
        assert set(names) <= set(exercises.available())
        assert names or lesson.stem == "00_start_here"


def test_a_lesson_shows_the_table_to_a_person_and_one_line_to_a_machine(
    lab, live, file, folder, monkeypatch, capsys
):
    progress.keep(file, "soften", entry(lesson="01_a"))
    assert lab.progress(folder).loc["01_a", 1] == "✓ soften"
    assert str(file) in capsys.readouterr().out
    file.write_text("{")
    assert lab.progress(folder).loc["01_a", 1] == "– soften"
    assert "progress.damaged-1.json" in capsys.readouterr().out
    monkeypatch.setenv("KDLAB_PROGRESS", "off")
    assert lab.progress(folder) is None and "no progress is kept" in capsys.readouterr().out
    del live["cellId"]
    for value in ("off", str(file)):
        monkeypatch.setenv("KDLAB_PROGRESS", value)
        assert lab.progress(folder) is None
        assert capsys.readouterr().out == progress.HEADLESS + "\n"


def test_the_command_shows_and_deletes(file, folder, monkeypatch):
    def kdlab(*words):
        result = CliRunner().invoke(cli.app, ["progress", *map(str, words)])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.exit_code, " ".join(result.output.split())

    code, told = kdlab("--lessons", folder)
    assert code == 0 and "01_a: 0 of 2 – soften – two to one" in told and "(nothing yet)" in told
    assert not file.parent.exists(), "looking writes nothing"
    progress.keep(file, "two to one", entry("right", 1, "01_a"))
    code, told = kdlab("--lessons", folder)
    assert code == 0 and "01_a: 1 of 2 – soften ✓ two to one (1 hint)" in told
    assert str(file) in told.replace(" ", "")
    code, told = kdlab("--lessons", folder / "nowhere")
    assert code == 1 and "no notebook in" in told
    assert kdlab("--reset")[0] == 0 and not file.exists()
    assert "no such file" in kdlab("--reset")[1]
    file.write_text("{")
    assert "progress.damaged-1.json" in kdlab()[1]
    file.mkdir()
    code, told = kdlab("--reset")
    assert code == 1 and "cannot be used" in told
    monkeypatch.setenv("KDLAB_PROGRESS", "off")
    assert "no progress is kept" in kdlab()[1]
