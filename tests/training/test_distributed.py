"""Two processes under torchrun: the same result as one, agreement on all, and a clear end."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from tiny import same

from kdlab.training.device import pick_device
from kdlab.training.distributed import ALONE, ENVIRONMENT, TIMEOUT, UNSHARED, join

HERE = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
FINISHED = ["dropout", "dropout_masks", "resumed", "odd_buffers", "refusals"]
PATIENCE = 300  # seconds; a busy machine takes a minute

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and gloo")


@contextlib.contextmanager
def start(
    folder: Path, *names: str, options: Sequence[str] = (), **more: str
) -> "Iterator[subprocess.Popen[str]]":
    """Start two ranks that make these runs one after another; ``more`` is for the environment."""
    variables = {k: v for k, v in os.environ.items() if k not in ENVIRONMENT}
    variables |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", TIMEOUT: "100"} | more
    process = subprocess.Popen(
        [*TORCHRUN, *options, "ranks.py", folder, *names],
        cwd=HERE,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()  # torchrun then ends its ranks
            process.communicate()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two ranks left the results of all runs that come to an end."""
    target = tmp_path_factory.mktemp("ranks")
    with start(target, *[run.__name__ for run in ranks.SAME], *FINISHED) as process:
        said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert "Warning" not in said, said  # the one of an interrupt is caught
    return target


@pytest.fixture
def found(folder):
    """Reads what a rank found in a run."""

    def read(name: str, rank: int) -> dict[str, Any]:
        return torch.load(folder / name / f"found-{rank}.pt", weights_only=True)

    return read


def gap(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The largest difference between two runs, in weights, buffers and history."""
    assert a["weights"].keys() == b["weights"].keys()
    assert [row.keys() for row in a["history"]] == [row.keys() for row in b["history"]]
    pairs = [(a["weights"][part].double(), b["weights"][part].double()) for part in a["weights"]]
    gaps = [float((mine - theirs).abs().max()) for mine, theirs in pairs]
    for mine, theirs in zip(a["history"], b["history"], strict=True):
        gaps += [abs(mine[name] - theirs[name]) for name in mine]
    return max(gaps)


@pytest.mark.parametrize("name", [run.__name__ for run in ranks.SAME])
def test_two_ranks_do_what_one_process_does(found, tmp_path, name):
    one, first, second = ranks.result(name, tmp_path), found(name, 0), found(name, 1)
    assert first["facts"]["ranks"] == 2 and "ranks" not in one["facts"]
    assert gap(first, one) < 3e-6
    assert gap(first, second) == 0 and first["history"] == second["history"]
    assert first["steps"] == one["steps"] == 6
    assert first["facts"]["micro_batch"] == one["facts"]["micro_batch"]
    assert any("regressors" in part for part in first["weights"]) == (name == "hints")


@pytest.mark.parametrize(("name", "views"), [("soft", 2), ("stored", 1)])
def test_each_view_of_an_image_is_asked_about_once(found, tmp_path, name, views):
    asked = [found(name, rank)["facts"]["asked"] for rank in (0, 1)]
    look = 50 if name == "soft" else 0  # at all of so few, before: are they finite?
    assert asked == [25 * views + look] * 2
    assert ranks.result(name, tmp_path)["facts"]["asked"] == 50 * views + look


def test_stored_answers_are_one_file_that_every_rank_then_reads(found, folder):
    assert len(list((folder / "stored" / "cache").iterdir())) == 1
    assert [found("stored", rank)["facts"]["asked again"] for rank in (0, 1)] == [0, 0]


def test_each_rank_drops_out_for_itself(found):
    first, second = (found("dropout_masks", rank)["facts"]["masks"] for rank in (0, 1))
    assert first.shape == second.shape == (6, 7, 4)
    assert all((a != b).any() for a, b in zip(first, second, strict=True))
    assert all((a != b).any() for a, b in itertools.pairwise(first))


def test_interrupted_and_resumed_is_uninterrupted_to_the_last_bit(found):
    for rank in (0, 1):
        run, whole = found("resumed", rank), found("dropout", rank)
        assert same(run["weights"], whole["weights"]) and run["history"] == whole["history"]
        assert run["facts"]["stopped"] == (143, 5, 4)
    assert gap(found("dropout", 0), found("dropout", 1)) == 0


def test_buffers_of_any_kind(found):
    for rank in (0, 1):
        weights = found("odd_buffers", rank)["weights"]
        assert weights["wave"].tolist() == [3 + 4j] * 2 and len(weights["graph"]) == 3
        assert weights["conjugate"].tolist() == [3 - 4j] * 2


def test_rank_0_alone_writes_and_speaks(found, folder):
    assert [path.name for path in (folder / "resumed").glob("resumed*")] == ["resumed-0.pt"]
    assert [len(found("resumed", rank)["facts"]["said"]) for rank in (0, 1)] == [1, 0]


def test_one_process_goes_on_from_the_checkpoint_of_two(found, folder):
    there = folder / "resumed" / "resumed-0.pt"
    run = ranks.dropout(folder, checkpoint=there)
    assert run.steps == 0 and run.history.rows == found("resumed", 0)["history"]
    assert same(dict(run.model.state_dict()), dict(found("resumed", 0)["weights"]))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("small", "batch_size: 1 images came for 2 ranks, expected at least one for each"),
        ("memory", "distiller: Contrastive remembers each image"),
        ("rate", "rank 1 was told something else than rank 0 (lr: 1.1 there, 0.1 on rank 0)"),
        ("data", "rank 1 was told something else than rank 0 (data: "),
        ("centre", "distiller: centre is not the same on all 2 ranks, each of which sees"),
        (
            "checkpoint",
            "checkpoint: refused-0.pt belongs to another run (lr: 0.05 stored, 0.5 now)",
        ),
    ],
)
def test_every_rank_refuses_for_the_same_reason(found, name, said):
    for rank in (0, 1):
        assert found("refusals", rank)["facts"]["said"][name].startswith(said)


def test_after_refusals_the_ranks_are_still_together(found):
    assert gap(found("refusals", 0), found("labels", 0)) == 0


def processes(process: "subprocess.Popen[str]", folder: Path) -> dict[int, int]:
    """Rank → process number, once each is in its second epoch; the next call waits for others."""
    until = time.monotonic() + PATIENCE
    marks = [folder / "endless" / f"running-{rank}" for rank in (0, 1)]
    while not all(mark.exists() and mark.read_text() for mark in marks):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    found = {rank: int(mark.read_text()) for rank, mark in enumerate(marks)}
    for mark in marks:
        mark.unlink()
    return found


def kept(folder: Path) -> list[dict[str, Any]]:
    """The history in the checkpoint."""
    return torch.load(folder / "endless" / "endless.pt", weights_only=True)["history"]


def test_a_rank_that_is_killed_ends_the_job_which_names_it_and_can_go_on(tmp_path):
    with start(tmp_path, "endless") as process:
        os.kill(processes(process, tmp_path)[1], signal.SIGKILL)
        said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "RuntimeError: rank 1 of 2 no longer answered, so rank 0 ends too" in said
    assert "rank 0 of 2" not in said
    rows = kept(tmp_path)
    assert len(rows) >= 1
    restarts = {"options": ["--max-restarts=2"], UNSHARED: "1"}
    with start(tmp_path, "endless", **restarts) as process:
        for rank, number in ((1, signal.SIGKILL), (0, signal.SIGTERM)):
            os.kill(processes(process, tmp_path)[rank], number)
        processes(process, tmp_path)  # torchrun has started them twice more
        process.send_signal(signal.SIGINT)  # as Ctrl-C does; torchrun hands it on
        said, _ = process.communicate(timeout=PATIENCE)
    assert said.count("UserWarning: stopped in epoch") == 2, said  # by SIGTERM and SIGINT
    assert "done endless 0 True" in said and "done endless 1 True" in said, said
    found = torch.load(tmp_path / "endless" / "found-0.pt", weights_only=True)
    assert found["history"][: len(rows)] == rows and len(found["history"]) > len(rows)


def test_without_torchrun_nothing_is_shared(monkeypatch):
    cpu = pick_device("cpu")
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    assert join(cpu) == (ALONE, cpu)
    monkeypatch.setenv("WORLD_SIZE", "8")  # SLURM's neighbours set such names for other reasons
    assert join(cpu) == (ALONE, cpu)
    for name, value in zip(ENVIRONMENT, ("0", "1", "localhost", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert join(cpu) == (ALONE, cpu)
    assert not torch.distributed.is_initialized()


def test_a_senseless_timeout_is_refused_at_once(monkeypatch):
    for name, value in zip(ENVIRONMENT, ("0", "2", "localhost", "1"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(TIMEOUT, "soon")
    with pytest.raises(ValueError, match=r"^KDLAB_RANK_TIMEOUT: 'soon' came, expected seconds"):
        join(pick_device("cpu"))
    with pytest.raises(ValueError, match=r"^device: 'mps' came under torchrun"):
        join(torch.device("mps"))


def test_restarts_that_would_look_for_the_dead_are_refused(monkeypatch):
    for name, value in zip(ENVIRONMENT, ("0", "2", "localhost", "1"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(ValueError, match=rf"^--max-restarts: 3 came, .* set {UNSHARED}=1"):
        join(pick_device("cpu"))
