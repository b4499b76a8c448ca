"""MLKD: match the answers, how alike samples are answered, and which classes go together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kdlab.distillers.base import Distiller, Outputs, check_fraction, teacher_logits
from kdlab.losses import (
    batch_relation_loss,
    class_relation_loss,
    soft_target_loss,
)
from kdlab.losses.checks import check_positive, check_weight


class MultiLevel(Distiller):
    """``(1 − α) · CE(labels) + α · Σ_T (instance + b · batch + c · class)``, T of several values.

    With P = softmax(z / T) ``[B, C]``: instance = T² · KL(teacher ‖ student), batch = ‖P_S P_Sᵀ −
    P_T P_Tᵀ‖² / B², class = ‖P_Sᵀ P_S − P_Tᵀ P_T‖² / (B² C).

    Source: Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023 (not on arXiv;
    github.com/Jin-Ying/Multi-Level-Logit-Distillation). The temperatures and α are its code's. It
    divides the batch's term by B and the class's by C alone, so that they grow with the batch; the
    defaults are what that is at its batch of 64 and, for c, its 100 classes: with ten the same c
    would outweigh all else, because their probabilities are larger. Its weights of 0 or 1 for
    samples and classes of low confidence multiply terms that are means already, so they only halve
    them, and are left out here. It shows the student two views of each image, one weakly and one
    strongly augmented; here there is one, that of ``fit(augment=...)``. Five temperatures make a
    large loss: the authors halve the usual learning rate.

    Args:
        temperatures: each above 0.
        alpha: weight of what the teacher says, 0 to 1.
        batch_weight: b, at least 0.
        class_weight: c, at least 0; None takes 0.4096 · C², which is 4096 with 100 classes.

    Raises:
        ValueError: no temperature, an option out of its range.
    """

    labelled_terms = ("hard",)
    in_tournament = False

    def __init__(
        self,
        temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
        alpha: float = 0.9,
        batch_weight: float = 64.0,
        class_weight: float | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(temperatures, Sequence) or not temperatures:
            raise ValueError(
                f"temperatures: got {temperatures!r}, expected at least one, such as (2.0, 4.0)"
            )
        for temperature in temperatures:
            check_positive("temperatures", temperature)
        check_weight("batch_weight", batch_weight)
        if class_weight is not None:
            check_weight("class_weight", class_weight)
        self.temperatures = tuple(float(temperature) for temperature in temperatures)
        self.alpha = check_fraction("alpha", alpha)
        self.batch_weight = float(batch_weight)
        self.class_weight = None if class_weight is None else float(class_weight)
        self.relates_images = batch_weight > 0 or class_weight != 0

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms ``hard``, ``instance``, ``batch`` and ``class``."""
        pair, classes = (student.logits, teacher_logits(teacher, self)), student.logits.shape[-1]
        class_weight = 0.4096 * classes**2 if self.class_weight is None else self.class_weight

        def over_temperatures(loss: Callable[..., Tensor], weight: float = 1.0) -> Tensor:
            return (
                self.alpha * weight * torch.stack([loss(*pair, t) for t in self.temperatures]).sum()
            )

        return {
            "hard": (1 - self.alpha) * student.label_loss(targets),
            "instance": over_temperatures(soft_target_loss),
            "batch": over_temperatures(batch_relation_loss, self.batch_weight),
            "class": over_temperatures(class_relation_loss, class_weight),
        }
