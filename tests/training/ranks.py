"""What the tests of several ranks run: alike in one process and under torchrun.

torchrun --standalone --nproc-per-node=2 ranks.py FOLDER NAME...
"""

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny import Adapted, Readable, make_cnn, make_data, make_mlp
from torch import nn

from kdlab.datasets.views import Augmentation
from kdlab.distillers import (
    Contrastive,
    Gated,
    Hints,
    JacobianMatching,
    Labels,
    MutualLearning,
    SoftTargets,
)
from kdlab.distillers.gates import RandomGate
from kdlab.training import Run, TeacherOutputs, fit, stored_teacher_outputs

DATA = make_data(50)
SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 15, "lr": 0.05}  # shares of 7 and 8
VIEWS = {"augment": Augmentation(1), "views": 2}


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def mlp(**options: Any) -> nn.Module:
    return make_mlp(DATA, **options)


def labels(folder: Path) -> Run:
    return fit(mlp(), DATA, optimizer="adamw", **SHORT)


def soft(folder: Path) -> Run:
    """Cached answers; and rank 0's start is everybody's."""
    teacher = Readable(DATA)
    run = fit(mlp(seed=rank()), DATA, SoftTargets(), teacher=teacher, **VIEWS, **SHORT)
    run.facts["asked"] = teacher.images
    return run


def stored(folder: Path) -> Run:
    teacher = Readable(DATA)
    outputs = stored_teacher_outputs(folder / "cache", teacher, DATA)
    first = teacher.images
    again = stored_teacher_outputs(folder / "cache", teacher, DATA)
    assert isinstance(again, TeacherOutputs) and torch.equal(again.below, outputs.below)
    run = fit(mlp(), DATA, SoftTargets(), teacher=teacher, teacher_outputs=again, **SHORT)
    run.facts["asked"], run.facts["asked again"] = first, teacher.images - first
    return run


def hints(folder: Path) -> Run:
    """An adapter, a teacher whose layers are remembered, a gate with a bool buffer, measures."""
    method = Gated(SoftTargets(), RandomGate(0.5, fresh=False)) + Hints("layers.0", weight=1.0)
    teacher = mlp(seed=9, hidden=(20,))
    run = fit(mlp(), DATA, method, teacher=teacher, **SHORT)
    run.facts["method"] = method.state_dict()
    return run


def hints_alone(folder: Path) -> Run:
    """The classifier gets no gradient and has to stay as it is, weight decay or not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="distiller: Hints alone")
        return fit(mlp(), DATA, Hints("layers.0", 1.0), teacher=mlp(seed=9, hidden=(20,)), **SHORT)


def batch_norm(folder: Path) -> Run:
    model = make_cnn(DATA)
    model.get_buffer("1.running_mean").fill_(rank())  # rank 0's buffers are everybody's, too
    return fit(model, DATA, Adapted(), teacher=make_cnn(DATA, 9), **VIEWS, **SHORT)


def mutual(folder: Path) -> Run:
    """Two networks, one of them the method's, with batch norms in both."""
    method = MutualLearning()
    run = fit(make_cnn(DATA), DATA, method, **SHORT)
    run.facts["method"] = method.state_dict()
    return run


def slopes(folder: Path) -> Run:
    """Gradients of gradients, through a batch norm; its signs take turns, so shares are even."""
    method = SoftTargets() + JacobianMatching(0.1)
    return fit(make_cnn(DATA), DATA, method, teacher=mlp(seed=9), **SHORT | {"batch_size": 16})


def live(folder: Path) -> Run:
    options = {"augment": Augmentation(1, noise=0.1), "validate": False}
    return fit(mlp(), DATA, SoftTargets(), teacher=mlp(seed=9), **options, **SHORT)


def dropout(folder: Path, **options: Any) -> Run:
    model, method = make_cnn(DATA, dropout=0.5), Adapted() + SoftTargets()
    return fit(model, DATA, method, teacher=make_cnn(DATA, 9), **SHORT | {"epochs": 3} | options)


def dropout_masks(folder: Path) -> Run:
    """What dropout drops in seven images of each share, step by step."""
    masks = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Dropout(0.5))
    model[2].register_forward_hook(lambda layer, _, out: masks.append(out[:7] == 0))
    run = fit(model, DATA, validate=False, **SHORT)
    run.facts["masks"] = torch.stack([mask for mask in masks if len(mask) == 7 and mask.any()])
    return run


def resumed(folder: Path) -> Run:
    """Rank 1 alone is to end, all end after the same step; then they go on."""
    path = folder / f"resumed-{rank()}.pt"  # rank 1 has to get it from rank 0
    steps, ended = [], None

    def interrupt(moment: Any) -> None:
        steps.append(moment.step)
        if rank() == 1 and (moment.epoch, moment.step) == (1, 2):
            signal.raise_signal(signal.SIGTERM)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            dropout(folder, checkpoint=path, callbacks=[interrupt])
        except SystemExit as end:
            ended = end.code
    run = dropout(folder, checkpoint=path)
    run.facts["stopped"] = (ended, len(steps), run.steps)
    run.facts["said"] = [str(w.message) for w in said if "stopped in epoch" in str(w.message)]
    return run


class Centred(SoftTargets):
    """Keeps a running mean of what it saw, which is another on each rank."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(()))

    def forward(self, student: Any, teacher: Any, targets: torch.Tensor) -> dict[str, Any]:
        self.centre.lerp_(teacher.logits.mean(), 0.1)
        return super().forward(student, teacher, targets)


def refusals(folder: Path) -> Run:
    """Errors that every rank must raise alike, after which the next run is as ever."""
    path = folder / f"refused-{rank()}.pt"
    fit(mlp(), DATA, checkpoint=path, **SHORT)
    memory = Labels() + Contrastive("layers.0")
    attempts: dict[str, Callable[[], Run]] = {
        "small": lambda: fit(mlp(), DATA, epochs=1, batch_size=1),
        "memory": lambda: fit(mlp(), DATA, memory, teacher=mlp(seed=9), **SHORT),
        "rate": lambda: fit(mlp(), DATA, epochs=1, batch_size=15, lr=0.1 + rank()),
        "data": lambda: fit(mlp(), make_data(50, seed=rank()), **SHORT),
        "centre": lambda: fit(mlp(), DATA, Centred(), teacher=mlp(seed=9), **SHORT),
        "checkpoint": lambda: fit(mlp(), DATA, checkpoint=path, **SHORT | {"lr": 0.5}),
    }
    said = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except ValueError as error:
            said[name] = str(error)
    run = labels(folder)
    run.facts["said"] = said
    return run


def compiled(folder: Path) -> Run:
    return fit(make_cnn(DATA), DATA, compile=True, **SHORT)


def endless(folder: Path) -> Run:
    """Epoch after epoch, until somebody ends it; after the first it says which process it is."""
    mark, start = folder / f"running-{rank()}", []
    mark.unlink(missing_ok=True)

    def tell(moment: Any) -> None:
        start.append(moment.epoch)
        if moment.epoch == start[0] + 1 and moment.step == 1:
            mark.write_text(f"{os.getpid()}")
        time.sleep(0.01)

    return dropout(folder, checkpoint=folder / "endless.pt", epochs=100_000, callbacks=[tell])


SAME = [labels, soft, stored, hints, hints_alone, batch_norm, mutual, slopes, live]
OTHERS = [dropout, dropout_masks, resumed, refusals, compiled, endless]
RUNS: dict[str, Callable[[Path], Run]] = {run.__name__: run for run in (*SAME, *OTHERS)}


def result(name: str, folder: Path) -> dict[str, Any]:
    """Run one of them and return what it left."""
    run = RUNS[name](folder)
    return {
        "weights": {**run.model.state_dict(), **run.facts.pop("method", {})},
        "history": run.history.rows,
        "interrupted": run.interrupted,
        "steps": run.steps,
        "facts": run.facts,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        folder = Path(sys.argv[1]) / name
        folder.mkdir(parents=True, exist_ok=True)
        found = result(name, folder)
        torch.save(found, folder / f"found-{rank()}.pt")
        print("done", name, rank(), found["interrupted"], flush=True)
