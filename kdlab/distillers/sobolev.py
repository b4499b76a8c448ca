"""Sobolev training: match the derivatives of all answers, or of random mixtures of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.distillers.base import Distiller, Outputs, checked_teacher
from kdlab.losses import input_gradient, sobolev_loss
from kdlab.losses.checks import check_pair, check_weight


class Sobolev(Distiller):
    """``weight · 1/k · Σ_j ‖ v_jᵀ J_S − v_jᵀ J_T ‖²``, with J = ∂ logits / ∂ image.

    The v_j are k random directions of length 1 in the space of the C logits, new for every image
    and step (the paper's stochastic version), or the C unit vectors for the whole Jacobian. Both
    have the same expected value, 1/C · ‖J_S − J_T‖², but the whole costs C backward passes. The
    directions come from PyTorch's global generator, which ``fit`` seeds and its checkpoints keep.

    It is a term to be added to one that matches the answers: ``SoftTargets() + Sobolev()``. It
    differentiates twice, and batch norm and ReLU matter, as for `JacobianMatching`. Unlike there
    the sizes of the slopes count. A fresh deep network with batch norm (MobileNetV2, resnet110) can
    have slopes of a thousand times the teacher's, and the term then destroys it in the first steps:
    use a small weight, such as 1e-4, or `JacobianMatching`.

    Source: Czarnecki, Osindero, Jaderberg, Świrszcz, Pascanu, "Sobolev Training for Neural
    Networks", NeurIPS 2017, arXiv:1706.04859. Order 1; the logits are differentiated; the paper
    sums over the outputs (C times this). Compared in lesson 03.

    Args:
        weight: of the term, at least 0.
        directions: k ≥ 1 random directions, or None for the whole Jacobian.

    Raises:
        ValueError: a negative weight, fewer than 1 direction; in training, no teacher, inputs
            without gradients, or a teacher of other classes.
    """

    needs_input_gradients = True
    complete = False

    def __init__(self, weight: float = 1.0, directions: int | None = 1) -> None:
        super().__init__()
        check_weight("weight", weight)
        whole = isinstance(directions, int) and not isinstance(directions, bool)
        if directions is not None and not (whole and directions >= 1):
            raise ValueError(
                f"directions: {directions!r}, expected an integer of at least 1, or None for the "
                "whole Jacobian"
            )
        self.weight = float(weight)
        self.directions = directions

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the term ``sobolev``."""
        teacher = checked_teacher(teacher, self)
        check_pair(student.logits, teacher.logits)
        directions = self._directions(teacher.logits)
        loss = sobolev_loss(
            _slopes(student, directions, create_graph=True),
            _slopes(teacher, directions, create_graph=False),
        )
        return {"sobolev": self.weight * loss}

    def _directions(self, logits: Tensor) -> list[Tensor]:
        if self.directions is None:
            classes = logits.shape[-1]
            return list(torch.eye(classes, dtype=logits.dtype, device=logits.device))
        # A normal vector has no preferred direction, so its unit vector is evenly spread.
        return [
            F.normalize(torch.randn_like(logits.detach()), dim=-1) for _ in range(self.directions)
        ]


def _slopes(outputs: Outputs, directions: list[Tensor], create_graph: bool) -> Tensor:
    """Return ``[B, k, ...]``, the slope of the logits in each direction."""
    one_by_one = [
        input_gradient(outputs.logits, outputs.inputs, v, create_graph=create_graph)
        for v in directions
    ]
    return torch.stack(one_by_one, dim=1)
