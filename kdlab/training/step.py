"""One optimizer step: images, teacher's answer, terms, gradients."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from kdlab.distillers import Distiller, Outputs
from kdlab.models import Taps
from kdlab.models.outputs import Output
from kdlab.training.asking import Ask
from kdlab.training.batches import Batches, autocast
from kdlab.training.predict import Forward


def add_up(totals: dict[str, Tensor], values: Mapping[str, Tensor], share: float = 1.0) -> None:
    """Add ``share`` of each detached value to the total of its name."""
    for name, value in values.items():
        weighted = value.detach() * share
        totals[name] = totals[name] + weighted if name in totals else weighted


class Step:
    """Forward, backward and update for one batch.

    A batch may be cut into micro-batches whose gradients are accumulated; when memory runs out
    they are halved, with a warning. Each term counts by what takes part in it: a mean over the
    labelled samples by the labelled ones of the micro-batch, any other mean by its size. A term
    that relates the samples of a batch to one another then relates those of a micro-batch; a
    warning says so.

    Args:
        model: the student; trained in place.
        distiller: the method; None for the labels alone.
        ask_teacher: gives the teacher's outputs for a batch.
        optimizer: of all that is trained.
        batches: the training samples.
        precision: "fp32" or "bf16".
        compiled: run the student through torch.compile.
        output: takes the logits out of what the student returns.
        micro_batch: samples in one forward; None takes the whole batch.
        clip: the largest length that the gradient may have.
        update_frozen_norms: let norms of frozen parts follow the batches.
        teacher: its modules, if the student has some of them, stay in eval mode.
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
        *,
        output: Output | None = None,
        micro_batch: int | None = None,
        clip: float | None = None,
        update_frozen_norms: bool = False,
        teacher: nn.Module | None = None,
    ) -> None:
        self.model = model
        called: Any = torch.compile(model) if compiled else model
        self.forward = Forward(model, output, call=called)
        self.distiller = distiller
        self.ask_teacher = ask_teacher
        self.optimizer = optimizer
        self.batches = batches
        self.precision = precision
        self.clip = clip
        self.update_frozen_norms = update_frozen_norms
        self.taken = set() if teacher is None else set(teacher.modules())
        wanted = distiller.student_taps if distiller is not None else ()
        self.taps = Taps(called, list(wanted))
        self.micro_batch = micro_batch
        self.measured: dict[str, Tensor] = {}
        if micro_batch is not None and micro_batch < batches.size:
            self._say_what_changes()

    def train(self) -> None:
        """Put student and adapters into training mode (measuring puts them into eval mode).

        Norms of frozen parts stay as they are, and so do modules that are the teacher's, too.
        """
        for part in self.trained:
            part.train()
            kept = [] if self.update_frozen_norms else list(frozen_norms(part))
            for module in [*kept, *(self.taken & set(part.modules()))]:
                module.training = False

    @property
    def trained(self) -> list[nn.Module]:
        """The student and, where there is one, the method with its adapters."""
        return [self.model] if self.distiller is None else [self.model, self.distiller]

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
        for part in self.parts(index):
            terms = self.weighted(self.terms(part, view, progress), part, index)
            torch.stack(list(terms.values())).sum().backward()
            add_up(totals, terms)
            measures = {} if self.distiller is None else self.distiller.measures()
            add_up(self.measured, measures, len(part) / len(index))
        self._update()
        return totals

    def parts(self, index: Tensor) -> tuple[Tensor, ...]:
        """Return the micro-batches of a batch; none of one sample, if that can be helped."""
        size = self.micro_batch or len(index)
        if size > 1 and len(index) % size == 1:  # a batch norm knows no variance of one
            return index.tensor_split(-(-len(index) // size))
        return index.split(size)

    def _update(self) -> None:
        if self.clip is not None:
            trained = (p for group in self.optimizer.param_groups for p in group["params"])
            torch.nn.utils.clip_grad_norm_(trained, self.clip)
        self.optimizer.step()

    def weighted(
        self, terms: dict[str, Tensor], part: Tensor, whole: Tensor, times: float = 1.0
    ) -> dict[str, Tensor]:
        """Return the terms of a part of a batch, each by its share of the whole, and ``times``."""
        if len(part) == len(whole):
            return terms
        size = times * len(part) / len(whole)
        names = ("hard",) if self.distiller is None else self.distiller.labelled_terms
        if terms.keys().isdisjoint(names):
            return {name: term * size for name, term in terms.items()}
        labelled = self.batches.label_weights
        count = labelled[whole].sum()
        share = times * labelled[part].sum() / count.where(count > 0, 1.0)
        return {name: term * (share if name in names else size) for name, term in terms.items()}

    def terms(self, index: Tensor, view: int, progress: float) -> dict[str, Tensor]:
        """Return the named, weighted terms of a batch, with their graph."""
        images = self.batches(index, view)
        teacher = self.ask_teacher(images, index, view)
        return self.judge(self.ask_student(images, index, progress), teacher, index)

    def judge(self, student: Outputs, teacher: Outputs | None, index: Tensor) -> dict[str, Tensor]:
        """Return the terms of a batch whose answers are there."""
        targets = self.batches.labels[index]
        if self.distiller is None:
            return {"hard": student.label_loss(targets)}
        terms = self.distiller(student, teacher, targets)
        if not terms:
            raise ValueError(
                f"distiller: {type(self.distiller).__name__} gives no term to train on; "
                "add a method that does, as in Labels() + ..."
            )
        return terms

    def ask_student(self, images: Tensor, index: Tensor, progress: float) -> Outputs:
        """Return what the student says about a batch, with its graph."""
        if self.distiller is not None and self.distiller.needs_input_gradients:
            images = images.detach().requires_grad_()
        with autocast(images.device, self.precision):
            logits = self.call_model(images)
        taps = {name: self.taps[name] for name in self.taps}
        if self.forward.contiguous:  # a peer of the student's has the same .view
            images = images.contiguous()
        batches = self.batches
        return Outputs(logits, taps, images, index, progress, batches.class_weights, batches.task)

    def call_model(self, images: Tensor) -> Tensor:
        """Return the student's logits."""
        return self.forward(images)

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
        self._say_what_changes()

    def _say_what_changes(self) -> None:
        if self.distiller is not None and self.distiller.relates_images:
            warnings.warn(
                f"micro_batch: {type(self.distiller).__name__} relates the images of a batch to "
                f"one another; in micro-batches of {self.micro_batch} it relates only those, so "
                "that its value is another than with whole batches",
                stacklevel=5,
            )

    def close(self) -> None:
        """Take the hooks off the student."""
        self.taps.close()


def frozen_norms(model: nn.Module) -> Iterator[nn.Module]:
    """The norms with running statistics whose surroundings are frozen.

    Those are the norm itself, if it has parameters, else the smallest module around it that has
    some; frozen means that none of them requires gradients.
    """
    modules = dict(model.named_modules())

    def is_frozen(path: str) -> bool:
        while not (wanted := [p.requires_grad for p in modules[path].parameters()]) and path:
            path = path.rpartition(".")[0]
        return bool(wanted) and not any(wanted)

    for path, module in modules.items():
        if isinstance(module, _NormBase) and module.running_mean is not None and is_frozen(path):
            yield module


def shared_parameters(teacher: nn.Module, trained: Mapping[str, nn.Module]) -> Iterator[Any]:
    """``(part, name)`` of each trainable parameter that is one of the teacher's, too."""
    known = {id(parameter) for parameter in teacher.parameters()}
    for part, module in trained.items():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and id(parameter) in known:
                yield part, name
