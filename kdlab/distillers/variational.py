"""VID: predict the teacher's features together with how sure the prediction is."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.distillers.base import LayerDistiller, Layers, Outputs, checked_teacher
from kdlab.distillers.connectors import map_shapes, read_maps
from kdlab.losses import variational_information_loss
from kdlab.losses.checks import check_positive

LEAST_VARIANCE = 1e-5


class Variational(LayerDistiller):
    """``weight · Σ_layers mean ½ (log σ² + (t − μ(s))² / σ²)``, μ and σ² learned.

    μ is three 1×1 convolutions with ReLUs between them; σ² = softplus(α) + 10⁻⁵ is one number per
    channel of the teacher. Both are parameters of this module and train with the student. A public
    implementation keeps its α unregistered, so its variances stay at the start. Maps of different
    sizes are compared at the smaller one. The term can be negative.

    Source: Ahn, Hu, Damianou, Lawrence, Dai, "Variational Information Distillation for Knowledge
    Transfer", CVPR 2019, arXiv:1904.05835. The weight 1, the mean over the features, the network μ
    and the start at σ² = 5 are those of the benchmark of Tian, Krishnan, Isola, arXiv:1910.10699.
    Compared in lesson 02.

    Args:
        layers: pairs of layers; the benchmark's code reads every stage, in networks with a fourth
            (VGG, MobileNetV2, ResNet-50) "stage4" too.
        weight: of the term, at least 0.
        initial_variance: σ² at the start, above 10⁻⁵.
    """

    def __init__(
        self,
        layers: Layers = ("stage1", "stage2", "stage3"),
        weight: float = 1.0,
        initial_variance: float = 5.0,
    ) -> None:
        super().__init__(layers, weight)
        check_positive("initial_variance", initial_variance - LEAST_VARIANCE)
        self.initial_variance = initial_variance

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Build one prediction per pair."""
        self.predictions = nn.ModuleList(
            Prediction(mine[1], theirs[1], self.initial_variance)
            for mine, theirs in map_shapes(self.layers, student, teacher, train)
        )

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the term ``variational``."""
        pairs = read_maps(self.layers, student, checked_teacher(teacher, self))
        values = [
            variational_information_loss(mean, theirs, variance)
            for (mean, variance), theirs in (
                (predict(mine), theirs)
                for predict, (mine, theirs) in zip(self.predictions, pairs, strict=True)
            )
        ]
        return {"variational": self.weight * torch.stack(values).sum()}


class Prediction(nn.Module):
    """A normal distribution of the teacher's features, given the student's ``[B, c, h, w]``."""

    def __init__(self, channels: int, wanted: int, variance: float) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(channels, wanted, kernel_size=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(wanted, wanted, kernel_size=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(wanted, wanted, kernel_size=1, bias=False),
        )
        raw = math.log(math.expm1(variance - LEAST_VARIANCE))  # softplus, backwards
        self.raw_variance = nn.Parameter(torch.full((wanted,), raw))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return μ ``[B, wanted, h, w]`` and σ² ``[wanted]``."""
        return self.mean(features), F.softplus(self.raw_variance) + LEAST_VARIANCE
