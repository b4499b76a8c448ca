"""Sweeps with real kernels: side by side, ended with the sweep, on a cluster that is hurt."""

import asyncio
import json
import os
import signal
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Empty

import nbformat
import pytest
from bulk_hands import assert_tidy, forking, in_a_fork, kdlab, notebook_at, state, wait_for

from kdlab.cli import cluster, engine, grid, runs, sweep
from kdlab.lab import MIME

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
    (report,) = (tmp_path / "o").glob("*/tiny-*.json")
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


def test_a_run_that_kills_every_worker_fails_and_a_lost_scheduler_ends_the_sweep(
    tmp_path, monkeypatch
):
    """A stand-in for the cluster: the real one would take four dead workers to say this."""
    distributed = pytest.importorskip("distributed")
    lesson, fates = notebook_at(tmp_path / "tiny.ipynb"), []

    class Future:
        def __init__(self, fate):
            self.fate = fate

        def result(self):
            raise self.fate

        def done(self):
            return False

    class Cluster:
        loop = cancelled = None

        def submit(self, function, run, order, wait, pure):
            assert function is sweep.perform and not pure
            return Future(fates.pop())

        def cancel(self, futures):
            self.cancelled = futures

    monkeypatch.setattr(distributed, "as_completed", lambda futures, loop: futures)
    client = Cluster()
    planned = grid.plan(lesson, runs.read_notebook(lesson), {}, 1, tmp_path / "out")
    make = cluster.run_there(client, sweep.Order())
    fates.append(distributed.KilledWorker("perform", None, 3))
    (outcome,) = make(planned, True)
    assert outcome.status == runs.FAILED and outcome.reason == "its worker died 4 times"
    assert runs.facts_of(planned[0].folder)["reason"] == outcome.reason
    fates.append(CancelledError())
    with pytest.raises(OSError, match="the scheduler is gone"):
        list(make(planned, True))
    assert len(client.cancelled) == 1


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

    parent = engine.PapermillNotebookClient
    monkeypatch.setattr(parent, "start_new_kernel_client", lambda self: Connected())
    connected = engine.Client.start_new_kernel_client(object.__new__(engine.Client))
    assert asyncio.run(connected.shell_channel.get_msg(timeout=60)) == "reply"
    assert Channel.asked == 3
    Channel.asked = -(10**9)
    with pytest.raises(Empty):
        asyncio.run(connected.shell_channel.get_msg(timeout=0.01))
