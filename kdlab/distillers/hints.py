"""FitNets' hints: a layer of the student learns to predict a layer of the teacher."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.distillers.adapters import adapter
from kdlab.distillers.base import LayerDistiller, Layers, Outputs
from kdlab.distillers.connectors import pair_shapes
from kdlab.losses import hint_loss


class Hints(LayerDistiller):
    """``weight · Σ_layers mean (r(s) − t)²``, with a learned regressor r for each pair of layers.

    Source: Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets",
    ICLR 2015, arXiv:1412.6550. The paper trains the lower half by the hint first and the whole
    student afterwards; here both happen at once, as in later benchmarks, whose weight of 100 this
    is (Tian, Krishnan, Isola, arXiv:1910.10699). Their regressor adds a batch norm and a ReLU to
    the 1×1 convolution, and resizes by a larger one. Derived in lesson 02.

    Args:
        layers: pairs of layers; any pair of maps, tokens or embeddings that `adapter` can join.
        weight: of the term, at least 0.
    """

    def __init__(self, layers: Layers = "stage2", weight: float = 100.0) -> None:
        super().__init__(layers, weight)

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Build one regressor per pair."""
        found = pair_shapes(self.layers, student, teacher, train)
        self.regressors = nn.ModuleList(
            adapter(path, mine, other, theirs)
            for (path, other), (mine, theirs) in zip(self.layers, found, strict=True)
        )

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the term ``hint``."""
        pairs = self.pairs(student, teacher)
        values = [
            hint_loss(regressor(mine), theirs)
            for regressor, (mine, theirs) in zip(self.regressors, pairs, strict=True)
        ]
        return {"hint": self.weight * torch.stack(values).sum()}
