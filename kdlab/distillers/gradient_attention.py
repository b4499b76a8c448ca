"""Gradient attention transfer: be sensitive to the pixels that the teacher is sensitive to."""

from __future__ import annotations

from torch import Tensor

from kdlab.distillers.base import Distiller, Outputs, checked_teacher
from kdlab.losses import gradient_attention_loss, hard_label_loss, input_gradient
from kdlab.losses.checks import check_pair, check_weight


class GradientAttention(Distiller):
    """``weight · ½ ‖ J_S − J_T ‖²``, with J = ∂ CE(logits, label) / ∂ image, for each image.

    Needs labels: images without one (-1) take no part. It is a term to be added to one that trains
    the classifier: ``Labels() + GradientAttention()``. It differentiates twice, and batch norm
    and ReLU matter, as for `JacobianMatching`.

    A cross-entropy of nearly 0 has a slope of nearly 0: where a sure teacher is right, the term
    asks the student to be as sure, hence as flat. Like `Sobolev` it needs a small weight for a
    fresh deep network with batch norm, whose slopes are huge.

    Source: Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017, section 3.2,
    arXiv:1612.03928. Here J is the gradient of an image's own loss, so that the term does not
    depend on the size of the batch. The paper's other variant, the invariance of J to a flip of the
    image, is not included. Compared in lesson 03.

    Args:
        weight: β, at least 0.

    Raises:
        ValueError: a negative weight; in training, no teacher, inputs without gradients, or a
            teacher of other classes.
    """

    needs_input_gradients = True
    complete = False
    labelled_terms = ("gradient_attention",)

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        check_weight("weight", weight)
        self.weight = float(weight)

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the term ``gradient_attention``."""
        teacher = checked_teacher(teacher, self)
        check_pair(student.logits, teacher.logits)
        loss = gradient_attention_loss(
            _slope(student, targets, create_graph=True),
            _slope(teacher, targets, create_graph=False),
            mask=targets >= 0,
        )
        return {"gradient_attention": self.weight * loss}


def _slope(outputs: Outputs, targets: Tensor, create_graph: bool) -> Tensor:
    """Return ``[B, ...]``, the gradient of each image's cross-entropy."""
    errors = hard_label_loss(outputs.logits, targets, reduction="none")
    return input_gradient(errors, outputs.inputs, create_graph=create_graph)
