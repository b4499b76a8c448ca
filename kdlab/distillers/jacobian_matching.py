"""Jacobian matching: the student's answer has to react to the image as the teacher's does."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdlab.distillers.base import Distiller, Outputs, checked_teacher
from kdlab.losses import input_gradient, jacobian_matching_loss
from kdlab.losses.checks import check_pair, check_weight


class JacobianMatching(Distiller):
    """``weight · ‖ ∇z_S / ‖∇z_S‖ − ∇z_T / ‖∇z_T‖ ‖²``: slopes of the teacher's top class.

    ∇z is the gradient, by the image, of the logit of the class that the teacher finds likeliest;
    both networks are asked about that class. It is a term to be added to one that trains the
    classifier: ``SoftTargets() + JacobianMatching()``.

    The term differentiates twice, and the teacher is asked anew in each step, with a graph. On a
    ReLU student it acts only through the slopes of linear pieces (`kdlab.losses.input_gradient`);
    ``activation="silu"`` gives a student that curves. The student's slope is taken in training
    mode, where batch norm couples the samples of a batch a little, the teacher's in eval mode.

    Source: Srinivas, Fleuret, "Knowledge Transfer with Jacobian Matching", ICML 2018,
    arXiv:1803.00443. One output stands for the whole Jacobian, as there; the teacher's top class
    needs no label. Compared in lesson 03.

    Args:
        weight: of the term, at least 0.

    Raises:
        ValueError: a negative weight; in training, no teacher, inputs without gradients, or a
            teacher of other classes.
    """

    needs_input_gradients = True
    complete = False

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        check_weight("weight", weight)
        self.weight = float(weight)

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the term ``jacobian``."""
        teacher = checked_teacher(teacher, self)
        check_pair(student.logits, teacher.logits)
        top = F.one_hot(teacher.logits.argmax(-1), teacher.logits.shape[-1])
        loss = jacobian_matching_loss(
            input_gradient(student.logits, student.inputs, top, create_graph=True),
            input_gradient(teacher.logits, teacher.inputs, top, create_graph=False),
        )
        return {"jacobian": self.weight * loss}
