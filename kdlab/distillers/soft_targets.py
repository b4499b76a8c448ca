"""Hinton's knowledge distillation: learn the labels and the teacher's softened answers."""

from __future__ import annotations

from torch import Tensor

from kdlab.distillers.base import Distiller, Outputs, check_fraction, teacher_logits
from kdlab.losses import soft_target_loss
from kdlab.losses.soft_targets import check_divergence


class SoftTargets(Distiller):
    """``(1 - α) · CE(labels) + α · T² · KL(teacher at T ‖ student at T)``.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
    arXiv:1503.02531. The paper takes a weighted average of the two, with a considerably lower
    weight on the labels; α = 0.9 is the convention of later work. Derived in lesson 01.

    Args:
        temperature: T > 0; higher shows more of the small probabilities.
        alpha: weight of the soft term, 0 to 1. With 1 no label is used.
        divergence: "forward", as above, "reverse" (the roles exchanged) or "jensen-shannon"; the
            sources are with `kdlab.losses.soft_target_loss`.
    """

    labelled_terms = ("hard",)

    def __init__(
        self, temperature: float = 4.0, alpha: float = 0.9, divergence: str = "forward"
    ) -> None:
        super().__init__()
        check_divergence(divergence)
        self.temperature = temperature
        self.alpha = check_fraction("alpha", alpha)
        self.divergence = divergence

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms ``hard`` and ``soft``."""
        soft = soft_target_loss(
            student.logits,
            teacher_logits(teacher, self),
            self.temperature,
            divergence=self.divergence,
        )
        return {
            "hard": (1 - self.alpha) * student.label_loss(targets),
            "soft": self.alpha * soft,
        }
