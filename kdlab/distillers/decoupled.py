"""Decoupled knowledge distillation: weigh the target class and the others apart."""

from __future__ import annotations

from torch import Tensor

from kdlab.distillers.base import Distiller, Outputs, teacher_logits
from kdlab.losses import decoupled_loss


class Decoupled(Distiller):
    """``CE(labels) + weight · T² · (α · TCKD + β · NCKD)``.

    Source: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", 2022,
    arXiv:2203.08679. The released code lets the term grow over its first 20 epochs; here it is
    constant. Compared in lesson 01.

    Args:
        temperature: T > 0.
        alpha: weight of the target-class part (TCKD).
        beta: weight of the non-target part (NCKD); the paper uses 2 to 8 by pair of models.
        weight: factor on the whole distillation term.
    """

    labelled_terms = ("hard", "decoupled")

    def __init__(
        self, temperature: float = 4.0, alpha: float = 1.0, beta: float = 8.0, weight: float = 1.0
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.alpha = alpha
        self.beta = beta
        self.weight = weight

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms ``hard`` and ``decoupled``."""
        loss = decoupled_loss(
            student.logits,
            teacher_logits(teacher, self),
            targets,
            self.temperature,
            self.alpha,
            self.beta,
        )
        return {
            "hard": student.label_loss(targets),
            "decoupled": self.weight * loss,
        }
