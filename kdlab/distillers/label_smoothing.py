"""Label smoothing: the control that softens the targets without knowing anything."""

from __future__ import annotations

from torch import Tensor

from kdlab.distillers.base import Distiller, Outputs, check_fraction


class LabelSmoothing(Distiller):
    """Cross-entropy with ``(1 - ε)`` on the label and ``ε / C`` on every class.

    Source: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception Architecture for
    Computer Vision", 2015, arXiv:1512.00567. The uninformed control of lesson 01.

    Args:
        smoothing: ε from 0 to 1.
    """

    needs_teacher = False
    labelled_terms = ("hard",)

    def __init__(self, smoothing: float = 0.1) -> None:
        super().__init__()
        self.smoothing = check_fraction("smoothing", smoothing)

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the term ``hard``."""
        return {"hard": student.label_loss(targets, self.smoothing)}
