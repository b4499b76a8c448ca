"""Distil, prune, recover, quantize, export: any chain of steps, with a report after each."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from kdlab.compression.export import export
from kdlab.compression.kinds import check_kinds
from kdlab.compression.loading import Deployed, load
from kdlab.datasets import Data
from kdlab.metrics import cost, evaluate
from kdlab.training import predict

Step = Callable[[nn.Module], nn.Module | None]


def compress(
    model: nn.Module,
    data: Data,
    steps: Mapping[str, Step],
    *,
    path: str | os.PathLike[str],
    teacher: nn.Module | None = None,
    batch: int = 1,
    **options: float,
) -> tuple[Deployed, pd.DataFrame]:
    """Run a chain of steps and say after each what the model has become.

    Every row is measured on what would be shipped then: the model is exported to .onnx and
    answers from that file, in onnxruntime, on one thread. So times can be compared, and whole
    numbers are computed with as such.

    For example::

        steps = {
            "distil": lambda m: fit(m, data, SoftTargets(), teacher=teacher).model,
            "prune": lambda m: prune_channels(m, data.train.x[:2], 0.5),
            "recover": lambda m: recover(m, data, teacher).model,
            "quantize": lambda m: quantize(m, data),
        }
        deployed, report = compress(student, data, steps, path="student.onnx", teacher=teacher)

    Args:
        model: where the chain begins; a step may train it in place.
        data: for the scores, and for the file's preprocessing and classes.
        steps: name → function from a model to the next one; what returns None has changed the
            model in place.
        path: of the file in the end, which must end in .onnx; before that it is written after
            each step, so an interrupted chain leaves the last model that was whole.
        teacher: measured as the first row, and agreement with it in all rows; None leaves both
            out.
        batch: samples in a forward whose time is measured.
        options: of ``kdlab.metrics.cost``: ``runs``, ``seconds``, ``watts``.

    Returns:
        The exported model as ``load`` gives it, and a table: one row for the teacher, one for the
        model at the start and one for each step, with ``step``, the scores of the test split as
        ``kdlab.metrics.evaluate`` names them and ``val_accuracy``, by which to choose between
        chains, and the fields of ``kdlab.metrics.Cost``. FLOPs are those of the layers that
        PyTorch's counter sees, whether computed in floats or whole numbers; memory is not known.

    Raises:
        ValueError: an argument of another kind, no step, another ending, or what a step raises,
            with the step's name added.
        ImportError: the packages of the extra ``compression`` are missing.
    """
    check_kinds(model=model, data=data, path=path, teacher=teacher)
    path = Path(path)
    if not steps or path.suffix != ".onnx":
        what = f"path: {path.name!r}" if steps else "steps: none"
        raise ValueError(f"{what} came, expected at least one step and a path that ends in .onnx")
    answers = None if teacher is None else predict(teacher, data.test.x)

    def report(step: str, current: nn.Module) -> dict[str, object]:
        export(current, path, data, card={"step": step})
        measured = measure_file(path, current, data, answers, batch=batch, **options)
        return {"step": step, **measured}

    rows = [] if teacher is None else [report("teacher", teacher)]
    rows.append(report("start", model))
    for name, step in steps.items():
        try:
            changed = step(model)  # None from a step that works in place
        except ValueError as error:
            error.add_note(f"in the step {name!r}")
            raise
        model = model if changed is None else changed
        rows.append(report(name, model))
    return load(path), pd.DataFrame(rows)


def measure_file(
    path: str | os.PathLike[str],
    model: nn.Module,
    data: Data,
    teacher_logits: Tensor | None = None,
    *,
    batch: int = 1,
    **options: float,
) -> dict[str, object]:
    """Scores and costs of an exported model, as its file answers: one row of a report.

    Args:
        path: of the .onnx file; it answers on one thread.
        model: what was exported, to count FLOPs.
        data: the test split is scored, and the validation split's accuracy is told.
        teacher_logits: ``[N, C]`` for the test split, for agreement with it; None leaves it out.
        batch: samples in a forward whose time is measured.
        options: of ``kdlab.metrics.cost``: ``runs``, ``seconds``, ``watts``.

    Returns:
        What ``compress`` tells of each step, without the step's name.

    Raises:
        ValueError: what ``load`` and ``cost`` raise.
    """
    deployed = load(path, threads=1)
    test, val = (_answers(deployed, split.x, data) for split in (data.test, data.val))
    example = data.test.x[:batch]
    runtime = cost(deployed, _raw(example, data), file=deployed.path, **options)  # type: ignore[arg-type]
    counted = cost(model, example[:1], runs=3, seconds=1e-3)
    return {
        **evaluate(test, data.test.y, teacher_logits),
        "val_accuracy": evaluate(val, data.val.y)["accuracy"],
        **asdict(runtime),
        "flops": counted.flops,
    }


def _answers(deployed: Deployed, x: Tensor, data: Data) -> Tensor:
    return torch.cat([deployed(_raw(chunk, data)) for chunk in x.split(256)])


def _raw(x: Tensor, data: Data) -> Tensor:
    """Images with values in [0, 1], as the file wants them; token numbers stay."""
    if not data.mean:
        return x
    mean, std = (torch.tensor(value).view(1, -1, 1, 1) for value in (data.mean, data.std))
    return x * std + mean
