"""Interrupted and resumed is the same as never interrupted, to the last bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import Adapted, interrupt_at, make_cnn, make_data, make_mlp, same, stopping_is_expected

from kdlab.datasets.views import Augmentation
from kdlab.distillers import SoftTargets
from kdlab.training import fit
from kdlab.training.checkpoint import load_checkpoint, save_checkpoint

DATA = make_data()
TEACHER = make_cnn(DATA, seed=9)
SHORT = {"epochs": 3, "batch_size": 24, "lr": 0.05}


def make_distiller():
    return Adapted() + SoftTargets()


def train(path, distiller=None, callbacks=(), **options):
    model = make_cnn(DATA, dropout=0.5)
    run = fit(
        model,
        DATA,
        distiller or make_distiller(),
        teacher=TEACHER,
        checkpoint=path,
        callbacks=callbacks,
        **SHORT | options,
    )
    return model.state_dict(), run


def stored(path) -> dict:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("options", [{}, {"augment": Augmentation(1), "optimizer": "adamw"}])
@pytest.mark.parametrize(
    "moments",
    [[(0, 1)], [(1, 2)], [(0, 4)], [(2, 3)], [(0, 2), (0, 3), (1, 4), (2, 1)]],
    ids=["first step", "mid-epoch", "end of epoch", "last epoch", "four times"],
)
def test_resumed_is_uninterrupted(tmp_path, moments, options):
    whole, run = train(tmp_path / "whole.pt", **options)
    distiller, steps = make_distiller(), 0  # one object for all calls, as in a notebook
    with stopping_is_expected():
        for moment in moments:
            _, part = train(tmp_path / "parts.pt", distiller, [interrupt_at(*moment)], **options)
            assert part.interrupted
            steps += part.steps
    torch.rand(3)
    resumed, rest = train(tmp_path / "parts.pt", **options)  # a new object, a new session
    assert not rest.interrupted and steps + rest.steps == run.steps == 12
    assert same(resumed, whole)
    assert rest.history.rows == run.history.rows
    assert same(stored(tmp_path / "parts.pt"), stored(tmp_path / "whole.pt"))


def test_without_the_random_state_it_would_differ(tmp_path, monkeypatch):
    """The comparison above notices a single thing that is not restored."""
    whole, _ = train(tmp_path / "whole.pt")
    with stopping_is_expected():
        train(tmp_path / "parts.pt", callbacks=[interrupt_at(1, 2)])
    monkeypatch.setattr(torch, "set_rng_state", lambda state: None)
    assert not same(train(tmp_path / "parts.pt")[0], whole)


def test_a_finished_run_is_read_not_repeated(tmp_path):
    whole, run = train(tmp_path / "a.pt")
    again, none = train(tmp_path / "a.pt")
    assert none.steps == 0 and same(again, whole) and none.history.rows == run.history.rows


@pytest.mark.parametrize(
    ("named", "change"),
    [
        ("epochs: 3 stored, 5 now", {"epochs": 5}),
        ("lr: 0.05 stored, 0.1 now", {"lr": 0.1}),
        ("batch_size", {"batch_size": 12}),
        ("seed: 0 stored, 1 now", {"seed": 1}),
        ("optimizer: 'sgd' stored, 'adamw' now", {"optimizer": "adamw"}),
        ("weight_decay", {"weight_decay": 0.0}),
        ("augment", {"augment": Augmentation(1)}),
        ("distiller", {"distiller": SoftTargets(2.0)}),
        ("teacher", {"teacher": make_cnn(DATA, seed=8)}),
        ("model", {"model": make_mlp(DATA)}),
        ("data", {"data": make_data(seed=1)}),
        ("data", {"data": DATA.with_labels(40)}),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path, named, change):
    usual = {"distiller": SoftTargets(4.0), "teacher": TEACHER, "model": make_cnn(DATA)}
    usual |= {"data": DATA, "checkpoint": tmp_path / "a.pt", **SHORT}
    fit(**usual)
    before = (tmp_path / "a.pt").read_bytes()
    with pytest.raises(ValueError, match=f"^checkpoint: a.pt belongs to another run.*{named}"):
        fit(**usual | change)
    assert (tmp_path / "a.pt").read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1],
        lambda whole: b"",
        lambda whole: b"garbage" * 100,
        lambda whole: bytes(len(whole)),
    ],
    ids=["half", "a byte less", "empty", "garbage", "zeros"],
)
def test_a_damaged_checkpoint_is_refused_with_advice(tmp_path, damage):
    path = tmp_path / "a.pt"
    train(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"^checkpoint: a.pt is damaged .*delete it to start anew"):
        train(path)


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path(tmp_path / "sprung").touch, ()

    torch.save({"identity": {}, "trap": Trap()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="damaged"):
        train(tmp_path / "a.pt")
    assert not (tmp_path / "sprung").exists()


def refuse(*args, **options):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("how", ["write_bytes", "replace"])
def test_training_survives_a_disk_that_refuses(tmp_path, monkeypatch, how):
    path = tmp_path / "a.pt"
    monkeypatch.setattr(Path, how, refuse)
    with pytest.warns(UserWarning, match="checkpoint: .*/a.pt could not be written .*goes on"):
        weights, run = train(path)
    assert not run.interrupted and len(run.history) == 3
    with pytest.warns() as said:
        train(path, callbacks=[interrupt_at(1, 2)])
    monkeypatch.undo()
    assert "a checkpoint=... that can be written" in str(said[-1].message)
    assert same(weights, train(None)[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "why"), [("file/a.pt", "exists|Not a dir"), (".", "it is a folder"), ("locked", "No")]
)
def test_what_can_never_be_written_is_refused_before_training(tmp_path, monkeypatch, place, why):
    (tmp_path / "file").touch()
    if place == "locked":
        monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    moments = []
    path = tmp_path / place
    with pytest.raises(ValueError, match=rf"^checkpoint: {path} cannot be written \(.*({why})"):
        train(path, callbacks=[moments.append])
    assert not moments


LIMITED = """
import resource, signal, sys, warnings
sys.path.insert(0, sys.argv[1])
import torch
from kdlab.training.checkpoint import try_to_save
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
warnings.simplefilter("error")
try:
    try_to_save(sys.argv[2], {"identity": {}, "weights": torch.zeros(10_000)})
except UserWarning as warning:
    print(warning)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on the size of a file")
def test_a_write_that_really_fails_halfway_is_a_warning(tmp_path):
    command = [sys.executable, "-c", LIMITED, Path(__file__).parent, tmp_path / "a.pt"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "a.pt could not be written (File too large)" in said.stdout, said.stderr
    assert list(tmp_path.iterdir()) == []


# --- killed while writing -----------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
quiet = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def in_a_child(work) -> int:
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # the parent's OpenMP threads did not come along
            work()
        finally:
            os._exit(0)
    return child


def die(*args, **options):
    os.kill(os.getpid(), signal.SIGKILL)


def half(self, data):
    with self.open("wb") as file:
        file.write(bytes(data)[: len(data) // 2])
    die()


@needs_fork
@quiet
@pytest.mark.parametrize(
    ("name", "act", "left"),
    [("write_bytes", half, 1), ("chmod", die, 1), ("replace", die, 1), ("unlink", die, 2)],
)
@pytest.mark.parametrize("first", [True, False])
def test_killed_at_each_stage_of_a_write(tmp_path, name, act, left, first):
    path = tmp_path / "a.pt"
    if not first:
        save_checkpoint(path, {"identity": {}, "number": 1})

    def work():
        setattr(Path, name, act)
        save_checkpoint(path, {"identity": {}, "number": 2})

    _, status = os.waitpid(in_a_child(work), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    if left == 2 or not first:
        assert load_checkpoint(path, {})["number"] == (2 if left == 2 else 1)
    else:
        assert not path.exists()


@needs_fork
@quiet
def test_killed_at_random_moments(tmp_path):
    path, loads = tmp_path / "a.pt", 0
    state = {"identity": {"run": 1}, "weights": torch.ones(300_000)}

    def work():
        for number in range(100_000):
            save_checkpoint(path, state | {"number": torch.full((100_000,), number)})

    for attempt in range(8):
        child = in_a_child(work)
        before = path.stat().st_mtime_ns if path.exists() else 0
        patience = time.monotonic() + 30  # the first attempt may die before its first file
        while attempt and time.monotonic() < patience:
            if path.exists() and path.stat().st_mtime_ns != before:
                break
            time.sleep(0.001)
        time.sleep(0.004 + 0.017 * attempt)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if path.exists():
            number = load_checkpoint(path, {"run": 1})["number"]
            loads += bool((number == number[0]).all())
    assert loads >= 5


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import torch, warnings
torch.set_num_threads(int(sys.argv[3]))
warnings.simplefilter("ignore")
import test_checkpoint as here
def tell(moment):
    print(moment.epoch, moment.step, flush=True)
    if (moment.epoch, moment.step) == (1, 2):
        sys.stdin.readline()
try:
    run = here.train(sys.argv[2], callbacks=[tell])[1]
except SystemExit:
    print("tidied", flush=True)
    raise
print("interrupted" if run.interrupted else "finished", run.steps, flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(
    ("number", "told", "code", "lost"),
    [
        (signal.SIGINT, "interrupted 6\n", 0, 0),
        (signal.SIGTERM, "tidied\n", 143, 0),
        (signal.SIGKILL, "", -9, 2),
    ],
    ids=["SIGINT", "SIGTERM", "SIGKILL"],
)
def test_a_process_stopped_in_mid_epoch_goes_on(tmp_path, number, told, code, lost):
    path = tmp_path / "a.pt"
    here, threads = str(Path(__file__).parent), str(torch.get_num_threads())
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, here, path, threads],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout
        for line in process.stdout:
            if line == "1 2\n":
                break
        process.send_signal(number)
        time.sleep(0.1)  # let it arrive before the step ends
        said, _ = process.communicate("go\n", timeout=120)
    assert said == told and process.returncode == code
    resumed, run = train(path)
    assert run.steps == 6 + lost
    whole, unbroken = train(None)
    assert same(resumed, whole) and run.history.rows == unbroken.history.rows
