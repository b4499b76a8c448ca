"""What one training step of a method costs: its time, and the memory that its graph holds."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.datasets import Data
from kdlab.distillers import Distiller
from kdlab.training.loop import Moment, fit

WARM_UP = 2  # steps that are not timed


@dataclass(frozen=True)
class StepCost:
    """The cost of one step.

    Attributes:
        milliseconds: the fastest of the timed steps; other programs only make steps longer.
        megabytes: the tensors that student and teacher keep for backward passes.
    """

    milliseconds: float
    megabytes: float


def step_cost(
    student: nn.Module,
    data: Data,
    distiller: Distiller | None = None,
    *,
    teacher: nn.Module | None = None,
    batch_size: int = 64,
    steps: int = 20,
    **options: Any,
) -> StepCost:
    """Train a copy of ``student`` for a few steps and measure them. Used in lesson 03.

    What happens once, before the first step, is not counted: asking the teacher for logits and
    inner layers that are then remembered.

    Args:
        student: stays as it was.
        data: its training images, repeated if there are too few.
        distiller: the method; None for the labels alone.
        teacher: who answers, if the method needs one.
        batch_size: images per step.
        steps: how many are timed, at least 1.
        options: other arguments of ``fit``, such as ``augment`` or ``device``.

    Raises:
        ValueError: fewer than one step, and what ``fit`` raises.
    """
    if steps < 1:
        raise ValueError(f"steps: {steps} came, expected at least 1")

    def run(count: int, *callbacks: Callable[[Moment], None]) -> None:
        images = torch.arange(count * batch_size) % len(data.train)
        part = replace(data, train=data.train.select(images))
        options.update(epochs=1, batch_size=batch_size, validate=False, callbacks=callbacks)
        fit(copy.deepcopy(student), part, copy.deepcopy(distiller), teacher=teacher, **options)

    ends: list[float] = []

    def note(moment: Moment) -> None:
        sum(value.item() for value in moment.terms.values())  # makes a GPU wait
        ends.append(time.perf_counter())

    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    run(WARM_UP + steps, note)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run(1)
    times = [after - before for before, after in pairwise(ends[WARM_UP - 1 :])]
    return StepCost(1000 * min(times), sum(kept.values()) / 2**20)
