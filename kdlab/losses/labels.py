"""The loss on the hard labels, which every distillation loss is added to or compared with."""

import torch.nn.functional as F
from torch import Tensor

from kdlab.losses.checks import (
    UNLABELLED,
    check_logits,
    check_reduction,
    check_targets,
    check_weight,
    compute_dtype,
    reduce,
    values_are_checked,
)


def hard_label_loss(
    student: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    *,
    class_weights: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy with the labels, in which unlabelled samples take no part.

    −Σ_c t_c log p_c with p = softmax(student) and t = (1 − ε) · one-hot + ε / C.

    Args:
        student: logits ``[B, C]``.
        targets: int64 ``[B]``; -1 (``kdlab.datasets.UNLABELLED``) marks a sample without a label:
            its value is 0 and its gradient exactly 0.
        label_smoothing: ε in [0, 1].
        class_weights: ``[C]``, at least 0: each Σ_c counts class c so much, and the mean is
            weighted by the labels' classes, as in ``torch.nn.functional.cross_entropy``.
        reduction: "mean" over the labelled samples (0 if there are none), or "none": ``[B]``.

    Raises:
        ValueError: shapes or dtypes that do not fit; an empty batch; labels out of range; ε
            outside [0, 1]; an unknown reduction.

    Label smoothing: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception
    Architecture for Computer Vision", CVPR 2016, arXiv:1512.00567. Lesson 01 uses it as the
    uninformed control.
    """
    check_reduction(reduction)
    check_weight("label_smoothing", label_smoothing, highest=1.0)
    check_logits("student", student)
    check_targets(targets, student, unlabelled=True)
    labelled = targets >= 0
    logits = student.to(compute_dtype(student)).where(labelled.unsqueeze(-1), 0.0)
    log_p = F.log_softmax(logits, dim=-1)
    weights = None
    if class_weights is not None:
        check_class_weights(class_weights, student.shape[-1])
        weights = class_weights.to(log_p)
    values = F.nll_loss(log_p, targets, weights, ignore_index=UNLABELLED, reduction="none")
    if label_smoothing > 0:
        values = (1 - label_smoothing) * values - label_smoothing * (
            log_p if weights is None else log_p * weights
        ).mean(-1)
    if weights is None or reduction == "none":
        return reduce(values, labelled, reduction, weighted=False)
    total = weights[targets.clamp(min=0)].where(labelled, 0.0).sum()
    return values.where(labelled, 0.0).sum() / total.where(total > 0, 1.0)


def check_class_weights(class_weights: Tensor, classes: int) -> None:
    """Raise ValueError unless these are ``classes`` finite numbers of at least 0, not all 0."""
    shape = list(class_weights.shape)
    if shape != [classes] or not class_weights.is_floating_point():
        raise ValueError(
            f"class_weights: got {class_weights.dtype} of shape {shape}, expected {classes} "
            "floating numbers, one for each class"
        )
    if not values_are_checked():
        return
    if not class_weights.isfinite().all() or (class_weights < 0).any() or not class_weights.any():
        raise ValueError(
            f"class_weights: got {class_weights.tolist()}, expected finite numbers of at least 0, "
            "and one above"
        )
