"""Soft targets where several labels may hold at once: a sigmoid per label, no softmax."""

from __future__ import annotations

from torch import Tensor

from kdlab.distillers.base import Distiller, Outputs, check_fraction, teacher_logits
from kdlab.losses import sigmoid_target_loss
from kdlab.losses.checks import check_temperature


class SigmoidTargets(Distiller):
    """``(1 − α) · BCE(labels) + α · T² · mean_c KL`` between each label's two probabilities.

    For data of the task "labels" (``kdlab.datasets.from_tensors``).

    Source: as `kdlab.losses.sigmoid_target_loss`: Yang, Xie, Zong, Feng, Niu, Sugiyama, Huang,
    "Multi-Label Knowledge Distillation", ICCV 2023, arXiv:2308.06453, and Hinton et al., 2015.

    Args:
        temperature: T from 0.001 to 1e9; labels rarely need more than 1.
        alpha: from 0, labels alone, to 1, the teacher alone.

    Raises:
        ValueError: an option out of its range.
    """

    tasks = ("labels",)
    labelled_terms = ("hard",)
    in_tournament = False

    def __init__(self, temperature: float = 1.0, alpha: float = 0.5) -> None:
        super().__init__()
        check_temperature("temperature", temperature)
        self.temperature = temperature
        self.alpha = check_fraction("alpha", alpha)

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms ``hard`` and ``soft``."""
        soft = sigmoid_target_loss(student.logits, teacher_logits(teacher, self), self.temperature)
        return {
            "hard": (1 - self.alpha) * student.label_loss(targets),
            "soft": self.alpha * soft,
        }
