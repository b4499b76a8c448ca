"""Losses between the logits of a student and of a teacher: soft targets and their descendants.

Conventions of all of them: logits ``[B, C]``; the divergence is summed over the classes, then
averaged over the samples; ``reduction="none"`` gives one value per sample ``[B]``; the teacher's
side is detached; half precision is computed, and returned, in float32. Lesson 01 derives them.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.losses.checks import (
    check_mask,
    check_pair,
    check_reduction,
    check_targets,
    check_temperature,
    check_weight,
    compute_dtype,
    prepare,
    reduce,
)
from kdlab.losses.divergence_kinds import jensen_shannon_divergence, reverse_divergence
from kdlab.losses.divergences import (
    PLAIN_UP_TO,
    divergence,
    kl_divergence,
    log_softmax_ratio,
    tempered_divergence,
)

# from the logits of student and teacher, without T²
DIVERGENCES = {
    "forward": tempered_divergence,
    "reverse": reverse_divergence,
    "jensen-shannon": jensen_shannon_divergence,
}


def check_divergence(divergence: str) -> None:
    """Raise ValueError unless ``divergence`` is the name of one."""
    if not isinstance(divergence, str) or divergence not in DIVERGENCES:
        known = ", ".join(map(repr, DIVERGENCES))
        raise ValueError(f"divergence: got {divergence!r}, expected one of {known}")


def soft_target_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 4.0,
    *,
    divergence: str = "forward",
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Soft targets: T² · KL(softmax(teacher / T) ‖ softmax(student / T)).

    The factor T² keeps the size of the gradient, and so the meaning of the loss's weight, about the
    same once T is large against the logits; without it the gradient falls like 1 / T². For T → ∞
    the loss becomes the mean squared difference of the centred logits, ½ · mean_c (s − t)²; value
    and gradient are accurate on the whole way there (`kdlab.losses.divergences`).

    Args:
        student: logits ``[B, C]``, or ``[B, N, C]`` for N positions (tokens) per sample.
        teacher: logits of the same shape, finite where the mask is True.
        temperature: T from 0.001 to 1e9, for both sides.
        divergence: "forward", KL(p_T ‖ p_S), asks the student to cover all that the teacher finds
            possible; "reverse", KL(p_S ‖ p_T), not to say what the teacher finds impossible (Gu,
            Dong, Wei, Huang, "MiniLLM", ICLR 2024, arXiv:2306.08543); "jensen-shannon",
            ½ KL(p_T ‖ m) + ½ KL(p_S ‖ m) with m = ½ (p_T + p_S), is symmetric and at most log 2
            (Agarwal and 7 others, "On-Policy Distillation of Language Models", ICLR 2024,
            arXiv:2306.13649). Near agreement, as at high T, the first two have the same size and
            the third a quarter of it.
        mask: bool, True = takes part; ``[B]``, or ``[B, N]`` with logits ``[B, N, C]``. A sample's
            value is the mean over its positions that take part. What does not take part gets a
            gradient of exactly 0, whatever its logits are.
        reduction: "mean" over the samples that take part (0 if none does), or "none": ``[B]``.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; an empty batch; T out of its range; a
            teacher with NaN or infinite logits; an unknown divergence or reduction.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
    arXiv:1503.02531. Derived in lesson 01.
    """
    check_reduction(reduction)
    check_temperature("temperature", temperature)
    check_divergence(divergence)
    check_pair(student, teacher, dims=(2, 3))
    if mask is not None:
        check_mask(mask, student)
    student, teacher = prepare(student, teacher, mask)
    values = temperature**2 * DIVERGENCES[divergence](student, teacher, temperature)
    takes_part = mask
    if mask is not None and mask.dim() == 2:
        takes_part = mask.any(-1)
        # Masked positions add 0: `prepare` made both sides equal there.
        values = values.sum(-1) / mask.sum(-1).clamp(min=1)
    elif values.dim() == 2:
        values = values.mean(-1)
    return reduce(values, takes_part, reduction)


def standardize_logits(logits: Tensor, eps: float = 1e-7) -> Tensor:
    """Z-score of the logits over the classes: (z − mean) / (std + eps).

    Student and teacher are both standardized before `soft_target_loss`; then only the *relations*
    between the logits must agree, not their size.

    The standard deviation is the paper's, √(1/C · Σ (z − mean)²). The authors' released code
    divides by C − 1 instead; that equals a temperature that is √(C / (C − 1)) times higher
    (0.5 % with 100 classes). A row whose spread is within rounding error of 0 becomes 0 with a
    gradient of 0: without this its gradient would be 1 / eps, or NaN.

    Args:
        logits: ``[..., C]``.
        eps: finite, at least 0; added to the standard deviation.

    Returns:
        Same shape, float32 (float64 for float64). Gradients flow; detach nothing here.

    Raises:
        ValueError: logits that are not floating, or have no class; a bad eps.

    Source: Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024,
    arXiv:2403.01427. Lesson 01 compares it.
    """
    check_weight("eps", eps)
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits: shape {list(logits.shape)}, expected [..., C] with C ≥ 1")
    if not torch.is_floating_point(logits):
        raise ValueError(f"logits: dtype {logits.dtype}, expected floating-point logits")
    z = logits.to(compute_dtype(logits))
    centred = z - z.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    rounding = 4 * torch.finfo(z.dtype).eps * z.detach().abs().amax(-1, keepdim=True)
    constant = variance <= rounding.square()  # False for NaN, which must stay visible
    std = variance.masked_fill(constant, 1.0).sqrt()
    return (centred / (std + eps)).masked_fill(constant, 0.0)


def decoupled_loss(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    *,
    reduction: str = "mean",
) -> Tensor:
    """Decoupled distillation (DKD): T² · (α · TCKD + β · NCKD).

    With p = softmax(z / T) and the target class y:
    TCKD = KL of the pairs (p_y, 1 − p_y), how sure the teacher is of the target;
    NCKD = KL of the softmax over the other classes, what the teacher knows about these.
    Plain soft targets are TCKD + (1 − p_y of the teacher) · NCKD: a sure teacher silences its own
    dark knowledge. Here α and β set the two weights. All in logarithms, so that a student that is
    certain (p_y = 1 in floating point) gets finite values and gradients.

    Args:
        student, teacher: logits ``[B, C]`` with C ≥ 2.
        targets: int64 ``[B]``, all labelled. Inside ``unchecked_values()``, where labels are not
            looked at, rows with -1 take no part: value 0, gradient exactly 0, not in the mean.
        temperature: T from 0.001 to 1e9.
        alpha, beta: weights of TCKD and NCKD, at least 0. The authors take α = 1 and choose β per
            pair of networks, on CIFAR-100 from 2 to 8.
        reduction: "mean" or "none": ``[B]``.

    Raises:
        ValueError: as `soft_target_loss`; fewer than two classes; unlabelled or impossible
            targets; a negative weight.

    Source: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022,
    arXiv:2203.08679. Lesson 01 compares it.
    """
    check_reduction(reduction)
    check_temperature("temperature", temperature)
    check_weight("alpha", alpha)
    check_weight("beta", beta)
    check_pair(student, teacher)
    if student.shape[-1] < 2:
        raise ValueError(
            f"student: shape {list(student.shape)}, expected at least two classes: "
            "with one there is no non-target class"
        )
    check_targets(
        targets,
        student,
        unlabelled=False,
        why="the decoupled loss needs labels; keep the labelled rows, or use soft_target_loss",
    )
    labelled = targets >= 0
    student, teacher = prepare(student, teacher, labelled)
    is_target = targets.unsqueeze(-1) == torch.arange(student.shape[-1], device=student.device)
    pair_t, rest_t = _decoupled_log_probabilities(teacher / temperature, is_target)
    if temperature <= PLAIN_UP_TO:
        pair_s, rest_s = _decoupled_log_probabilities(student / temperature, is_target)
        tckd, nckd = kl_divergence(pair_t, pair_s), kl_divergence(rest_t, rest_s)
    else:
        gap = (student - teacher) / temperature
        nckd = divergence(rest_t, gap.masked_fill(is_target, 0.0))
        # the student's log Σ e^z over the others minus the teacher's, without either of them
        others = (rest_t.exp() * gap).sum(-1) + nckd
        shift = gap.masked_fill(~is_target, 0.0).sum(-1) - others
        tckd = divergence(pair_t, torch.stack([shift, torch.zeros_like(shift)], dim=-1))
    values = temperature**2 * (alpha * tckd + beta * nckd)
    return reduce(values, labelled, reduction)


def _decoupled_log_probabilities(z: Tensor, is_target: Tensor) -> tuple[Tensor, Tensor]:
    """(log p_y, log(1 − p_y)) as ``[B, 2]``, and log-softmax over the others as ``[B, C]``.

    In the latter the target's own place is hugely negative: its probability is exactly 0. It is
    finite all the same, because 0 · (−∞ + ∞) would be NaN.
    """
    log_p = F.log_softmax(z, dim=-1)
    others = log_p.masked_fill(is_target, -1e30)
    log_rest = others.logsumexp(-1, keepdim=True)
    log_target = log_p.masked_fill(~is_target, 0.0).sum(-1, keepdim=True)
    return torch.cat([log_target, log_rest], dim=-1), others - log_rest


def dist_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 4.0,
    beta: float = 2.0,
    gamma: float = 2.0,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """DIST: T² · (β · inter + γ · intra), with Pearson's ρ in place of the KL divergence.

    With p = softmax(z / T), a ``[B, C]`` table: inter = mean over its rows (samples) of
    1 − ρ(p_S, p_T); intra = mean over its columns (classes, along the batch) of the same.
    Each 1 − ρ is computed as ½‖â − b̂‖² with â, b̂ centred and of unit length. A row or column that
    is constant within rounding error has no correlation: it counts as â = 0 with a gradient of 0,
    so two of them are at distance 0 and one of them at ½. ρ does not depend on scale, so a
    class that is improbable in the whole batch counts in full, as in the paper's formula; the
    authors' released code damps such columns (by 1e-8 in the denominator).

    Args:
        student, teacher: logits ``[B, C]``.
        temperature: T from 0.001 to 1e9. The factor T² is that of the released code.
        beta, gamma: weights of inter and intra, at least 0 (the released class defaults to 1 and 1
            with T = 1).
        mask: bool ``[B]``, True = takes part. Rows are dropped *before* the relations are formed.
        reduction: "mean" over the rows that take part (0 if none does), or "none": ``[B]``, the
            inter term of each sample plus its share of the intra term; their mean is the loss.

    The intra term couples the samples of a batch: a weight that multiplies a sample's value
    afterwards does *not* remove the sample's influence on the others. To leave samples out use
    ``mask``; then their gradient is exactly 0.

    Raises:
        ValueError: as `soft_target_loss`; a negative weight.

    Source: Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher",
    NeurIPS 2022, arXiv:2205.10536. Lesson 01 compares it.
    """
    check_reduction(reduction)
    check_temperature("temperature", temperature)
    check_weight("beta", beta)
    check_weight("gamma", gamma)
    check_pair(student, teacher)
    if mask is not None:
        check_mask(mask, student)
    student, teacher = prepare(student, teacher, mask)
    tables = [_Table.of(x, temperature, mask) for x in (student, teacher)]
    inter = (tables[0].rows() - tables[1].rows()).square().sum(-1)
    intra = (tables[0].columns() - tables[1].columns()).square().mean(-1)
    # The squares of `intra` add up to the loss over the batch; times the number of samples, a
    # sample's part becomes a value whose *mean* over the samples is the loss.
    samples = len(student) if mask is None else mask.sum()
    values = 0.5 * temperature**2 * (beta * inter + gamma * samples * intra)
    return reduce(values, mask, reduction)


class _Table(NamedTuple):
    """Probabilities ``[B, C]`` as log(C · p), which keeps its digits where p is nearly uniform."""

    log_ratio: Tensor
    rounding: Tensor  # [B, 1], how exact an entry of C · p is
    mask: Tensor | None

    @classmethod
    def of(cls, logits: Tensor, temperature: float, mask: Tensor | None) -> "_Table":
        """The table of softmax(logits / T)."""
        z = logits / temperature
        size = z.detach().abs().amax(-1, keepdim=True).clamp(max=1.0)
        rounding = 8 * torch.finfo(z.dtype).eps * size
        if temperature <= PLAIN_UP_TO:
            return cls(F.log_softmax(z, dim=-1) + math.log(z.shape[-1]), rounding, mask)
        return cls(log_softmax_ratio(z), rounding, mask)

    def rows(self) -> Tensor:
        """The rows, centred and scaled to unit length."""
        entries = self.log_ratio.shape[-1]
        return _unit(self.log_ratio.expm1(), -1, entries * self.rounding.square())

    def columns(self) -> Tensor:
        """The columns, centred and scaled to unit length over the samples that take part.

        Dividing a column by its largest entry first changes nothing (Pearson's ρ has no scale), but
        keeps values and gradients in range for a class whose probabilities would underflow.
        """
        if self.mask is None:
            p = (self.log_ratio - self.log_ratio.detach().amax(0)).expm1()
            return _unit(p - p.mean(0), 0, self.rounding.square().sum())
        out, count = ~self.mask.unsqueeze(-1), self.mask.sum().clamp(min=1)
        highest = self.log_ratio.detach().masked_fill(out, -1e30).amax(0)
        p = (self.log_ratio - highest).masked_fill(out, 0.0).expm1()
        squares = self.rounding.square().masked_fill(out, 0.0).sum()
        return _unit((p - p.sum(0) / count).masked_fill(out, 0.0), 0, squares)


def _unit(centred: Tensor, dim: int, rounding: Tensor) -> Tensor:
    """``centred`` divided by its length along ``dim``; 0 where its square is rounding error."""
    square = centred.square().sum(dim, keepdim=True)
    return centred * square.masked_fill(square <= rounding, torch.inf).rsqrt()


def ttm_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 4.0,
    *,
    weighted: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Transformed teacher matching: KL(p̃ ‖ p_S), temperature on the teacher's side only.

    p̃ = softmax(teacher / T), which is the power transform p^γ / Σ p^γ of the teacher's
    p = softmax(teacher) with γ = 1 / T; p_S = softmax(student). No T². Against plain soft targets
    this rewards a student with high (Rényi) entropy.
    With ``weighted`` (WTTM) each sample's value is multiplied by Σ_c p_c^γ, which is 1 for a
    certain teacher and largest, C^(1 − γ), for a uniform one.

    Args:
        student, teacher: logits ``[B, C]``.
        temperature: T from 0.001 to 1e9, for the teacher.
        weighted: WTTM instead of TTM.
        reduction: "mean" or "none": ``[B]``.

    Raises:
        ValueError: as `soft_target_loss`.

    Source: Zheng, Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024,
    arXiv:2402.11148. Lesson 01 compares it.
    """
    check_reduction(reduction)
    check_temperature("temperature", temperature)
    check_pair(student, teacher)
    student, teacher = prepare(student, teacher, None)
    values = kl_divergence(
        F.log_softmax(teacher / temperature, dim=-1), F.log_softmax(student, dim=-1)
    )
    if weighted:
        values = values * (F.log_softmax(teacher, dim=-1) / temperature).exp().sum(-1)
    return reduce(values, None, reduction)
