"""One optimizer step: images, teacher's answer, terms, gradients."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kdlab.distillers import Distiller, Outputs
from kdlab.losses import hard_label_loss
from kdlab.models import Taps
from kdlab.training.asking import Ask
from kdlab.training.batches import Batches, autocast


def add_up(totals: dict[str, Tensor], values: Mapping[str, Tensor], share: float = 1.0) -> None:
    """Add ``share`` of each detached value to the total of its name."""
    for name, value in values.items():
        weighted = value.detach() * share
        totals[name] = totals[name] + weighted if name in totals else weighted


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
        self.measured: dict[str, Tensor] = {}

    def train(self) -> None:
        """Put student and adapters into training mode (measuring puts them into eval mode)."""
        self.model.train()
        if self.distiller is not None:
            self.distiller.train()

    def __call__(
        self, index: Tensor, view: int, lr: float, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """Make one update at learning rate ``lr`` and return the detached terms.

        ``progress`` is the share of the run that is done. What the method measured besides lies in
        ``measured`` until the next step.
        """
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        while True:
            try:
                return self._accumulate(index, view, progress)
            except torch.OutOfMemoryError:
                self._halve(len(index))

    def _accumulate(self, index: Tensor, view: int, progress: float) -> dict[str, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        self.measured = {}
        for part in index.split(self.micro_batch or len(index)):
            share = len(part) / len(index)
            terms = self._terms(part, view, progress)
            torch.stack(list(terms.values())).sum().mul(share).backward()
            add_up(totals, terms, share)
            add_up(self.measured, self.distiller.measures() if self.distiller else {}, share)
        self.optimizer.step()
        return totals

    def _terms(self, index: Tensor, view: int, progress: float) -> dict[str, Tensor]:
        images = self.batches(index, view)
        targets = self.batches.labels[index]
        teacher = self.ask_teacher(images, index, view)
        if self.distiller is not None and self.distiller.needs_input_gradients:
            images = images.detach().requires_grad_()
        with autocast(images.device, self.precision):
            logits = self.forward(images)
        if self.distiller is None:
            return {"hard": hard_label_loss(logits.float(), targets)}
        taps = {name: self.taps[name] for name in self.taps}
        outputs = Outputs(logits.float(), taps, images, index, progress)
        terms = self.distiller(outputs, teacher, targets)
        if not terms:
            raise ValueError(
                f"distiller: {type(self.distiller).__name__} gives no term to train on; "
                "add a method that does, as in Labels() + ..."
            )
        return terms

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
