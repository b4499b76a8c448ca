"""Regression: the teacher's values as targets, or as a bound that the student should pass."""

from __future__ import annotations

from torch import Tensor

from kdlab.distillers.base import Distiller, Outputs, check_fraction, teacher_logits
from kdlab.losses import value_target_loss
from kdlab.losses.checks import check_weight


class ValueTargets(Distiller):
    """``(1 − α) · MSE(labels) + α · MSE(teacher)``; with a margin the teacher is a bound.

    For data of the task "values" (``kdlab.datasets.from_tensors``).

    Source: the bound is Chen, Choi, Yu, Han, Chandraker, "Learning Efficient Object Detection
    Models with Knowledge Distillation", NeurIPS 2017 (not on arXiv).

    Args:
        alpha: from 0, labels alone, to 1, the teacher alone.
        margin: None learns the teacher's values; a number of at least 0, in squared units of the
            values, counts the error to the labels only where it is not yet smaller than the
            teacher's by so much.

    Raises:
        ValueError: an option out of its range.
    """

    tasks = ("values",)
    in_tournament = False

    def __init__(self, alpha: float = 0.5, margin: float | None = None) -> None:
        super().__init__()
        self.alpha = check_fraction("alpha", alpha)
        if margin is not None:
            check_weight("margin", margin)
        self.margin = margin
        self.labelled_terms = ("hard",) if margin is None else ("hard", "teacher")

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms ``hard`` and ``teacher``."""
        said = teacher_logits(teacher, self)
        value = value_target_loss(student.logits, said, targets, self.margin)
        return {
            "hard": (1 - self.alpha) * student.label_loss(targets),
            "teacher": self.alpha * value,
        }
