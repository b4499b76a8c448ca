"""Gates: how far to trust the teacher on each sample, from 0 (closed) to 1 (open).

``gate(student, teacher, targets) -> [B]``. Conventions of all of them: logits ``[B, C]``; nothing
is differentiated, the result is detached; half precision is computed in float32. A gate that asks
for the label is open for a sample without one (-1), because nothing speaks against the teacher;
the others judge it as any other. `weighted_samples` carries the weights into a loss. Lesson 05
derives them and compares each with a random gate and a constant of the same mean.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.losses.checks import (
    check_logits,
    check_pair,
    check_positive,
    check_reduction,
    check_targets,
    check_teacher_values,
    check_temperature,
    compute_dtype,
    reduce,
)


def correct_gate(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """1 where the teacher's answer is the label, 0 where it is not.

    With no correct answer in the batch all is 0, not NaN; released code of the second paper
    divides by the number of correct ones.

    Sources: Minami, Hirakawa, Yamashita, Fujiyoshi, "Knowledge Transfer Graph for Deep
    Collaborative Learning", ACCV 2020, arXiv:1909.04286 (the correct gate); Zhou, Zhuge, Guan, Liu,
    "Channel Distillation: Channel-Wise Attention for Knowledge Distillation", 2020,
    arXiv:2006.01683 (guided knowledge distillation). Lesson 05.

    Args:
        student, teacher: logits ``[B, C]``.
        targets: int64 ``[B]``, -1 unlabelled.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; an empty batch; labels out of range;
            a teacher with NaN or infinite logits.
    """
    _, teacher = _prepared(student, teacher, targets)
    return _open_unlabelled((teacher.argmax(-1) == targets).to(teacher.dtype), targets)


def confidence_gate(
    student: Tensor, teacher: Tensor, targets: Tensor, temperature: float = 1.0
) -> Tensor:
    """The teacher's largest probability, max_c p_c with p = softmax(teacher / T); from 1/C to 1.

    Lesson 05. Arguments and errors as `correct_gate`; T > 0.
    """
    return _log_p(student, teacher, targets, temperature).amax(-1).exp()


def entropy_gate(
    student: Tensor, teacher: Tensor, targets: Tensor, temperature: float = 1.0
) -> Tensor:
    """1 − H(p) / log C with p = softmax(teacher / T): 0 for a uniform teacher, 1 for a certain one.

    Lesson 05. Arguments and errors as `correct_gate`; T > 0, at least two classes.
    """
    log_p = _log_p(student, teacher, targets, temperature, least_classes=2)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return (1 - entropy / math.log(log_p.shape[-1])).clamp(0, 1)


def margin_gate(
    student: Tensor, teacher: Tensor, targets: Tensor, temperature: float = 1.0
) -> Tensor:
    """By how much the teacher's most probable class leads the second, with p = softmax(z / T).

    Lesson 05. Arguments and errors as `correct_gate`; T > 0, at least two classes.
    """
    first, second = _log_p(student, teacher, targets, temperature, 2).exp().topk(2).values.unbind(1)
    return first - second


def better_gate(student: Tensor, teacher: Tensor, targets: Tensor, scale: float = 1.0) -> Tensor:
    """σ((CE_student − CE_teacher) / scale): who knows the label better? ½ where they are equal.

    A soft form of trusting whoever is right; with scale → 0 it is a step. Lesson 05.

    Args:
        student, teacher: logits ``[B, C]``.
        targets: int64 ``[B]``, -1 unlabelled.
        scale: in nats, above 0.

    Raises:
        ValueError: as `correct_gate`; a scale that is not above 0.
    """
    check_positive("scale", scale)
    student, teacher = _prepared(student, teacher, targets)
    gap = _cross_entropy(student, targets) - _cross_entropy(teacher, targets)
    return _open_unlabelled((gap / scale).sigmoid(), targets)


def wsld_gate(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """Weighted soft labels: 1 − exp(−CE_student / CE_teacher).

    Low where the student knows the label better than the teacher does (0.63 where both know it
    equally well, 0 where the student is certain): there soft labels add bias while they lower the
    variance. The paper found that leaving such samples out altogether hurts too, hence a weight.
    The released code divides by CE_teacher + 1e-7; here nothing is added, which shows only where
    the teacher gives the label a probability above about 1 − 1e-5.

    Source: Zhou, Song, Chen, Zhou, Wang, Yuan, Zhang, "Rethinking Soft Labels for Knowledge
    Distillation: A Bias-Variance Tradeoff Perspective", ICLR 2021, arXiv:2102.00650. Lesson 05.
    Arguments and errors as `correct_gate`.
    """
    student, teacher = _prepared(student, teacher, targets)
    tiny = torch.finfo(teacher.dtype).tiny  # a teacher that is certain gives a ratio of infinity
    ratio = _cross_entropy(student, targets) / _cross_entropy(teacher, targets).clamp(min=tiny)
    return _open_unlabelled(-torch.expm1(-ratio), targets)


def wttm_gate(
    student: Tensor, teacher: Tensor, targets: Tensor, temperature: float = 4.0
) -> Tensor:
    """WTTM's weight Σ_c p_c^γ, γ = 1 / T, divided by the largest value that it can have.

    With p = softmax(teacher) the sum lies between 1 (a certain teacher) and C^(1 − γ) (a uniform
    one; for T < 1 the two change places). Dividing by the larger keeps the ratios between samples
    as published, so a weight of C^(1 − γ) on the method gives WTTM back. The gate is open
    where the teacher is *unsure*, the opposite of `confidence_gate`.

    Source: Zheng, Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024,
    arXiv:2402.11148. Lesson 05. Arguments and errors as `correct_gate`; T > 0.
    """
    check_temperature("temperature", temperature)
    log_p = _log_p(student, teacher, targets, 1.0)
    power = 1 / temperature
    largest = max(0.0, (1 - power) * math.log(log_p.shape[-1]))
    return ((power * log_p).logsumexp(-1) - largest).exp().clamp(max=1)


def median_gate(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """1 for the half of the batch on which the teacher is least confident, 0 for the other half.

    Open where max_c p_c is at most its median over the batch; for ties more than half. A sample's
    value depends on the others in its batch. The released code of the source multiplies a loss that
    is a mean already, so that its mask never closes on anything.

    Source: Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023. Lesson 05. Arguments and
    errors as `correct_gate`.
    """
    confidence = _log_p(student, teacher, targets, 1.0).amax(-1)
    return (confidence <= confidence.median()).to(confidence.dtype)


GATES = {
    "correct": correct_gate,
    "confidence": confidence_gate,
    "entropy": entropy_gate,
    "margin": margin_gate,
    "better": better_gate,
    "wsld": wsld_gate,
    "wttm": wttm_gate,
    "median": median_gate,
}


def confidence_aware_weights(teachers: Tensor, targets: Tensor) -> Tensor:
    """CA-MKD: which of K teachers to follow, 1/(K − 1) · (1 − exp(CE_k) / Σ_j exp(CE_j)).

    Args:
        teachers: logits ``[B, K, C]``; not differentiated.
        targets: int64 ``[B]``; -1 unlabelled: all teachers get 1/K.

    Returns:
        ``[B, K]``, each row at least 0 with the sum 1. A teacher that is far worse than the rest
        gets 0, all others the same, 1/(K − 1). Σ_k w_k · loss_k is K times the released code's
        loss, which takes the mean over the teachers where the paper has the sum.

    Raises:
        ValueError: no logits ``[B, K, C]``, labels out of range, NaN or infinite logits.

    Source: Zhang, Chen, Wang, "Confidence-Aware Multi-Teacher Knowledge Distillation", ICASSP 2022,
    arXiv:2201.00007. Lesson 05.
    """
    check_logits("teachers", teachers, (3,))
    check_targets(targets, teachers, unlabelled=True)
    check_teacher_values(teachers)
    teachers = teachers.detach().to(compute_dtype(teachers))
    count = teachers.shape[1]
    even = torch.full_like(teachers[..., 0], 1 / count)
    if count == 1:
        return even
    log_p = F.log_softmax(teachers, dim=-1)
    label = targets.clamp(min=0).view(-1, 1, 1).expand(-1, count, 1)
    cross_entropy = -log_p.gather(-1, label).squeeze(-1)
    weights = (1 - F.softmax(cross_entropy, dim=-1)) / (count - 1)
    return weights.where((targets >= 0).unsqueeze(-1), even)


def mixture_loss(scores: Tensor, log_likelihoods: Tensor, *, reduction: str = "mean") -> Tensor:
    """What a gate over K experts should minimise: −log Σ_k g_k p_k(y), with g = softmax(scores).

    An expert gains weight where it gives the label more probability than the others do; that is
    an aim of its own, unlike the loss that the gate will weigh. With one teacher, the second expert
    knows nothing (a uniform guess or the classes' frequencies).

    Args:
        scores: ``[B, K]``, the gate's; gradients flow into them.
        log_likelihoods: ``[B, K]``, log p_k(y); detached.
        reduction: "mean" or "none": ``[B]``.

    Raises:
        ValueError: shapes that do not fit, an unknown reduction.

    Source: Jacobs, Jordan, Nowlan, Hinton, "Adaptive Mixtures of Local Experts", Neural
    Computation, 1991. Lesson 05.
    """
    check_reduction(reduction)
    check_pair(scores, log_likelihoods)
    dtype = compute_dtype(scores, log_likelihoods)
    log_g = F.log_softmax(scores.to(dtype), dim=-1)
    values = -(log_g + log_likelihoods.detach().to(dtype)).logsumexp(-1)
    return reduce(values, None, reduction, weighted=False)


def gate_counts(gate: Tensor, teacher: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Shares of the batch that say what a gate did; their ratios are precision and recall.

    Args:
        gate: ``[B]`` from 0 to 1.
        teacher: logits ``[B, C]``.
        targets: int64 ``[B]``; unlabelled samples count in ``gate_open`` alone.

    Returns:
        Means over the batch: ``gate_open`` (let through), ``gate_closed`` (held back, of labelled
        samples), ``teacher_wrong`` (the teacher's mistakes) and ``gate_caught`` (mistakes held
        back). `kdlab.metrics.gate_report` reads them.
    """
    labelled = (targets >= 0).to(gate.dtype)
    wrong = (teacher.argmax(-1) != targets).to(gate.dtype) * labelled
    closed = (1 - gate.detach()) * labelled
    return {
        "gate_open": gate.detach().mean(),
        "gate_closed": closed.mean(),
        "teacher_wrong": wrong.mean(),
        "gate_caught": (closed * wrong).mean(),
    }


def _prepared(student: Tensor, teacher: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    check_pair(student, teacher)
    check_targets(targets, student, unlabelled=True)
    check_teacher_values(teacher)
    dtype = compute_dtype(student, teacher)
    return student.detach().to(dtype), teacher.detach().to(dtype)


def _log_p(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor,
    temperature: float,
    least_classes: int = 1,
) -> Tensor:
    """The teacher's log-probabilities at a temperature."""
    check_temperature("temperature", temperature)
    _, teacher = _prepared(student, teacher, targets)
    if teacher.shape[-1] < least_classes:
        raise ValueError(
            f"teacher: shape {list(teacher.shape)}, expected at least {least_classes} classes: "
            "with one there is nothing to be unsure about"
        )
    return F.log_softmax(teacher / temperature, dim=-1)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """−log p of the label, ``[B]``; of class 0 where there is none."""
    label = targets.clamp(min=0).unsqueeze(-1)
    return -F.log_softmax(logits, dim=-1).gather(-1, label).squeeze(-1)


def _open_unlabelled(gate: Tensor, targets: Tensor) -> Tensor:
    return gate.masked_fill(targets < 0, 1.0)
