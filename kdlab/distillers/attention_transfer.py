"""Attention transfer: look where the teacher looks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.distillers.base import LayerDistiller, Layers, Outputs, checked_teacher
from kdlab.distillers.connectors import check_places, map_shapes, read_maps
from kdlab.losses import attention_transfer_loss


class AttentionTransfer(LayerDistiller):
    """``weight · Σ_layers`` distance of the two attention maps; nothing to train besides.

    Maps of different sizes are compared at the smaller one; the channels do not matter. A pair
    with a single place has nothing to compare: its gradient is 0.

    Source: Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017,
    arXiv:1612.03928. The weight 1000 is that of the released code and of later benchmarks and
    belongs to ``norm="released"``; the paper's norm is larger (see `attention_transfer_loss`) and
    wants a weight nearer 1. Derived in lesson 02.

    Args:
        layers: pairs of layers; the benchmark's code reads every stage, in networks with a fourth
            (VGG, MobileNetV2, ResNet-50) "stage4" too.
        weight: of the term, at least 0.
        norm: "released" (mean square) or "paper" (length).
        power: p ≥ 1 of the attention map Σ_c |f_c|^p.
    """

    def __init__(
        self,
        layers: Layers = ("stage1", "stage2", "stage3"),
        weight: float = 1000.0,
        norm: str = "released",
        power: float = 2.0,
    ) -> None:
        super().__init__(layers, weight)
        self.norm = norm
        self.power = power

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Check that there are places to compare."""
        check_places(self.layers, map_shapes(self.layers, student, teacher, train))

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the term ``attention``."""
        values = [
            attention_transfer_loss(mine, theirs, self.power, norm=self.norm)
            for mine, theirs in read_maps(self.layers, student, checked_teacher(teacher, self))
        ]
        return {"attention": self.weight * torch.stack(values).sum()}
