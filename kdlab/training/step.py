"""One optimizer step: images, teacher's answer, terms, gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.datasets.views import Augmentation
from kdlab.distillers import Distiller, Outputs
from kdlab.losses import hard_label_loss
from kdlab.models import Taps
from kdlab.training.predict import channels_last
from kdlab.training.teacher_outputs import TeacherOutputs

Ask = Callable[[Tensor, Tensor, int], Outputs | None]


class Batches:
    """Training images and labels resident on the device, read by index."""

    def __init__(self, split: Split, augment: Augmentation | None, device: torch.device) -> None:
        # rows of a [N, h, w, c] tensor, permuted, are channels-last batches at the cost of a gather
        self.rows = split.x.permute(0, 2, 3, 1).contiguous().to(device)
        self.labels = split.y.to(device)
        self.augment = augment

    def __call__(self, index: Tensor, view: int) -> Tensor:
        """Return the images ``[B, c, h, w]`` at ``index`` ``[B]``, channels-last."""
        images = self.rows.index_select(0, index).permute(0, 3, 1, 2)
        if self.augment is None:
            return images
        return channels_last(self.augment(images, index, view))


class LiveTeacher:
    """A frozen teacher asked about every batch, in eval mode and without a graph."""

    def __init__(self, teacher: nn.Module, taps: tuple[str, ...], precision: str) -> None:
        self.teacher = teacher
        self.taps = Taps(teacher, list(taps))
        self.precision = precision

    def __call__(self, images: Tensor, index: Tensor, view: int) -> Outputs:
        """Return what the teacher says about ``images`` ``[B, c, h, w]``."""
        with torch.no_grad(), autocast(images.device, self.precision):
            logits = self.teacher(images).float()
        return Outputs(logits, {name: self.taps[name] for name in self.taps}, images)

    def close(self) -> None:
        """Take the hooks off the teacher."""
        self.taps.close()


class CachedTeacher:
    """A teacher whose logits were computed before the first step."""

    def __init__(self, outputs: TeacherOutputs) -> None:
        self.outputs = outputs

    def __call__(self, images: Tensor, index: Tensor, view: int) -> Outputs:
        """Look the teacher's logits up by image and view."""
        return Outputs(self.outputs(index, view), {}, images)


def no_teacher(images: Tensor, index: Tensor, view: int) -> None:
    """Stand in for a teacher where none is needed."""


class Step:
    """Forward, backward and update for one batch.

    When memory runs out the micro-batch is halved and the gradients are accumulated, with a
    warning: each further step then takes as many passes as it needs. A term that is more than a
    mean over the images (a mean over the labelled ones, correlations along the batch) is then
    the mean of its values on the micro-batches.
    """

    def __init__(
        self,
        model: nn.Module,
        distiller: Distiller | None,
        ask_teacher: Ask,
        optimizer: torch.optim.Optimizer,
        batches: Batches,
        precision: str,
        compiled: bool = False,
    ) -> None:
        self.model = model
        self.forward = torch.compile(model) if compiled else model
        self.distiller = distiller
        self.ask_teacher = ask_teacher
        self.optimizer = optimizer
        self.batches = batches
        self.precision = precision
        self.taps = Taps(model, list(distiller.student_taps if distiller else ()))
        self.micro_batch: int | None = None

    def train(self) -> None:
        """Put student and adapters into training mode (measuring puts them into eval mode)."""
        self.model.train()
        if self.distiller is not None:
            self.distiller.train()

    def __call__(self, index: Tensor, view: int, lr: float) -> dict[str, Tensor]:
        """Make one update at learning rate ``lr`` and return the detached terms."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        while True:
            try:
                return self._accumulate(index, view)
            except torch.OutOfMemoryError:
                self._halve(len(index))

    def _accumulate(self, index: Tensor, view: int) -> dict[str, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        for part in index.split(self.micro_batch or len(index)):
            share = len(part) / len(index)
            terms = self._terms(part, view)
            torch.stack(list(terms.values())).sum().mul(share).backward()
            for name, value in terms.items():
                weighted = value.detach() * share
                totals[name] = totals[name] + weighted if name in totals else weighted
        self.optimizer.step()
        return totals

    def _terms(self, index: Tensor, view: int) -> dict[str, Tensor]:
        images = self.batches(index, view)
        targets = self.batches.labels[index]
        teacher = self.ask_teacher(images, index, view)
        with autocast(images.device, self.precision):
            logits = self.forward(images)
        if self.distiller is None:
            return {"hard": hard_label_loss(logits.float(), targets)}
        taps = {name: self.taps[name] for name in self.taps}
        return self.distiller(Outputs(logits.float(), taps, images), teacher, targets)

    def _halve(self, batch: int) -> None:
        size = min(self.micro_batch or batch, batch)
        if size == 1:
            raise RuntimeError(
                "out of memory with a single image: use a smaller model or smaller images"
            )
        self.micro_batch = size // 2
        self.optimizer.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(
            f"out of memory: going on with micro-batches of {self.micro_batch} and accumulated "
            "gradients (the same batch size, more passes)",
            stacklevel=4,
        )

    def close(self) -> None:
        """Take the hooks off the student."""
        self.taps.close()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which a forward pass runs at ``precision``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
