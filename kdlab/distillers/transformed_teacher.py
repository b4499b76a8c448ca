"""Transformed teacher matching: soften the teacher alone."""

from __future__ import annotations

from torch import Tensor

from kdlab.distillers.base import Distiller, Outputs, teacher_logits
from kdlab.losses import ttm_loss


class TransformedTeacher(Distiller):
    """``CE(labels) + weight · KL(teacher at T ‖ student at 1)``; no T² since only one side softens.

    Source: Zheng, Yang, "Knowledge Distillation Based on Transformed Teacher Matching", 2024,
    arXiv:2402.11148. The authors choose T and the weight for each pair of networks (for VGG13 and
    VGG8: T = 10, weight 45); 4 and 1 are ours. Compared in lesson 01.

    Args:
        temperature: T > 0 of the teacher; the paper's power is 1/T.
        weight: factor on the distillation term.
        weighted: True for WTTM, which listens more where the teacher is unsure.
    """

    labelled_terms = ("hard",)

    def __init__(
        self, temperature: float = 4.0, weight: float = 1.0, weighted: bool = False
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.weight = weight
        self.weighted = weighted

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms ``hard`` and ``transformed``."""
        loss = ttm_loss(
            student.logits,
            teacher_logits(teacher, self),
            self.temperature,
            weighted=self.weighted,
        )
        return {
            "hard": student.label_loss(targets),
            "transformed": self.weight * loss,
        }
