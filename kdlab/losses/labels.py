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
)


def hard_label_loss(
    student: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    *,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy with the labels, in which unlabelled samples take no part.

    −Σ_c t_c log p_c with p = softmax(student) and t = (1 − ε) · one-hot + ε / C.

    Args:
        student: logits ``[B, C]``.
        targets: int64 ``[B]``; -1 (``kdlab.datasets.UNLABELLED``) marks a sample without a label:
            its value is 0 and its gradient exactly 0.
        label_smoothing: ε in [0, 1].
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
    values = F.nll_loss(log_p, targets, ignore_index=UNLABELLED, reduction="none")
    if label_smoothing > 0:
        values = (1 - label_smoothing) * values - label_smoothing * log_p.mean(-1)
    return reduce(values, labelled, reduction, weighted=False)
