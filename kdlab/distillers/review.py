"""ReviewKD: a layer of the teacher is matched by the student's same and all deeper layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.distillers.adapters import as_map, example_of, resize
from kdlab.distillers.base import LayerDistiller, Layers, Outputs, checked_teacher, read_layers
from kdlab.distillers.connectors import given, map_shapes
from kdlab.losses import hierarchical_context_loss
from kdlab.models import preactivation

MOST_CHANNELS = 512  # of the space in which layers are fused


class Review(LayerDistiller):
    """``weight · Σ_layers`` hierarchical context loss, the student's layers fused from the deepest.

    From deep to shallow, each layer of the student is mixed with what came from below it by two
    learned attention maps (attention-based fusion, ABF), and the mixture predicts the teacher's
    layer. So a shallow layer of the teacher also teaches the student's deep ones. As in the
    released code the teacher's layers are read before the activation that follows
    (`kdlab.models.preactivation`), the student's as they are.

    Source: Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021,
    arXiv:2104.09044. The weight 5 is the released scripts' for wrn_40_2 → wrn_16_2 on CIFAR-100
    (they have one per pair of networks). It grows there over the first epochs; here it is constant.
    The released code has the embedding as a fourth layer: add "pool" for that. It enlarges maps by
    repeating pixels where this smooths. Compared in lesson 02.

    Args:
        layers: pairs of layers, from shallow to deep. The released code reads every stage: where
            both models have a fourth (VGG, MobileNetV2, ResNet-50), add "stage4".
        weight: of the term, at least 0.
    """

    def __init__(
        self, layers: Layers = ("stage1", "stage2", "stage3"), weight: float = 5.0
    ) -> None:
        super().__init__(layers, weight)

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Find what the teacher has before its activations, and build one fusion per pair."""
        example = example_of(train, 1)
        self._read = tuple(
            (path, preactivation(given(teacher), other, example)) for path, other in self.layers
        )
        self.teacher_taps = tuple(dict.fromkeys(other for _, other in self._read))
        found = map_shapes(self._read, student, teacher, train)
        shared = min(MOST_CHANNELS, found[-1][0][1])
        deepest = len(found) - 1
        self.fusions = nn.ModuleList(
            Fusion(mine[1], shared, theirs[1], fuses=number < deepest)
            for number, (mine, theirs) in enumerate(found)
        )

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the term ``review``."""
        pairs = read_layers(self._read, student, checked_teacher(teacher, self))
        values: list[Tensor] = []
        deeper: Tensor | None = None
        for fusion, (mine, theirs) in zip(reversed(self.fusions), reversed(pairs), strict=True):
            theirs = as_map(theirs)
            predicted, deeper = fusion(as_map(mine), deeper, theirs.shape[2:])
            values.append(hierarchical_context_loss(predicted, theirs))
        return {"review": self.weight * torch.stack(values).sum()}


class Fusion(nn.Module):
    """A layer of the student, mixed with the mixture of the deeper ones: ABF."""

    def __init__(self, channels: int, shared: int, wanted: int, fuses: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(
            nn.Conv2d(channels, shared, kernel_size=1, bias=False), nn.BatchNorm2d(shared)
        )
        self.leave = nn.Sequential(
            nn.Conv2d(shared, wanted, kernel_size=3, padding=1, bias=False), nn.BatchNorm2d(wanted)
        )
        self.attend = nn.Conv2d(2 * shared, 2, kernel_size=1) if fuses else None

    def forward(
        self, features: Tensor, deeper: Tensor | None, size: torch.Size
    ) -> tuple[Tensor, Tensor]:
        """Return the prediction of the teacher's map and the mixture, both of ``size``."""
        mixed = self.enter(features)
        if self.attend is not None:
            assert deeper is not None
            deeper = F.interpolate(deeper, mixed.shape[2:], mode="nearest")
            share = self.attend(torch.cat([mixed, deeper], dim=1)).sigmoid()
            mixed = mixed * share[:, :1] + deeper * share[:, 1:]
        mixed = resize(mixed, tuple(size))
        return self.leave(mixed), mixed
