"""Similarity preserving: what is alike for the teacher is alike for the student."""

from __future__ import annotations

import torch
from torch import Tensor

from kdlab.distillers.base import LayerDistiller, Layers, Outputs
from kdlab.losses import similarity_preserving_loss


class SimilarityPreserving(LayerDistiller):
    """``weight · Σ_layers ‖Ĝ_S − Ĝ_T‖² / B²`` of the batch's inner products, rows of unit length.

    Layers of any two shapes can be paired: only tables ``[B, B]`` meet.

    Source: Tung, Mori, "Similarity-Preserving Knowledge Distillation", 2019, arXiv:1907.09682,
    whose weight is 3000, on the last feature map. Compared in lesson 02.

    Args:
        layers: a path, several, or student's path → teacher's path. In networks with a fourth stage
            (VGG, MobileNetV2, ResNet-50) the last feature map is "stage4".
        weight: of the term.

    Raises:
        ValueError: no layer, a negative weight, fewer than two images in a batch.
    """

    relates_images = True

    def __init__(self, layers: Layers = "stage3", weight: float = 3000.0) -> None:
        super().__init__(layers, weight)

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the term ``similarity``."""
        values = [similarity_preserving_loss(*pair) for pair in self.pairs(student, teacher)]
        return {"similarity": self.weight * torch.stack(values).sum()}
