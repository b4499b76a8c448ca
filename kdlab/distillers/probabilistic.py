"""Probabilistic knowledge transfer: the teacher's neighbourhoods as probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from kdlab.distillers.base import LayerDistiller, Layers, Outputs
from kdlab.losses import probabilistic_transfer_loss


class Probabilistic(LayerDistiller):
    """``weight · Σ_layers Σ_i KL(p_i ‖ q_i) / B²``: who is whose neighbour, by cosine similarity.

    Source: Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer",
    2018, arXiv:1803.10837; the weight is that of Tian, Krishnan, Isola's comparison
    (arXiv:1910.10699). It belongs to its batches of 64: Σ / B² is the mean over the samples divided
    by B, so 60000 in batches of 128 pulls as much. Compared in lesson 02.

    Args:
        layers: a path, several, or student's path → teacher's path; of any two shapes.
        weight: of the term.

    Raises:
        ValueError: no layer, a negative weight, fewer than three images in a batch.
    """

    relates_images = True

    def __init__(self, layers: Layers = "pool", weight: float = 30000.0) -> None:
        super().__init__(layers, weight)

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the term ``probabilistic``."""
        values = [probabilistic_transfer_loss(*pair) for pair in self.pairs(student, teacher)]
        return {"probabilistic": self.weight * torch.stack(values).sum()}
