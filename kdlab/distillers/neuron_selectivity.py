"""NST: the student's channels, as a set, fire where the teacher's do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.distillers.base import LayerDistiller, Layers, Outputs, checked_teacher
from kdlab.distillers.connectors import check_places, map_shapes, read_maps
from kdlab.losses import neuron_selectivity_loss


class NeuronSelectivity(LayerDistiller):
    """``weight · Σ_layers MMD²`` between the channels of both maps; nothing to train besides.

    Maps of different sizes are compared at the smaller one; the numbers of channels may differ. A
    pair with a single place has nothing to compare: its gradient is 0.

    Source: Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
    2017, arXiv:1707.01219. The weight 50 and the comparison of all stages are those of a benchmark
    (Tian, Krishnan, Isola, arXiv:1910.10699). Compared in lesson 02.

    Args:
        layers: pairs of layers; the benchmark's code reads every stage, in networks with a fourth
            (VGG, MobileNetV2, ResNet-50) "stage4" too.
        weight: of the term, at least 0.
    """

    def __init__(
        self, layers: Layers = ("stage1", "stage2", "stage3"), weight: float = 50.0
    ) -> None:
        super().__init__(layers, weight)

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Check that there are places to compare."""
        check_places(self.layers, map_shapes(self.layers, student, teacher, train))

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the term ``selectivity``."""
        values = [
            neuron_selectivity_loss(mine, theirs)
            for mine, theirs in read_maps(self.layers, student, checked_teacher(teacher, self))
        ]
        return {"selectivity": self.weight * torch.stack(values).sum()}
