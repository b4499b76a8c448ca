"""Logit matching: learn the labels and the teacher's logits as they are."""

from __future__ import annotations

from torch import Tensor

from kdlab.datasets.data import TASKS
from kdlab.distillers.base import Distiller, Outputs, teacher_logits
from kdlab.losses import logit_matching_loss
from kdlab.losses.checks import check_weight


class LogitMatching(Distiller):
    """``CE(labels) + weight · mean (z_S − z_T)²``: no softmax, no temperature.

    Source: Ba, Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014, arXiv:1312.6184. The
    paper learns from the logits alone, takes half the *sum* over the classes, and gives the student
    the teacher's logits on unlabelled images, too. Kim, Oh, Kim, Cho, Yun, "Comparing
    Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge Distillation", IJCAI 2021,
    arXiv:2105.08919, compare it with soft targets.

    Args:
        weight: of the mean squared difference, at least 0.

    Raises:
        ValueError: a negative weight.
    """

    labelled_terms = ("hard",)
    tasks = TASKS
    in_tournament = False

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        check_weight("weight", weight)
        self.weight = float(weight)

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms ``hard`` and ``logits``."""
        matching = logit_matching_loss(student.logits, teacher_logits(teacher, self))
        return {
            "hard": student.label_loss(targets),
            "logits": self.weight * matching,
        }
