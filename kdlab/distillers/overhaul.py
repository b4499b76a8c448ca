"""OFD: the teacher's features before the ReLU, as far as the ReLU would let them through."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.distillers.adapters import as_map, example_of, read_features, rows_of
from kdlab.distillers.base import LayerDistiller, Layers, Outputs, checked_teacher
from kdlab.distillers.connectors import (
    before_activations,
    connector,
    deepest_first,
    given,
    map_shapes,
    read_maps,
)
from kdlab.losses import batch_norm_margin, overhaul_loss
from kdlab.losses.checks import compute_dtype
from kdlab.models.positions import norm_before

BATCH = 256


class Overhaul(LayerDistiller):
    """``weight · Σ_layers 2^−depth ·`` partial squared distance to the teacher's margin ReLU.

    Both layers are read *before* the activation that follows, as `kdlab.models.preactivation` finds
    it: what goes into their last ReLU, in a Wide ResNet what comes out of the next block's norm, in
    MobileNetV2 the linear bottleneck. The student's pass a connector, a trained 1×1 convolution
    with batch norm; maps of different sizes are compared at the smaller one. The deepest layer
    counts in full, each one before it half as much.

    The margin of a channel is the mean of the teacher's negative values. Where a batch norm feeds
    the activation it is computed from the norm's parameters (`batch_norm_margin`); elsewhere,
    such as after a shortcut, it is measured on the training images. The paper names both ways; the
    released code takes the last batch norm even where a shortcut is added to it.

    Source: Heo, Kim, Yun, Park, Kwak, Choi, "A Comprehensive Overhaul of Feature Distillation",
    ICCV 2019, arXiv:1904.01866. The weight 0.001, the halving and the sum over the features are
    those of the released code. The paper keeps the teacher's batch norms in training mode, so that
    they use the batch's statistics (its table 8); here the teacher is in eval mode, as in every
    method. Compared in lesson 02.

    Args:
        layers: pairs of layers, from shallow to deep. The released code reads every stage: where
            both models have a fourth (VGG, MobileNetV2, ResNet-50), add "stage4".
        weight: of the term, at least 0.
    """

    def __init__(
        self, layers: Layers = ("stage1", "stage2", "stage3"), weight: float = 0.001
    ) -> None:
        super().__init__(layers, weight)

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Find what comes before the activations; build connectors, compute margins."""
        self._before = before_activations(self.layers, student, teacher, train)
        self.student_taps = tuple(path for path, _ in self._before)
        self.teacher_taps = tuple(path for _, path in self._before)
        found = map_shapes(self._before, student, teacher, train)
        self.connectors = nn.ModuleList(connector(mine, theirs) for mine, theirs in found)
        for number, tap in enumerate(self.teacher_taps):
            self.register_buffer(f"margin{number}", margin_before(given(teacher), tap, train))

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the term ``overhaul``."""
        pairs = read_maps(self._before, student, checked_teacher(teacher, self))
        values = [
            overhaul_loss(connect(mine), theirs, self.get_buffer(f"margin{number}"))
            for number, (connect, (mine, theirs)) in enumerate(
                zip(self.connectors, pairs, strict=True)
            )
        ]
        return {"overhaul": self.weight * deepest_first(values)}


def margin_before(teacher: nn.Module, tap: str, train: Split) -> Tensor:
    """Return the mean ``[c]`` of a layer's negative values, from a batch norm or from images."""
    norm = norm_before(teacher, tap, example_of(train, 1))
    if isinstance(norm, nn.BatchNorm2d) and norm.affine:
        return batch_norm_margin(norm)
    return measured_margin(teacher, tap, train)


@torch.no_grad()
def measured_margin(teacher: nn.Module, tap: str, train: Split) -> Tensor:
    """Return the mean ``[c]`` of what is negative in all images and places; 0 where nothing is."""
    totals, counts = [], []
    rows = rows_of(teacher, [tap], train)
    for images in train.x.split(BATCH):
        features = as_map(read_features(teacher, [tap], images, rows)[tap])
        values = features.double()
        totals.append(values.clamp(max=0).sum((0, 2, 3)))
        counts.append((values < 0).sum((0, 2, 3)))
    mean = torch.stack(totals).sum(0) / torch.stack(counts).sum(0).clamp(min=1)
    return mean.to(compute_dtype(features))
