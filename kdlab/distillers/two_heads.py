"""DeiT's two heads: one learns from the labels, the other from the teacher, both answer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.distillers.adapters import example_of, shapes
from kdlab.distillers.base import Distiller, Outputs, check_fraction, teacher_logits
from kdlab.losses import hard_target_loss, soft_target_loss
from kdlab.losses.checks import check_positive
from kdlab.models import Taps, logits_of
from kdlab.models.exits import mean_over_places
from kdlab.models.modes import as_written, device_of, inputs_for

AVERAGES = ("probabilities", "logits")


class TwoHeads(Distiller):
    """``(1 − α) · CE(head 1, labels) + α · CE(head 2, argmax of the teacher)``.

    Head 1 gives the student's logits. Head 2 is a layer that the student has (``head``), such as
    the one on DeiT's distillation token, or a new linear one beside head 1 (``embedding``). At the
    end both answer: `assemble` puts them together. What ``fit`` measures is the student as it is,
    so without ``head`` it is head 1 alone. With a temperature the second term is
    α · T² · KL(teacher ‖ head 2) instead.

    Source: Touvron, Cord, Douze, Massa, Sablayrolles, Jégou, "Training data-efficient image
    transformers & distillation through attention" (DeiT), ICML 2021, arXiv:2012.12877. α = ½ is for
    hard targets; its soft ones have α = 0.1 and T = 3. The paper adds the heads' softmax, its code
    takes the mean of their logits.

    Args:
        alpha: weight of the second head's term, 0 to 1.
        temperature: None for the teacher's choice, T > 0 for soft targets.
        head: the student's layer that gives the second head's logits ``[B, C]``. A student that
            returns both heads in training mode, as ``(first, second)``, and their mean in eval
            mode, as DeiT does, answers with both by itself.
        embedding: without ``head``, where a new one reads: ``[B, d]``, or the mean over the places
            of a map ``[B, d, h, w]`` or over tokens ``[B, N, d]``.

    Raises:
        ValueError: an option out of its range; in ``prepare`` a path that the student does not
            have, or a second head that gives other logits than ``[B, C]``.
    """

    labelled_terms = ("hard",)
    in_tournament = False

    def __init__(
        self,
        alpha: float = 0.5,
        temperature: float | None = None,
        head: str | None = None,
        embedding: str = "head:input",
    ) -> None:
        super().__init__()
        if temperature is not None:
            check_positive("temperature", temperature)
        self.alpha = check_fraction("alpha", alpha)
        self.temperature = temperature
        self.head = head
        self.embedding = embedding
        self.student_taps = (self._path,)

    @property
    def _path(self) -> str:
        return self.embedding if self.head is None else self.head

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Build the second head, or look at the one that the student has."""
        logits = logits_of(student(inputs_for(student, example_of(train))), "model")
        read = shapes(student, [self._path], train)[self._path]
        if self.head is not None:
            if read != logits.shape:
                raise ValueError(
                    f"head: got shape {list(read)} from {self.head!r}, expected logits "
                    f"{list(logits.shape)}; name a layer that gives the second head's logits, or "
                    "leave head out for a new one"
                )
            self.second: nn.Module = nn.Identity()
            return
        if len(read) not in (2, 3, 4):
            raise ValueError(
                f"embedding: got shape {list(read)} from {self.embedding!r}, expected an "
                "embedding [B, d], tokens [B, N, d] or a map [B, d, h, w]; read another layer"
            )
        self.second = nn.Linear(read[2 if len(read) == 3 else 1], logits.shape[1])

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms ``hard`` and ``choice``, or ``soft`` with a temperature."""
        said = teacher_logits(teacher, self)
        second = second_logits(self.second, student.taps[self._path])
        terms = {"hard": (1 - self.alpha) * student.label_loss(targets)}
        if self.temperature is None:
            terms["choice"] = self.alpha * hard_target_loss(second, said)
        else:
            terms["soft"] = self.alpha * soft_target_loss(second, said, self.temperature)
        return terms

    def assemble(self, student: nn.Module, average: str = "probabilities") -> BothHeads:
        """Return the trained student as a model that answers with both heads, in eval mode.

        Args:
            student: the model that was trained; it is not copied.
            average: of the heads' "probabilities", as in the paper, or "logits", as in its code.

        Raises:
            ValueError: an unknown average, or a method that has not been prepared by training.
        """
        if average not in AVERAGES:
            raise ValueError(f'average: got {average!r}, expected "probabilities" or "logits"')
        if not hasattr(self, "second"):
            raise ValueError("assemble: got a method without a second head; train with it first")
        rows = self._path in self._as_rows[0]
        both = BothHeads(student, self._path, self.second, average, rows)
        return both.to(device_of(student)).eval()


class BothHeads(nn.Module):
    """A model whose answer is the mean of its own and of a second head's; `TwoHeads` makes it.

    Args:
        model: gives logits ``[B, C]``.
        path: what the second head reads in it.
        second: the second head.
        average: "probabilities" (the answer is their logarithm) or "logits".
        rows: whether what it reads is ``[B, c, l]``, tokens in columns.
    """

    def __init__(
        self, model: nn.Module, path: str, second: nn.Module, average: str, rows: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.path = path
        self.second = second
        self.average = average
        self.rows = rows

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits ``[B, C]``."""
        with as_written(self.model), Taps(self.model, [self.path]) as taps:
            first = logits_of(self.model(inputs))
            read = taps[self.path]
        second = second_logits(self.second, read.mT if self.rows else read)
        if self.average == "logits":
            return (first + second) / 2
        log_p, log_q = (torch.log_softmax(logits, dim=-1) for logits in (first, second))
        return torch.logaddexp(log_p, log_q) - math.log(2)


def second_logits(head: nn.Module, read: Tensor) -> Tensor:
    """Return the second head's logits ``[B, C]`` from what is read in the student."""
    if not isinstance(head, nn.Linear):
        return read
    return head(mean_over_places(read).to(head.weight.dtype))
