"""Settings × seeds: the same budget for each, a tidy table of the last epoch's results."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import joblib
import pandas as pd
import torch
from torch import Tensor, nn

from kdlab.datasets import Data, Split
from kdlab.distillers import Distiller
from kdlab.distillers.class_mapping import ClassMapping
from kdlab.metrics import evaluate
from kdlab.training.device import pick_device
from kdlab.training.distributed import Alone, join
from kdlab.training.divergence import Diverged
from kdlab.training.loop import fit
from kdlab.training.predict import predict
from kdlab.training.progress import Progress
from kdlab.training.stacked import fit_stacked, stackable
from kdlab.training.study_arguments import (
    OPTIONS,
    Line,
    Setting,
    Student,
    build_student,
    check_options,
    check_seeds,
    check_workers,
    complete,
)
from kdlab.training.teacher_outputs import TeacherOutputs

__all__ = ["Setting", "Student", "build_student", "study"]

STACK_OPTIONS = {"epochs", "batch_size", "lr", "optimizer", "weight_decay"}
OWN_OPTIONS = ["seeds", "teacher", "workers"]  # not fit's


def study(
    student: Student,
    data: Data,
    settings: Mapping[str, Distiller | Setting | None],
    *,
    seeds: int | Sequence[int] = 5,
    teacher: nn.Module | None = None,
    workers: int | None = None,
    progress: bool = False,
    **options: Any,
) -> pd.DataFrame:
    """Train every setting with every seed and measure the last epoch once on the test split.

    Small MLPs are trained stacked, all seeds of a setting at once. Other students on a CPU run in
    worker processes of one thread each; on a GPU one after another. A seed decides the initial
    weights and the shuffling, so two settings with the same seed begin alike and their
    differences are paired. An interrupt keeps the runs that are done.

    A method that reads a value off a tensor (``.item()``, ``float(...)``, ``if``) cannot be
    stacked; a warning says so, and its runs are made one by one. Under ``torchrun`` all ranks share
    each run, as in ``fit``, one after another, and each rank returns the table.

    Args:
        student: a name of ``models.available()``, a pair (name, options), or a function that
            takes a seed and returns a model.
        data: what to learn from and to be measured on.
        settings: a method, ``None`` (labels alone) or a ``Setting``, by the name to show.
        seeds: how many (0, 1, ...), or which, no two alike.
        teacher: who answers in all settings that do not bring their own.
        workers: processes; None takes one per core, or as many as ``KDLAB_THREADS`` says, 1 stays
            in this process. Under ``torchrun`` there are none besides the ranks.
        progress: show a progress bar.
        options: arguments of ``fit`` for all settings: ``epochs``, ``batch_size``, ``lr``, ... but
            not ``seed``, ``teacher_outputs`` (a study sees to both) and ``checkpoint`` (one file
            cannot serve all runs; ``kdlab sweep`` goes on where it was).

    A run whose loss or weights are no longer finite has NaN in its row, and a warning names it.

    Returns:
        One row per setting and seed: ``setting, seed``, the metrics of ``metrics.evaluate`` on
        the test split (with ``agreement`` and ``kl_to_teacher`` where there is a teacher), and
        ``val_accuracy``. ``plots.interval_table`` makes the table
        with intervals.

    Raises:
        ValueError: no settings, no seeds or equal ones, something of another kind than said here,
            an argument that ``fit`` has not or refuses, or workers under ``torchrun``.
    """
    chosen = check_seeds(seeds)
    if not isinstance(settings, Mapping) or not settings:
        raise ValueError(
            f"settings: {settings!r:.80} came, expected at least one method by the name to show, "
            "such as {'labels': None, 'soft': SoftTargets()}"
        )
    check_options(options, OWN_OPTIONS + OPTIONS, " in a call of study")
    lines = {
        name: complete(name, value, student, data, teacher, options, chosen)
        for name, value in settings.items()
    }
    ranks, _ = _place(next(iter(lines.values())))
    check_workers(workers, ranks)
    rows: list[dict[str, Any]] = []
    count, shown = len(lines) * len(chosen), progress and ranks.rank == 0
    with ranks.guarded(), Progress(count, "training the students", shown) as bar:
        try:
            for row in _run_all(lines, chosen, workers, ranks):
                rows.append(row)
                bar.advance()
        except KeyboardInterrupt:
            if ranks.rank == 0:
                warnings.warn(
                    f"stopped: {len(rows)} of {count} runs are done and kept", stacklevel=2
                )
    order = {name: place for place, name in enumerate(lines)}
    rows.sort(key=lambda row: (order[row["setting"]], row["seed"]))
    return pd.DataFrame(rows)


def _run_all(
    lines: dict[str, Line], seeds: list[int], workers: int | None, ranks: Alone
) -> Iterator[dict[str, Any]]:
    lines = _ask_each_teacher_once(lines)
    apart: dict[str, Line] = {}
    for name, line in lines.items():
        models = _train_stacked(name, line, seeds) if ranks.size == 1 else None
        if models is None:
            apart[name] = line
            continue
        for model, seed in zip(models, seeds, strict=True):
            logits = predict(model, line.data.val.x, device="cpu")
            val = evaluate(logits, line.data.val.y)["accuracy"]
            if not logits.isfinite().all():
                warnings.warn(
                    f"setting {name!r}, seed {seed}: its weights became NaN or infinite; take a "
                    "smaller lr",
                    stacklevel=3,
                )
                val = math.nan
            yield _measured(name, line, seed, model, val)
    jobs = [(name, line, seed) for seed in seeds for name, line in apart.items()]
    on_cpu = all(_on_cpu(line) for line in apart.values())
    # a sweep divides the cores among its kernels
    cores = int(os.environ.get("KDLAB_THREADS") or os.cpu_count() or 1)
    count = min(workers or cores, len(jobs))
    if count <= 1 or not on_cpu or ranks.size > 1:  # a worker would take itself for a rank
        for job in jobs:
            yield _row(*job)
        return
    pool = joblib.Parallel(n_jobs=count, backend="loky", return_as="generator_unordered")
    packed = {name: _pack(line.data) for name, line in apart.items()}
    yield from pool(
        joblib.delayed(_row_in_worker)(name, replace(line, data=None), seed, packed[name])
        for name, line, seed in jobs
    )


def _ask_each_teacher_once(lines: dict[str, Line]) -> dict[str, Line]:
    trained: dict[tuple[int, int], TeacherOutputs] = {}
    tested: dict[tuple[int, int], Tensor] = {}
    result = {}
    for name, line in lines.items():
        if (teacher := line.teacher) is not None:
            ranks, device = _place(line)
            place = (id(line.teacher), id(line.data.test.x))
            if place not in tested:
                tested[place] = ranks.predict(
                    teacher, line.data.test.x, device=device, output=line.options.get("output")
                )
            line = replace(line, answers=_as_told(line.distiller, tested[place]))
            place = (id(line.teacher), id(line.data))
            if _asks_for_logits(line) and not line.options.keys() & {"augment", "output"}:
                if place not in trained:
                    trained[place] = TeacherOutputs.build(
                        teacher, line.data, device=device, ranks=ranks
                    )
                line = replace(line, outputs=trained[place])
        result[name] = line
    return result


def _as_told(distiller: Distiller | None, answers: Tensor) -> Tensor:
    """Return the teacher's logits about the classes of the student."""
    for part in [] if distiller is None else distiller.modules():
        if isinstance(part, ClassMapping):
            return part.map(answers)
    return answers


def _asks_for_logits(line: Line) -> bool:
    return line.distiller is not None and line.asks_teacher and line.distiller.needs_only_logits


def _train_stacked(name: str, line: Line, seeds: list[int]) -> list[nn.Module] | None:
    """Return the models of all seeds, trained at once; None where they have to be trained apart."""
    known = set(line.options) - {"device"} <= STACK_OPTIONS
    example = build_student(line.student, line.data, seeds[0])
    if not (known and _on_cpu(line) and stackable(example, line.distiller)):
        return None
    models = [build_student(line.student, line.data, seed) for seed in seeds]
    options = {name: value for name, value in line.options.items() if name in STACK_OPTIONS}
    try:
        fit_stacked(
            models,  # type: ignore[arg-type]  # stackable() has looked
            line.data,
            line.distiller,
            seeds=seeds,
            teacher_outputs=line.outputs,
            **options,
        )
    except RuntimeError as error:  # of vmap; a mistake of the method itself comes again in fit
        warnings.warn(
            f"setting {name!r}: {type(line.distiller).__name__} cannot train all seeds at once "
            f"({str(error).partition('. ')[0]:.120}); its runs are made one by one, which is as "
            "right but slower. A forward that reads no values off tensors (.item(), float(...), "
            "if) would be fast",
            stacklevel=4,  # the call of study
        )
        return None
    return models


def _row(name: str, line: Line, seed: int) -> dict[str, Any]:
    model = build_student(line.student, line.data, seed)
    options = {"validate": False, **line.options}
    try:
        run = fit(
            model,
            line.data,
            line.distiller,
            teacher=line.teacher if line.asks_teacher else None,
            seed=seed,
            teacher_outputs=line.outputs,
            **options,
        )
    except Diverged as error:
        warnings.warn(f"setting {name!r}, seed {seed}: {error}", stacklevel=2)
        return _measured(name, line, seed, model, math.nan)
    if run.interrupted:
        raise KeyboardInterrupt
    return _measured(name, line, seed, model, run.history.last["val_accuracy"])


def _row_in_worker(name: str, line: Line, seed: int, packed: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    return _row(name, replace(line, data=_unpack(packed)), seed)


def _pack(data: Data) -> dict[str, Any]:
    """Turn a data set into NumPy arrays, which joblib hands to all workers as one memory map."""
    fields = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
    arrays = {
        name: (value.x.numpy(), value.y.numpy())
        for name, value in fields.items()
        if isinstance(value, Split)
    }
    return {"fields": fields | arrays, "splits": list(arrays), "fingerprint": data.fingerprint}


def _unpack(packed: dict[str, Any]) -> Data:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        fields = dict(packed["fields"])
        for name in packed["splits"]:
            x, y = fields[name]
            fields[name] = Split(torch.from_numpy(x), torch.from_numpy(y))
    data = Data(**fields)
    data.__dict__["fingerprint"] = packed["fingerprint"]  # hashed once, in the parent
    return data


def _on_cpu(line: Line) -> bool:
    return _place(line)[1].type == "cpu"


def _place(line: Line) -> tuple[Alone, torch.device]:
    return join(pick_device(line.options.get("device", "auto")))


def _measured(
    name: str, line: Line, seed: int, model: nn.Module, val_accuracy: float
) -> dict[str, Any]:
    ranks, device = _place(line)
    output = line.options.get("output")
    logits = ranks.predict(model, line.data.test.x, device=device, output=output)
    scores = evaluate(logits, line.data.test.y, line.answers)
    if math.isnan(val_accuracy):
        scores = dict.fromkeys(scores, math.nan)
    return {"setting": name, "seed": seed, **scores, "val_accuracy": val_accuracy}
