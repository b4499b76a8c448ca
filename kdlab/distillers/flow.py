"""FSP: match how features flow from one layer to the next, not the features."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.distillers.adapters import as_map, match_size
from kdlab.distillers.base import LayerDistiller, Layers, Outputs
from kdlab.distillers.connectors import map_shapes
from kdlab.losses import flow_loss


class Flow(LayerDistiller):
    """``weight · Σ mean (G_S − G_T)²`` over the flow matrices of consecutive layers.

    G belongs to two layers of *one* network and has the size of their channels, so the sizes of
    the maps in the two networks need not agree. Where the channels differ a trained 1×1 convolution
    W maps the student's to the teacher's, G_S = W₁ G W₂ᵀ; where they agree nothing is
    added, as in the paper. Of two layers of different sizes the larger is pooled by averages.

    Source: Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation", CVPR 2017 (not on arXiv). The
    paper trains by the flow first and by the labels afterwards, and takes the maximum where it
    pools; here it is one term of the sum. The weight 50 is that of the benchmark of Tian, Krishnan,
    Isola, arXiv:1910.10699. Compared in lesson 02.

    Args:
        layers: at least two pairs of layers, from shallow to deep. The benchmark's code begins with
            the stem and goes to the last stage: ("stem", "stage1", ...).
        weight: of the term, at least 0.

    Raises:
        ValueError: a single pair of layers; a bad weight.
    """

    def __init__(
        self, layers: Layers = ("stage1", "stage2", "stage3"), weight: float = 50.0
    ) -> None:
        super().__init__(layers, weight)
        if len(self.layers) < 2:
            raise ValueError(
                f"layers: {layers!r}, expected at least two: a flow goes from one to the next"
            )

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Build a convolution wherever the channels differ."""
        self.regressors = nn.ModuleList(
            nn.Identity() if mine[1] == theirs[1] else nn.Conv2d(mine[1], theirs[1], 1, bias=False)
            for mine, theirs in map_shapes(self.layers, student, teacher, train)
        )

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the term ``flow``."""
        pairs = self.pairs(student, teacher)
        mine = [r(as_map(x)) for r, (x, _) in zip(self.regressors, pairs, strict=True)]
        theirs = [as_map(x) for _, x in pairs]
        values = [
            flow_loss(match_size(*own), match_size(*other))
            for own, other in zip(pairwise(mine), pairwise(theirs), strict=True)
        ]
        return {"flow": self.weight * torch.stack(values).sum()}
