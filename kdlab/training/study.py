"""Settings × seeds: the same budget for each, a tidy table of the last epoch's results."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import joblib
import pandas as pd
import torch
from torch import Tensor, nn

from kdlab.datasets import Data, Split
from kdlab.distillers import Distiller
from kdlab.metrics import evaluate
from kdlab.models import build_for
from kdlab.training.device import pick_device
from kdlab.training.loop import fit
from kdlab.training.predict import predict
from kdlab.training.progress import Progress
from kdlab.training.stacked import fit_stacked, stackable
from kdlab.training.teacher_outputs import TeacherOutputs

Student = str | tuple[str, dict[str, Any]] | Callable[[int], nn.Module]
STACK_OPTIONS = {"epochs", "batch_size", "lr", "optimizer", "weight_decay"}


@dataclass(frozen=True)
class Setting:
    """One line of a comparison: a method, and where it departs from the study's own arguments.

    Attributes:
        distiller: the method, or None for the labels alone.
        data: other data, such as the same images with fewer labels.
        teacher: another teacher.
        student: another student.
        options: other arguments of ``fit``, such as ``{"lr": 0.05}``.
    """

    distiller: Distiller | None = None
    data: Data | None = None
    teacher: nn.Module | None = None
    student: Student | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


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

    Args:
        student: a name of ``models.available()``, a pair (name, options), or a function that
            takes a seed and returns a model.
        data: what to learn from and to be measured on.
        settings: a method, ``None`` (labels alone) or a ``Setting``, by the name to show.
        seeds: how many (0, 1, ...), or which.
        teacher: who answers in all settings that do not bring their own.
        workers: processes; None takes one per core, or as many as ``KDLAB_THREADS`` says, 1 stays
            in this process.
        progress: show a progress bar.
        options: arguments of ``fit`` for all settings: ``epochs``, ``batch_size``, ``lr``, ...

    Returns:
        One row per setting and seed: ``setting, seed``, the metrics of ``metrics.evaluate`` on
        the test split (with ``agreement`` and ``kl_to_teacher`` where there is a teacher), and
        ``val_accuracy``. ``plots.interval_table`` makes the table
        with intervals.

    Raises:
        ValueError: no settings, no seeds, or an argument that ``fit`` refuses.
    """
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not settings or not chosen:
        raise ValueError("settings and seeds: expected at least one of each")
    lines = {
        name: _complete(value, student, data, teacher, options) for name, value in settings.items()
    }
    rows: list[dict[str, Any]] = []
    with Progress(len(lines) * len(chosen), "training the students", progress) as bar:
        try:
            for row in _run_all(lines, chosen, workers):
                rows.append(row)
                bar.advance()
        except KeyboardInterrupt:
            warnings.warn(
                f"stopped: {len(rows)} of {len(lines) * len(chosen)} runs are done and kept",
                stacklevel=2,
            )
    order = {name: place for place, name in enumerate(lines)}
    rows.sort(key=lambda row: (order[row["setting"]], row["seed"]))
    return pd.DataFrame(rows)


def build_student(student: Student, data: Data, seed: int) -> nn.Module:
    """Return a fresh student for ``data`` with the initial weights of ``seed``."""
    if callable(student):
        return student(seed)
    name, options = (student, {}) if isinstance(student, str) else student
    return build_for(name, data.shape, data.num_classes, seed=seed, **options)


@dataclass(frozen=True)
class _Line:
    student: Student
    data: Data | Any  # None while it travels to a worker
    distiller: Distiller | None
    teacher: nn.Module | None
    options: dict[str, Any]
    outputs: TeacherOutputs | None = None  # the teacher's logits for the training images
    answers: Tensor | None = None  # and for the test images


def _complete(
    value: Distiller | Setting | None,
    student: Student,
    data: Data,
    teacher: nn.Module | None,
    options: Mapping[str, Any],
) -> _Line:
    setting = value if isinstance(value, Setting) else Setting(value)
    return _Line(
        setting.student or student,
        setting.data or data,
        setting.distiller,
        setting.teacher or teacher,
        {**options, **setting.options},
    )


def _run_all(
    lines: dict[str, _Line], seeds: list[int], workers: int | None
) -> Iterator[dict[str, Any]]:
    lines = _ask_each_teacher_once(lines)
    apart: dict[str, _Line] = {}
    for name, line in lines.items():
        example = build_student(line.student, line.data, seeds[0])
        known = set(line.options) - {"device"} <= STACK_OPTIONS
        if known and _on_cpu(line) and stackable(example, line.distiller):
            yield from _stacked_rows(name, line, seeds)
        else:
            apart[name] = line
    jobs = [(name, line, seed) for seed in seeds for name, line in apart.items()]
    on_cpu = all(_on_cpu(line) for line in apart.values())
    # a sweep divides the cores among its kernels
    cores = int(os.environ.get("KDLAB_THREADS") or os.cpu_count() or 1)
    count = min(workers or cores, len(jobs))
    if count <= 1 or not on_cpu:
        for job in jobs:
            yield _row(*job)
        return
    pool = joblib.Parallel(n_jobs=count, backend="loky", return_as="generator_unordered")
    packed = {name: _pack(line.data) for name, line in apart.items()}
    yield from pool(
        joblib.delayed(_row_in_worker)(name, replace(line, data=None), seed, packed[name])
        for name, line, seed in jobs
    )


def _ask_each_teacher_once(lines: dict[str, _Line]) -> dict[str, _Line]:
    trained: dict[tuple[int, int], TeacherOutputs] = {}
    tested: dict[tuple[int, int], Tensor] = {}
    result = {}
    for name, line in lines.items():
        if (teacher := line.teacher) is not None:
            device = line.options.get("device", "auto")
            place = (id(line.teacher), id(line.data.test.x))
            if place not in tested:
                tested[place] = predict(teacher, line.data.test.x, device=device)
            line = replace(line, answers=tested[place])
            place = (id(line.teacher), id(line.data))
            if _asks_for_logits(line) and line.options.get("augment") is None:
                if place not in trained:
                    trained[place] = TeacherOutputs.build(teacher, line.data, device=device)
                line = replace(line, outputs=trained[place])
        result[name] = line
    return result


def _asks_teacher(line: _Line) -> bool:
    return line.distiller is not None and line.distiller.needs_teacher


def _asks_for_logits(line: _Line) -> bool:
    return line.distiller is not None and _asks_teacher(line) and line.distiller.needs_only_logits


def _stacked_rows(name: str, line: _Line, seeds: list[int]) -> Iterator[dict[str, Any]]:
    models = [build_student(line.student, line.data, seed) for seed in seeds]
    fit_stacked(
        models,  # type: ignore[arg-type]  # stackable() has looked
        line.data,
        line.distiller,
        seeds=seeds,
        teacher_outputs=line.outputs,
        **{name: value for name, value in line.options.items() if name in STACK_OPTIONS},
    )
    for model, seed in zip(models, seeds, strict=True):
        val = evaluate(predict(model, line.data.val.x), line.data.val.y)
        yield _measured(name, line, seed, model, val["accuracy"])


def _row(name: str, line: _Line, seed: int) -> dict[str, Any]:
    model = build_student(line.student, line.data, seed)
    options = {"validate": False, **line.options}
    run = fit(
        model,
        line.data,
        line.distiller,
        teacher=line.teacher if _asks_teacher(line) else None,
        seed=seed,
        teacher_outputs=line.outputs,
        **options,
    )
    if run.interrupted:
        raise KeyboardInterrupt
    return _measured(name, line, seed, model, run.history.last["val_accuracy"])


def _row_in_worker(name: str, line: _Line, seed: int, packed: dict[str, Any]) -> dict[str, Any]:
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


def _on_cpu(line: _Line) -> bool:
    return pick_device(line.options.get("device", "auto")).type == "cpu"


def _measured(
    name: str, line: _Line, seed: int, model: nn.Module, val_accuracy: float
) -> dict[str, Any]:
    logits = predict(model, line.data.test.x, device=line.options.get("device", "auto"))
    scores = evaluate(logits, line.data.test.y, line.answers)
    return {"setting": name, "seed": seed, **scores, "val_accuracy": val_accuracy}
