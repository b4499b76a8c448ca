"""Hard distillation: the teacher's choice is a second label."""

from __future__ import annotations

from torch import Tensor

from kdlab.distillers.base import Distiller, Outputs, check_fraction, teacher_logits
from kdlab.losses import hard_target_loss


class HardTargets(Distiller):
    """``(1 − α) · CE(labels) + α · CE(argmax of the teacher)``: no temperature to choose.

    Source: Touvron, Cord, Douze, Massa, Sablayrolles, Jégou, "Training data-efficient image
    transformers & distillation through attention" (DeiT), ICML 2021, arXiv:2012.12877, whose α is ½
    and whose student has a second head for the teacher: `TwoHeads`.

    Args:
        alpha: weight of the teacher's choice, 0 to 1.

    Raises:
        ValueError: α outside [0, 1].
    """

    labelled_terms = ("hard",)
    in_tournament = False

    def __init__(self, alpha: float = 0.5) -> None:
        super().__init__()
        self.alpha = check_fraction("alpha", alpha)

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms ``hard`` and ``choice``."""
        choice = hard_target_loss(student.logits, teacher_logits(teacher, self))
        return {
            "hard": (1 - self.alpha) * student.label_loss(targets),
            "choice": self.alpha * choice,
        }
