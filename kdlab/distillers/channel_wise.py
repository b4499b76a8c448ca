"""CWD: each channel's map, as a distribution over places, follows the teacher's channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.distillers.base import LayerDistiller, Layers, Outputs, checked_teacher
from kdlab.distillers.connectors import check_places, map_shapes, read_maps
from kdlab.losses import channel_wise_loss


class ChannelWise(LayerDistiller):
    """``weight · Σ_layers T² · KL`` of softmaxes over the places, teacher's from student's channel.

    A 1×1 convolution maps the student's channels to the teacher's where their numbers differ. Maps
    of different sizes are compared at the smaller one. A pair with a single place has nothing to
    compare: its gradient is 0.

    Source: Shu, Liu, Gao, Yan, Shen, "Channel-wise Knowledge Distillation for Dense Prediction",
    ICCV 2021, arXiv:2011.13256. T = 4 and the weight 50 come from its experiments on the feature
    maps of segmentation networks. Those are large; on small images a classifier's last map has
    hardly any places, so the stage before it is read. Compared in lesson 02.

    Args:
        layers: pairs of layers.
        weight: of the term, at least 0.
        temperature: T > 0; higher lets weaker places count.
    """

    def __init__(
        self, layers: Layers = "stage2", weight: float = 50.0, temperature: float = 4.0
    ) -> None:
        super().__init__(layers, weight)
        self.temperature = temperature

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Build a convolution wherever the channels differ."""
        found = map_shapes(self.layers, student, teacher, train)
        check_places(self.layers, found)
        self.regressors = nn.ModuleList(
            nn.Identity() if mine[1] == theirs[1] else nn.Conv2d(mine[1], theirs[1], 1)
            for mine, theirs in found
        )

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the term ``channel``."""
        pairs = read_maps(self.layers, student, checked_teacher(teacher, self))
        values = [
            channel_wise_loss(regressor(mine), theirs, self.temperature)
            for regressor, (mine, theirs) in zip(self.regressors, pairs, strict=True)
        ]
        return {"channel": self.weight * torch.stack(values).sum()}
