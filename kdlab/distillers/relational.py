"""Relational distillation: the same distances and angles between the images of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from kdlab.distillers.base import LayerDistiller, Layers, Outputs
from kdlab.losses import relational_angle_loss, relational_distance_loss
from kdlab.losses.checks import check_weight

PARTS = {"distance": relational_distance_loss, "angle": relational_angle_loss}


class Relational(LayerDistiller):
    """``weight · Σ_layers (distance · RKD-D + angle · RKD-A)``, as two terms.

    Source: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", 2019, arXiv:1904.05068; 25 and
    50 are the weights of its experiments on classification. Compared in lesson 02.

    Args:
        layers: a path, several, or student's path → teacher's path; of any two shapes.
        distance: factor on the distances.
        angle: factor on the angles, whose memory grows with B³; at 0 they are not computed.
        weight: factor on both.

    Raises:
        ValueError: no layer, a negative factor, fewer than three images in a batch.
    """

    relates_images = True

    def __init__(
        self,
        layers: Layers = "pool",
        distance: float = 25.0,
        angle: float = 50.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__(layers, weight)
        check_weight("distance", distance)
        check_weight("angle", angle)
        self.distance = float(distance)
        self.angle = float(angle)

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms ``distance`` and ``angle``, those with a factor above 0."""
        pairs = self.pairs(student, teacher)
        factors = {name: self.weight * getattr(self, name) for name in PARTS}
        return {
            name: factors[name] * torch.stack([loss(*pair) for pair in pairs]).sum()
            for name, loss in PARTS.items()
            if factors[name] > 0
        }
