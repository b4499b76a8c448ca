"""DIST: match the correlations of the answers, not the answers themselves."""

from __future__ import annotations

from torch import Tensor

from kdlab.distillers.base import Distiller, Outputs, teacher_logits
from kdlab.losses import dist_loss


class Dist(Distiller):
    """``CE(labels) + T² · (β · inter-class + γ · intra-class)`` Pearson distance at temperature T.

    Source: Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", 2022,
    arXiv:2205.10536. Compared in lesson 01.

    Args:
        temperature: T > 0.
        beta: weight of the relation between classes, within a sample.
        gamma: weight of the relation between samples, within a class.
    """

    labelled_terms = ("hard",)

    def __init__(self, temperature: float = 4.0, beta: float = 2.0, gamma: float = 2.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.beta = beta
        self.gamma = gamma
        self.relates_images = gamma > 0

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms ``hard`` and ``dist``."""
        loss = dist_loss(
            student.logits, teacher_logits(teacher, self), self.temperature, self.beta, self.gamma
        )
        return {"hard": student.label_loss(targets), "dist": loss}
