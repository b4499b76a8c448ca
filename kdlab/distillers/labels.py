"""The labels alone, as a method that others are added to."""

from __future__ import annotations

from torch import Tensor

from kdlab.datasets.data import TASKS
from kdlab.distillers.base import Distiller, Outputs
from kdlab.losses.checks import check_weight


class Labels(Distiller):
    """``weight · CE(labels)``: no teacher; the baseline, and the other half of ``Labels() + X()``.

    Args:
        weight: of the cross-entropy, at least 0.

    Raises:
        ValueError: a negative weight.
    """

    needs_teacher = False
    labelled_terms = ("hard",)
    tasks = TASKS

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        check_weight("weight", weight)
        self.weight = float(weight)

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the term ``hard``; images without a label (-1) take no part."""
        return {"hard": self.weight * student.label_loss(targets)}
