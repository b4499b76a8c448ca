"""Losses for other tasks than one class per sample: several labels at once, and values."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.losses.checks import (
    check_logits,
    check_pair,
    check_reduction,
    check_temperature,
    check_weight,
    compute_dtype,
    prepare,
    reduce,
    values_are_checked,
)
from kdlab.losses.divergences import tempered_divergence


def multi_label_loss(student: Tensor, targets: Tensor, *, reduction: str = "mean") -> Tensor:
    """Binary cross-entropy of each label: mean over the labels of −y log p − (1 − y) log(1 − p).

    p = sigmoid(student): the labels are judged one by one, and several may hold at once.

    Args:
        student: logits ``[B, C]``.
        targets: floating ``[B, C]`` in [0, 1]; a row with NaN is unlabelled: its value is 0 and its
            gradient exactly 0.
        reduction: "mean" over the labelled samples (0 if there are none), or "none": ``[B]``.

    Raises:
        ValueError: shapes or dtypes that do not fit, targets outside [0, 1], an unknown reduction.
    """
    logits, wanted, labelled = _prepare(student, targets, reduction)
    if values_are_checked() and not bool(((wanted >= 0) & (wanted <= 1)).all()):
        raise ValueError("targets: got values outside [0, 1], expected 0 (absent) to 1 (present)")
    values = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(-1)
    return reduce(values, labelled, reduction, weighted=False)


def value_loss(student: Tensor, targets: Tensor, *, reduction: str = "mean") -> Tensor:
    """Squared error: mean over the values of (student − target)².

    Args:
        student: outputs ``[B, D]``.
        targets: floating ``[B, D]``; a row with NaN is unlabelled: its value is 0 and its gradient
            exactly 0.
        reduction: "mean" over the labelled samples (0 if there are none), or "none": ``[B]``.

    Raises:
        ValueError: shapes or dtypes that do not fit, an unknown reduction.
    """
    outputs, wanted, labelled = _prepare(student, targets, reduction)
    return reduce((outputs - wanted).square().mean(-1), labelled, reduction, weighted=False)


def sigmoid_target_loss(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, *, reduction: str = "mean"
) -> Tensor:
    """Soft targets of several labels: T² · mean_c KL(Bernoulli(p_T,c) ‖ Bernoulli(p_S,c)).

    p = sigmoid(z / T), for each label of its own, where a softmax would make the labels compete.
    For one sample and one label it is the soft-target loss of the two classes [z, 0].

    Args:
        student, teacher: logits ``[B, C]``.
        temperature: T from 0.001 to 1e9.
        reduction: "mean" or "none": ``[B]``.

    Raises:
        ValueError: as `soft_target_loss`.

    Source: one binary distillation per label, as Yang, Xie, Zong, Feng, Niu, Sugiyama, Huang,
    "Multi-Label Knowledge Distillation", ICCV 2023, arXiv:2308.06453; the paper also
    matches embeddings of the labels, which this does not. T² as in Hinton, Vinyals, Dean, 2015.
    """
    check_reduction(reduction)
    check_temperature("temperature", temperature)
    check_pair(student, teacher)
    pair = prepare(student, teacher, None)
    s, t = (torch.stack([z, torch.zeros_like(z)], -1) for z in pair)
    values = temperature**2 * tempered_divergence(s, t, temperature).mean(-1)
    return reduce(values, None, reduction)


def value_target_loss(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor | None = None,
    margin: float | None = None,
    *,
    reduction: str = "mean",
) -> Tensor:
    """Value targets: the squared error to the teacher's values, or to the labels where it helps.

    Without ``margin``: mean over the values of (student − teacher)². With it, the teacher is a
    bound and no target: the squared error to the *labels* counts for a sample only while it exceeds
    the teacher's minus the margin; a student that is better by the margin is left alone.

    Args:
        student, teacher: outputs ``[B, D]``.
        targets: ``[B, D]``, needed with a margin; a row with NaN is unlabelled.
        margin: m at least 0, in squared units of the values.
        reduction: "mean" or "none": ``[B]``.

    Raises:
        ValueError: shapes or dtypes that do not fit, a margin without targets or below 0.

    Source: the bounded form is Chen, Choi, Yu, Han, Chandraker, "Learning Efficient Object
    Detection Models with Knowledge Distillation", NeurIPS 2017 (not on arXiv).
    """
    check_reduction(reduction)
    check_pair(student, teacher)
    outputs, said = prepare(student, teacher, None)
    if margin is None:
        return reduce((outputs - said).square().mean(-1), None, reduction)
    check_weight("margin", margin)
    if targets is None:
        raise ValueError("targets: got None with a margin, expected the labels [B, D]")
    _, wanted, labelled = _prepare(student, targets, reduction)
    error, its = ((z - wanted).square().mean(-1) for z in (outputs, said))
    return reduce(error.where(error.detach() + margin > its, 0.0), labelled, reduction)


def _prepare(student: Tensor, targets: Tensor, reduction: str) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs and targets in the computing dtype, both 0 where unlabelled, and who is labelled."""
    check_reduction(reduction)
    check_logits("student", student)
    if not targets.is_floating_point() or targets.shape != student.shape:
        raise ValueError(
            f"targets: got {targets.dtype} of shape {list(targets.shape)}, expected floating ones "
            f"of the student's {list(student.shape)}"
        )
    labelled = ~targets.isnan().any(-1)
    dtype = compute_dtype(student)
    rows = labelled.unsqueeze(-1)
    return student.to(dtype).where(rows, 0.0), targets.to(dtype).where(rows, 0.0), labelled
