"""How the teacher is asked: live, or through what it said before the first step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.datasets import Data
from kdlab.distillers import Distiller, Outputs
from kdlab.models import Taps, WithOutput
from kdlab.models.outputs import Output
from kdlab.training.batches import Batches, autocast
from kdlab.training.distributed import ALONE, Alone
from kdlab.training.predict import Forward, visiting
from kdlab.training.teacher_outputs import TeacherOutputs

Ask = Callable[[Tensor, Tensor, int], Outputs | None]
REMEMBERED_BYTES = 2**29  # more inner tensors than this are computed anew for each batch


class LiveTeacher:
    """A frozen teacher asked about every batch, in eval mode.

    There is no graph, unless ``gradients`` asks for one: it then leads to the images.
    """

    def __init__(
        self,
        teacher: nn.Module,
        taps: tuple[str, ...],
        precision: str,
        gradients: bool = False,
        output: Output | None = None,
    ) -> None:
        self.forward = Forward(teacher, output, "teacher")
        self.taps = Taps(teacher, list(taps))
        self.precision = precision
        self.gradients = gradients

    def __call__(self, images: Tensor, index: Tensor, view: int) -> Outputs:
        """Return what the teacher says about ``images`` ``[B, c, h, w]``."""
        images = images.detach().requires_grad_(self.gradients)
        with torch.set_grad_enabled(self.gradients), autocast(images.device, self.precision):
            logits = self.forward(images)
        return Outputs(logits, {name: self.taps[name] for name in self.taps}, images, index)

    def close(self) -> None:
        """Take the hooks off the teacher."""
        self.taps.close()


class CachedTeacher:
    """A teacher whose logits were computed before the first step."""

    def __init__(self, outputs: TeacherOutputs) -> None:
        self.outputs = outputs

    def __call__(self, images: Tensor, index: Tensor, view: int) -> Outputs:
        """Look the teacher's logits up by image and view."""
        return Outputs(self.outputs(index, view), {}, images, index)


class RememberedTeacher:
    """A teacher whose logits and inner layers were read before the first step, for each view."""

    def __init__(
        self, live: LiveTeacher, batches: Batches, views: int, ranks: Alone = ALONE
    ) -> None:
        self.logits: list[Tensor] = []
        self.taps: list[dict[str, Tensor]] = []
        count = len(batches.labels)
        everything = ranks.share(torch.arange(count, device=batches.labels.device))
        for view in range(views):
            said = [live(batches(part, view), part, view) for part in everything.split(256)]
            logits = torch.cat([outputs.logits for outputs in said])
            taps = {path: torch.cat([outputs.taps[path] for outputs in said]) for path in live.taps}
            self.logits.append(ranks.gather(logits, count))
            self.taps.append({path: ranks.gather(tap, count) for path, tap in taps.items()})

    @staticmethod
    def size(live: LiveTeacher, batches: Batches, views: int) -> int:
        """Return how many bytes it would hold."""
        first = torch.zeros(1, dtype=torch.int64, device=batches.labels.device)
        one = live(batches(first, 0), first, 0)
        each = sum(t.numel() * t.element_size() for t in (one.logits, *one.taps.values()))
        return each * views * len(batches.labels)

    def __call__(self, images: Tensor, index: Tensor, view: int) -> Outputs:
        """Look up what the teacher said and what its layers held."""
        row = view % len(self.logits)
        taps = {path: kept.index_select(0, index) for path, kept in self.taps[row].items()}
        return Outputs(self.logits[row].index_select(0, index), taps, images, index)


def as_teacher(teacher: Any, data: Data) -> nn.Module | None:
    """Return a teacher as a module: a function of a batch, or a loaded file, gets one around it.

    What has a method ``for_data``, as `kdlab.compression.Deployed`, gives a function of inputs that
    are normalised as those of ``data``.

    Raises:
        ValueError: neither a module nor a function, or a file for other samples.
    """
    if teacher is None or isinstance(teacher, nn.Module):
        return teacher
    if not callable(teacher):
        raise ValueError(
            f"teacher: got a {type(teacher).__name__}, expected a torch.nn.Module or a function "
            "of a batch; of load_teacher's pair, model and card, give the first"
        )
    return WithOutput(teacher.for_data(data) if hasattr(teacher, "for_data") else teacher)


def no_teacher(images: Tensor, index: Tensor, view: int) -> None:
    """Stand in for a teacher where none is needed."""


def choose_asker(
    stack: ExitStack,
    teacher: nn.Module | None,
    data: Data,
    distiller: Distiller | None,
    views: int | None,
    batches: Batches,
    outputs: TeacherOutputs | None,
    precision: str,
    ranks: Alone = ALONE,
    output: Output | None = None,
) -> Ask:
    """Return how ``fit`` asks the teacher: the cheapest way that this method and these views allow.

    Raises:
        ValueError: cached outputs of another teacher or data set, or cached outputs for a method
            that reads more than logits.
    """
    if distiller is None or teacher is None:
        return no_teacher
    augment, device = batches.augment, batches.labels.device
    if views is not None and distiller.needs_only_logits:
        asked = teacher if output is None else WithOutput(teacher, output)
        if outputs is not None:
            outputs.check(asked, data, augment, views)
        else:
            outputs = TeacherOutputs.build(asked, data, augment, views, device, ranks)
        return CachedTeacher(outputs.to(device))
    if outputs is not None:
        raise ValueError(
            "teacher_outputs: they came, but this run needs a live teacher "
            "(views is None, or the method reads more than logits)"
        )
    stack.enter_context(visiting(teacher, device))
    gradients = distiller.needs_input_gradients
    live = LiveTeacher(teacher, distiller.teacher_taps, precision, gradients, output)
    stack.callback(live.close)
    if views is None or gradients:
        return live
    if RememberedTeacher.size(live, batches, views) > REMEMBERED_BYTES:
        return live
    return RememberedTeacher(live, batches, views, ranks)
