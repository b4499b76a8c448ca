"""Sweeps: what is refused and kept; no kill, no full disk and no rival sweep loses a run."""

import itertools
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from queue import Empty

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from typer.testing import CliRunner

from kdlab import cli
from kdlab.cli import engine, grid, running, runs, sweep
from kdlab.lab import MIME

PARAMETERS = """\
profile: str = "fast"  # fast or full
seed: int = 0  # of everything random
temperature: float = 4  # softens the teacher
hidden: list[int] = [32]  # widths
dataset: str = "glyphs"  # any set, or a path"""
# a stand-in for kdlab.lab, whose import takes seconds
START = """\
import json, os, time
from pathlib import Path
from IPython.display import display
class lab:
    start = staticmethod(lambda *a, **k: None)
    def record(name, value):
        display({"application/vnd.kdlab.record+json": {"name": name, "value": value}}, raw=True)
lab.start(globals(), temperature=(1, 20), hidden=(1, 256), dataset=None)"""
forking = pytest.mark.skipif(sys.platform != "linux", reason="forks with threads, as Linux can")


def notebook_at(path, *body):
    first = new_code_cell(PARAMETERS)
    first.metadata["tags"] = ["parameters"]
    nbformat.write(new_notebook(cells=[first, *map(new_code_cell, [START, *body])]), path)
    return path


@pytest.fixture
def lesson(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return notebook_at(tmp_path / "tiny.ipynb", "pass")


def kdlab(*words):
    result = CliRunner().invoke(cli.app, list(map(str, words)))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, re.sub(r"\s+", " ", result.output)


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """Runs take no kernel: they leave a notebook and a line in a log, and fail at 3 degrees.

    ``quick()`` returns the settings that were begun; ``quick.wait`` is what a run takes, in
    seconds, and ``quick.size`` of a notebook, in bytes.
    """
    log = tmp_path / "begun.log"

    def begun():
        return log.read_text().splitlines() if log.exists() else []

    def stand_in(path, output, values, **options):
        with log.open("a") as file:
            file.write(json.dumps(values, sort_keys=True) + "\n")
        entry = {MIME: {"name": "softness", "value": values.get("temperature", 4.0)}}
        half = begun.size // 2
        with output.open("w") as file:
            cell = new_code_cell("x" * half, outputs=[new_output("display_data", entry)])
            text = nbformat.writes(new_notebook(cells=[cell]))
            file.write(text[:half])
            file.flush()
            time.sleep(begun.wait * random.random())
            file.write(text[half:])
        if values.get("temperature") == 3:
            raise running.LessonFailed(f"too cold, see {output}", "too cold")

    begun.wait, begun.size = 0.0, 0
    monkeypatch.setattr(running, "run_lesson", stand_in)
    return begun


def in_a_fork(*words):
    """Start the command in a process of its own, which shares what is imported and patched."""

    def call():
        os.setpgid(0, 0)
        cli.app(list(map(str, words)))

    process = multiprocessing.get_context("fork").Process(target=call)
    process.start()
    return process


def state(out):
    """What is kept: name → facts; every folder must be whole."""
    kept = {}
    for folder in (path for path in out.glob("*") if path.name != runs.WORK):
        assert re.fullmatch(r"[0-9a-f]{12}", folder.name) and folder.is_dir()
        kept[folder.name] = runs.facts_of(folder)
        assert kept[folder.name], f"{folder} is not whole"
        nbformat.read(folder / "tiny.ipynb", 4)
    return kept


def assert_tidy(out):
    assert {path.suffix for path in (out / runs.WORK).iterdir()} <= {".lock"}


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["-g", "temprature=1,2"], "unknown parameter 'temprature' (did you mean 'temperature'?)"),
        (["-g", "temperature=1,x"], "temperature = 'x' is a str; expected float"),
        (["-g", "temperature=1,50"], "temperature = 50.0 is out of range; expected 1 to 20"),
        (["-g", "temperature=1,1.0"], "temperature=1.0 comes twice"),
        (["-g", "temperature=1,,2"], "has an empty value"),
        (["-g", "temperature="], "has an empty value"),
        (["-g", "temperature"], "expected NAME=VALUE"),
        (["-g", "temperature=1", "-g", "temperature=2"], "'temperature' came twice"),
        (["-g", "hidden=[8],[8,999]"], "out of range"),
        (["-g", "../temperature=1"], "expected NAME=VALUE"),
        (["-g", "dataset=digits,../secret"], "dataset = '../secret' leaves its folder"),
        (["-g", r"dataset=data\..\..\secret"], "leaves its folder"),
        (["-g", "dataset=.."], "leaves its folder"),
        (["-g", "profile=huge"], "expected one of fast, full"),
        (["-g", "profile=fast", "--profile", "full"], "not both"),
        (["-g", "seed=1,2", "--seeds", 2], "not both"),
        (["-g", f"seed={','.join(map(str, range(400)))}", "-g", "temperature="
          + ",".join(f"{1 + n / 100}" for n in range(400))], "160000 runs came"),
        (["--jobs", 2, "--scheduler", "tcp://nowhere:8786"], "leave --jobs out"),
    ],
)  # fmt: skip
def test_wrong_grids_end_before_anything_runs(lesson, quick, words, complaint):
    code, told = kdlab("sweep", lesson, *words, "-o", "out")
    assert code == 1 and complaint in told, told
    assert quick() == [] and not Path("out").exists()


def test_without_dask_or_without_a_seed_it_says_so(lesson, quick, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    code, told = kdlab("sweep", lesson, "--scheduler", "local")
    assert code == 1 and "pip install 'kdlab[bulk]'" in told
    bare = nbformat.read(lesson, 4)
    bare.cells[0].source = 'profile: str = "fast"'
    nbformat.write(bare, lesson)
    assert "unknown parameter 'seed' (--seeds sets it)" in kdlab("sweep", lesson, "--seeds", 2)[1]
    assert quick() == []


def planned(lesson, seeds=None, **given):
    return grid.plan(lesson, runs.read_notebook(lesson), given, seeds, Path("out"))


def test_the_grid_is_typed_and_whole(lesson):
    made = planned(lesson, seeds=2, temperature="1,2.5", hidden="[64,32],[8]")
    assert len({run.name for run in made}) == len(made) == 8
    assert [run.given for run in made[:3]] == [
        {"temperature": 1.0, "hidden": [64, 32], "seed": 0},
        {"temperature": 1.0, "hidden": [64, 32], "seed": 1},
        {"temperature": 1.0, "hidden": [8], "seed": 0},
    ]
    assert made[0].values["dataset"] == "glyphs" and type(made[0].given["temperature"]) is float
    assert planned(lesson)[0].given == {}


def test_a_setting_has_one_name_however_it_is_typed(lesson):
    (as_it_is,), (typed,) = planned(lesson), planned(lesson, temperature="4", dataset="glyphs")
    (other_way,) = planned(lesson, dataset="glyphs", temperature="4.0")
    assert as_it_is.name == typed.name == other_way.name == "8a8922f1eeb0"
    assert planned(lesson, temperature="5")[0].name != typed.name
    renamed = lesson.rename(lesson.with_name("other.ipynb"))
    assert planned(renamed)[0].name != typed.name


def test_no_value_says_where_a_run_is_kept(lesson, quick):
    code, told = kdlab(
        "sweep", lesson, "-g", "dataset=/etc/passwd,a/b,$HOME,{seed},~,a b", "-o", "out"
    )
    assert code == 0 and len(state(Path("out"))) == len(quick()) == 6, told


def test_a_failed_run_is_kept_and_stops_nothing(lesson, quick):
    words = ["sweep", lesson, "-g", "temperature=2,3,5", "--seeds", 2, "-o", "out"]
    code, told = kdlab(*words)
    assert code == 1 and "out: 6 runs: 4 ran, 0 were there already, 2 failed" in told
    assert "(temperature=3.0, seed=1): too cold" in told and "6 of 6" in told and "s left" in told
    failed = [facts for facts in state(Path("out")).values() if facts["status"] == runs.FAILED]
    assert {facts["reason"] for facts in failed} == {"too cold"} and len(failed) == 2
    for facts in failed:  # the path that it names is where the notebook is now
        assert Path(facts["error"].split()[-1]).is_file()
    code, told = kdlab(*words)
    assert code == 1 and len(quick()) == 6
    assert "0 ran, 4 were there already, 2 failed (2 of them before; --retry makes" in told
    code, told = kdlab(*words, "--retry")
    assert code == 1 and len(quick()) == 8 and quick()[6:] == sorted(set(quick()[6:]))
    assert all('"temperature": 3.0' in line for line in quick()[6:])
    assert_tidy(Path("out"))


def test_nothing_runs_twice_unless_asked(lesson, quick):
    words = ["sweep", lesson, "-g", "temperature=2,5", "-o", "out"]
    assert "2 ran, 0 were there already, 0 failed" in kdlab(*words)[1]
    before = state(Path("out"))
    code, told = kdlab(*words)
    assert code == 0 and "0 ran, 2 were there already, 0 failed" in told
    assert "1 ran, 2 were" in kdlab("sweep", lesson, "-g", "temperature=2,5,7", "-o", "out")[1]
    assert len(quick()) == 3 and before.items() <= state(Path("out")).items()
    assert "2 ran, 0 were" in kdlab(*words, "--again")[1]
    after = state(Path("out"))
    assert len(quick()) == 5 and len(after) == 3
    assert all(after[name]["started"] > before[name]["started"] for name in before)
    assert_tidy(Path("out"))


def test_a_changed_notebook_is_told(lesson, quick):
    kdlab("sweep", lesson, "-o", "out")
    assert "has changed" not in kdlab("sweep", lesson, "-o", "out")[1]
    notebook_at(lesson, "1 + 1")
    code, told = kdlab("sweep", lesson, "-o", "out")
    assert code == 0 and "the notebook has changed since 1 of the runs; --again" in told
    assert len(quick()) == 1
    kdlab("sweep", lesson, "-o", "out", "--again")
    assert "has changed" not in kdlab("sweep", lesson, "-o", "out")[1]


def test_threads_are_divided(lesson, quick, monkeypatch):
    seen = []
    monkeypatch.setattr("kdlab.cli.doctor.usable_cores", lambda: 8)
    monkeypatch.setattr(running, "run_lesson", lambda *a, threads, **k: seen.append(threads))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for number, jobs in enumerate((1, 3, 8, 20)):
        kdlab("sweep", lesson, "--jobs", jobs, "-o", f"out{number}")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    kdlab("sweep", lesson, "--jobs", 1, "-o", "out")
    assert seen == [8, 2, 1, 1, 2]


def test_what_no_notebook_raised_fails_a_run_and_not_the_sweep(lesson, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("Kernel didn't respond")

    monkeypatch.setattr(running, "run_lesson", broken)
    code, told = kdlab("sweep", lesson, "--seeds", 2, "-o", "out")
    assert code == 1 and "2 failed" in told and "RuntimeError: Kernel didn't respond" in told


@forking
def test_killed_at_any_moment_it_goes_on(lesson, quick):
    quick.wait, dice, kills, whole = 0.05, random.Random(0), 0, {}
    out = Path("out").absolute()
    words = ["sweep", lesson, "-g", "temperature=1,2,3,4,5", "--seeds", 8, "-o", out, "--jobs", 3]
    for _ in range(8):
        process = in_a_fork(*words)
        process.join(0.05 + 0.25 * dice.random())
        kills += process.is_alive()
        process.kill()
        process.join()
        before, whole = whole, state(out)
        assert before.items() <= whole.items(), "a finished run was lost or made again"
    assert kills >= 3, "it was always done before the kill"
    quick.wait = 0.0
    code, told = kdlab(*words)
    kept = state(out)
    assert code == 1 and whole.items() <= kept.items() and len(kept) == 40
    assert f"{40 - len(whole)} ran" in told or whole
    assert sum(facts["status"] == runs.FAILED for facts in kept.values()) == 8
    assert_tidy(out)


@forking
@pytest.mark.parametrize("step", range(1, 7))
@pytest.mark.parametrize("again", [False, True])
def test_killed_between_any_two_steps_of_keeping(lesson, quick, monkeypatch, step, again):
    out = Path("out").absolute()
    words = ["sweep", lesson, "-o", out]
    if again:
        kdlab(*words)
    before, steps = state(out), itertools.count(1)

    def dying(original):
        def call(*arguments, **options):
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        return call

    places = [(Path, "write_text"), (runs, "_flush"), (Path, "rename"), (runs.shutil, "rmtree")]
    with monkeypatch.context() as patch:
        for owner, name in places:
            patch.setattr(owner, name, dying(getattr(owner, name)))
        process = in_a_fork(*words, *["--again"] * again)
        process.join()
    # the facts; two files on the disk; the old folder away, if there is one; the new; the old gone
    assert (process.exitcode == -signal.SIGKILL) == (step <= 5 + again)
    begun, complete = len(quick()), step > 1
    assert kdlab(*words)[0] == 0
    assert len(quick()) == begun + (not complete and not again), "complete, and made again"
    after = state(out)
    assert len(after) == 1 and (after != before) == (complete or not again)
    assert_tidy(out)


@forking
def test_two_sweeps_share_a_folder(lesson, quick):
    quick.wait, out = 0.1, Path("out").absolute()
    words = ["sweep", lesson, "--seeds", 30, "-o", out, "--jobs", 2]
    first, second, third = (in_a_fork(*words) for _ in range(3))
    time.sleep(0.3)
    third.kill()
    for process in (first, second, third):
        process.join(60)
    assert [first.exitcode, second.exitcode, third.exitcode] == [0, 0, -signal.SIGKILL]
    assert len(state(out)) == 30
    once = len(quick()) - len(set(quick()))
    assert once <= 2, "only what the killed one had begun is made again"
    assert_tidy(out)


@forking
def test_two_sweeps_make_each_run_once_and_wait_for_each_other_at_the_end(lesson, quick):
    quick.wait, out = 0.3, Path("out").absolute()
    rival = in_a_fork("sweep", lesson, "--seeds", 6, "-o", out, "--jobs", 2)
    wait_for(quick)
    code, told = kdlab("sweep", lesson, "--seeds", 6, "-o", out, "--jobs", 2)
    rival.join(60)
    assert code == rival.exitcode == 0 and len(quick()) == len(set(quick())) == len(state(out)) == 6
    ran, there = map(int, re.findall(r"(\d+) ran, (\d+) were", told)[0])
    assert 1 <= ran <= 5 and ran + there == 6


@forking
def test_an_interrupt_ends_it_at_once(lesson, quick):
    quick.wait, out = 1000, Path("out").absolute()
    random.seed(1)  # not near zero
    process = in_a_fork("sweep", lesson, "-o", out)
    wait_for(quick)
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    assert process.exitcode == 130
    quick.wait = 0
    assert kdlab("sweep", lesson, "-o", out)[0] == 0
    assert_tidy(out)


@pytest.fixture
def small_disk(tmp_path):
    """A folder with room for about 300 kB, and a function that makes more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no mount: {error}")
    if done.returncode:
        pytest.skip(f"no small disk without root: {done.stderr.strip()}")
    yield (
        folder,
        lambda: subprocess.run(["mount", "-o", "remount,size=9m", str(folder)], check=True),
    )
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_it_and_breaks_nothing(lesson, quick, small_disk):
    out, more = small_disk
    quick.size = 60_000
    words = ["sweep", lesson, "--seeds", 12, "-o", out, "--jobs", 2]
    code, told = kdlab(*words)
    assert code == 1 and "No space left" in told and "the same command goes on" in told
    fit = state(out)
    assert 1 <= len(fit) < 12
    assert_tidy(out)
    more()
    code, told = kdlab(*words)
    assert code == 0 and f"{12 - len(fit)} ran, {len(fit)} were there already" in told
    assert fit.items() <= state(out).items() and len(state(out)) == 12


def test_a_folder_that_cannot_be_made_is_told(lesson, quick):
    Path("out").write_text("in the way")
    code, told = kdlab("sweep", lesson, "-o", "out")
    assert code == 1 and "Not a directory" in told and quick() == []


REAL = """\
here = {"cwd": os.getcwd(), **{k: os.environ.get(k) for k in NAMES}}
lab.record("here", {**here, "softness": temperature})
if temperature == 3:
    1 / 0"""


def test_kernels_side_by_side_have_a_folder_and_threads_of_their_own(tmp_path, monkeypatch):
    names = ("KDLAB_RECORDS", "KDLAB_THREADS", "OMP_NUM_THREADS")
    lesson = notebook_at(tmp_path / "tiny.ipynb", REAL.replace("NAMES", repr(names)))
    monkeypatch.chdir("/")
    out = tmp_path / "{temperature} and {x}"  # papermill formats paths; here these are names
    code, told = kdlab("sweep", lesson, "-g", "temperature=2,3", "-o", out, "--jobs", 2)
    assert code == 1 and "ZeroDivisionError: division by zero" in told and "1 ran, 0 were" in told
    for name, facts in state(out).items():
        cells = nbformat.read(out / name / "tiny.ipynb", 4).cells
        (here,) = [
            o.data[MIME]["value"] for c in cells for o in c.get("outputs", []) if "data" in o
        ]
        assert here["cwd"] == str(tmp_path) and here["softness"] == facts["values"]["temperature"]
        assert here["KDLAB_RECORDS"].startswith(str(out / runs.WORK / name))
        assert here["KDLAB_THREADS"] == here["OMP_NUM_THREADS"] == str(facts["threads"])
    assert Path.cwd() == Path("/") and "KDLAB_RECORDS" not in os.environ


LESSON = """\
from kdlab import lab
lab = lab.start(globals(), lesson="tiny", temperature=(1, 20), hidden=(1, 256), dataset=None)
lab.record("softness", temperature + seed)"""


def test_a_lesson_leaves_its_record(tmp_path):
    lesson = notebook_at(tmp_path / "tiny.ipynb")
    notebook = nbformat.read(lesson, 4)
    notebook.cells[1].source = LESSON
    nbformat.write(notebook, lesson)
    code, told = kdlab("sweep", lesson, "-g", "temperature=2", "-g", "seed=3", "-o", tmp_path / "o")
    assert code == 0, told
    (report,) = (tmp_path / "o").glob("*/tiny.json")
    assert json.loads(report.read_text())["records"] == [{"name": "softness", "value": 5.0}]


SLOW = """\
Path(os.environ["MARKS"], f"{seed}-{os.getpid()}-{os.getppid()}").touch()
time.sleep(0 if Path(os.environ["MARKS"], "go").exists() else 1000)"""


@pytest.fixture
def marks(tmp_path, monkeypatch):
    """Kernels leave "seed-pid-parent" here and sleep, unless there is a file "go"."""
    folder = tmp_path / "marks"
    folder.mkdir()
    monkeypatch.setenv("MARKS", str(folder))
    return folder


def pids(marks, part):
    return [int(mark.name.split("-")[part]) for mark in marks.glob("*-*")]


def is_alive(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    return False


@forking
def test_kernels_end_with_the_sweep(tmp_path, marks):
    lesson, out = notebook_at(tmp_path / "tiny.ipynb", SLOW), tmp_path / "out"
    words = ["sweep", lesson, "--seeds", 2, "-o", out, "--jobs", 2]
    process = in_a_fork(*words)
    wait_for(lambda: len(pids(marks, 1)) == 2)
    process.kill()
    process.join()
    wait_for(lambda: not any(map(is_alive, pids(marks, 1))))
    assert state(out) == {}
    (marks / "go").touch()
    code, told = kdlab(*words)
    assert code == 0 and "2 ran, 0 were there already, 0 failed" in told
    assert_tidy(out)


def test_a_killed_worker_of_a_cluster_loses_no_run(tmp_path, marks):
    distributed = pytest.importorskip("distributed")
    lesson, out = notebook_at(tmp_path / "tiny.ipynb", SLOW), tmp_path / "out"
    workers = {"n_workers": 2, "threads_per_worker": 1}
    with distributed.LocalCluster(**workers, dashboard_address=None, silence_logs=50) as cluster:
        from concurrent.futures import ThreadPoolExecutor

        words = ["sweep", lesson, "--seeds", 3, "-o", out, "--scheduler", cluster.scheduler_address]
        with ThreadPoolExecutor(1) as pool:
            told = pool.submit(kdlab, *words)
            wait_for(lambda: len(pids(marks, 1)) == 2)
            (marks / "go").touch()
            victims = {seed: pid for seed, pid in zip(pids(marks, 0), pids(marks, 1), strict=True)}
            os.kill(pids(marks, 2)[0], signal.SIGKILL)
            wait_for(lambda: len(pids(marks, 0)) >= 4)  # its run has begun again
            for pid in victims.values():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)  # the other kernel: a run that failed
            code, words_told = told.result(120)
    assert code == 1 and "3 runs: 2 ran, 0 were there already, 1 failed" in words_told, words_told
    assert "the kernel died" in words_told
    assert len(state(out)) == 3
    assert_tidy(out)


def test_a_reply_that_woke_nobody_is_found(monkeypatch):
    class Channel:
        asked = 0

        async def get_msg(self, timeout):
            assert timeout <= engine.POLL
            Channel.asked += 1
            if Channel.asked < 3:
                raise Empty
            return "reply"

    class Connected:
        shell_channel = Channel()

    import asyncio

    parent = engine.PapermillNotebookClient
    monkeypatch.setattr(parent, "start_new_kernel_client", lambda self: Connected())
    connected = engine.Client.start_new_kernel_client(object.__new__(engine.Client))
    assert asyncio.run(connected.shell_channel.get_msg(timeout=60)) == "reply"
    assert Channel.asked == 3
    Channel.asked = -(10**9)
    with pytest.raises(Empty):
        asyncio.run(connected.shell_channel.get_msg(timeout=0.01))


def test_an_order_repeats_nothing_of_its_own():
    order = sweep.Order(again=True)
    assert order.redo({"status": runs.DONE, "sweep": "another"})
    assert not order.redo({"status": runs.DONE, "sweep": order.sweep})
