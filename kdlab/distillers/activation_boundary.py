"""AB: each neuron of the student fires when the teacher's does."""

from __future__ import annotations

from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.distillers.base import LayerDistiller, Layers, Outputs, checked_teacher
from kdlab.distillers.connectors import (
    before_activations,
    connector,
    deepest_first,
    map_shapes,
    read_maps,
)
from kdlab.losses import activation_boundary_loss


class ActivationBoundary(LayerDistiller):
    """``weight · Σ_layers 2^−depth · Σ_neurons`` squared hinge on the side of the boundary.

    Both layers are read *before* the activation that follows, as `kdlab.models.preactivation` finds
    it: what goes into their last ReLU, in a Wide ResNet what comes out of the next block's norm, in
    MobileNetV2 the linear bottleneck. The student's pass a connector, a trained 1×1 convolution
    with batch norm; maps of different sizes are compared at the smaller one. The deepest layer
    counts in full, each one before it half as much.

    Source: Heo, Lee, Yun, Choi, "Knowledge Transfer via Distillation of Activation Boundaries
    Formed by Hidden Neurons", AAAI 2019, arXiv:1811.03233. The paper starts the student by this
    term alone and drops it when the labels come; here it is one term of the sum. The weight 0.003,
    the halving and the sum over the neurons are those of the released code, which has the teacher's
    batch norms in training mode; here they are in eval mode. Compared in lesson 02.

    Args:
        layers: pairs of layers, from shallow to deep. The released code reads every stage: where
            both models have a fourth (VGG, MobileNetV2, ResNet-50), add "stage4".
        weight: of the term, at least 0.
        margin: m > 0: how far on the right side a neuron must be.
    """

    def __init__(
        self,
        layers: Layers = ("stage1", "stage2", "stage3"),
        weight: float = 0.003,
        margin: float = 1.0,
    ) -> None:
        super().__init__(layers, weight)
        self.margin = margin

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Find what comes before the activations, and build one connector per pair."""
        self._before = before_activations(self.layers, student, teacher, train)
        self.student_taps = tuple(path for path, _ in self._before)
        self.teacher_taps = tuple(path for _, path in self._before)
        found = map_shapes(self._before, student, teacher, train)
        self.connectors = nn.ModuleList(connector(mine, theirs) for mine, theirs in found)

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the term ``boundary``."""
        pairs = read_maps(self._before, student, checked_teacher(teacher, self))
        values = [
            activation_boundary_loss(connect(mine), theirs, self.margin)
            for connect, (mine, theirs) in zip(self.connectors, pairs, strict=True)
        ]
        return {"boundary": self.weight * deepest_first(values)}
