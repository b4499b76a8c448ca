"""More losses between logits: their values, the teacher's choice, relations; other class lists.

The conventions are those of `kdlab.losses.soft_targets`.
"""

import numbers
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.losses.checks import (
    check_logits,
    check_pair,
    check_reduction,
    check_temperature,
    compute_dtype,
    prepare,
    reduce,
)

Classes = Sequence[int | Sequence[int]] | Mapping[int, int | Sequence[int]]


def logit_matching_loss(student: Tensor, teacher: Tensor, *, reduction: str = "mean") -> Tensor:
    """Logit matching: 1/C · ‖z_S − z_T‖², the mean squared difference of the logits themselves.

    Unlike soft targets it sees a constant that is added to all logits. At high temperature soft
    targets tend to half of it, of logits without their mean: T² · KL → 1/(2C) · ‖z_S − z_T‖².

    Args:
        student, teacher: logits ``[B, C]``.
        reduction: "mean" or "none": ``[B]``.

    Raises:
        ValueError: as `soft_target_loss`.

    Source: Ba, Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014, arXiv:1312.6184,
    which sums over the classes and halves: C/2 times this. The mean is what public code computes.
    """
    check_reduction(reduction)
    check_pair(student, teacher)
    student, teacher = prepare(student, teacher, None)
    return reduce((student - teacher).square().mean(-1), None, reduction)


def hard_target_loss(student: Tensor, teacher: Tensor, *, reduction: str = "mean") -> Tensor:
    """Hard targets: −log p_S(ŷ), the cross-entropy with the teacher's choice ŷ = argmax z_T.

    Args:
        student, teacher: logits ``[B, C]``.
        reduction: "mean" or "none": ``[B]``. All samples take part, with or without a label.

    Raises:
        ValueError: as `soft_target_loss`.

    Source: Touvron, Cord, Douze, Massa, Sablayrolles, Jégou, "Training data-efficient image
    transformers & distillation through attention", ICML 2021, arXiv:2012.12877.
    """
    check_reduction(reduction)
    check_pair(student, teacher)
    student, teacher = prepare(student, teacher, None)
    log_p = F.log_softmax(student, dim=-1)
    choice = teacher.argmax(-1, keepdim=True)
    return reduce(-log_p.gather(-1, choice).squeeze(-1), None, reduction)


def batch_relation_loss(
    student: Tensor, teacher: Tensor, temperature: float = 4.0, *, reduction: str = "mean"
) -> Tensor:
    """MLKD's batch level: ‖P_S P_Sᵀ − P_T P_Tᵀ‖² / B², how alike any two samples are answered.

    P = softmax(z / T) is ``[B, C]``. The paper divides by B alone, so that its term grows with the
    batch: it is B times this one.

    Args:
        student, teacher: logits ``[B, C]``.
        temperature: T from 0.001 to 1e9, for both sides.
        reduction: "mean" or "none": ``[B]``, the mean over each sample's row.

    Raises:
        ValueError: as `soft_target_loss`.

    Source: Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023 (not on arXiv).
    """
    p, q = _probabilities(student, teacher, temperature, reduction)
    return reduce((p @ p.mT - q @ q.mT).square().mean(-1), None, reduction)


def class_relation_loss(
    student: Tensor, teacher: Tensor, temperature: float = 4.0, *, reduction: str = "mean"
) -> Tensor:
    """MLKD's class level: ‖P_Sᵀ P_S − P_Tᵀ P_T‖² / (B² C), which classes are probable together.

    P = softmax(z / T) is ``[B, C]``; N = PᵀP / B is a mean over the samples. The paper's N is the
    sum, so that its term grows with the square of the batch: it is B² times this one.

    Args:
        student, teacher: logits ``[B, C]``.
        temperature: T from 0.001 to 1e9, for both sides.
        reduction: "mean" or "none": ``[B]``, each sample's share (p_iᵀ D p_i − q_iᵀ D q_i) / C with
            D = N_S − N_T, which may be negative; their mean is the loss.

    Raises:
        ValueError: as `soft_target_loss`.

    Source: as `batch_relation_loss`.
    """
    p, q = _probabilities(student, teacher, temperature, reduction)
    difference = (p.mT @ p - q.mT @ q) / len(p)
    shares = ((p @ difference) * p - (q @ difference) * q).sum(-1)
    return reduce(shares / p.shape[-1], None, reduction)


def _probabilities(
    student: Tensor, teacher: Tensor, temperature: float, reduction: str
) -> tuple[Tensor, Tensor]:
    check_reduction(reduction)
    check_temperature("temperature", temperature)
    check_pair(student, teacher)
    student, teacher = prepare(student, teacher, None)
    return F.softmax(student / temperature, dim=-1), F.softmax(teacher / temperature, dim=-1)


def class_groups(classes: Classes) -> tuple[tuple[int, ...], ...]:
    """Return for each class of the student the teacher's classes that it stands for.

    Args:
        classes: a list with one entry per class of the student, or a mapping from the student's
            class numbers 0, 1, ...; an entry is a class number of the teacher or several.

    Raises:
        ValueError: an entry that is no class number or holds none, a class of the teacher that
            occurs twice, or keys that are not 0, 1, ...
    """
    if isinstance(classes, Mapping):
        if set(classes) != set(range(len(classes))):
            raise ValueError(
                f"classes: got the keys {sorted(classes, key=str)!r:.80}, expected the student's "
                f"classes 0 to {len(classes) - 1}; give each of them its classes of the teacher"
            )
        classes = [classes[number] for number in range(len(classes))]
    groups: list[tuple[int, ...]] = []
    for number, entry in enumerate(classes):
        group = entry if isinstance(entry, Sequence) else (entry,)
        if not group or not all(map(_is_class, group)):
            raise ValueError(
                f"classes: got {entry!r:.80} for the student's class {number}, expected a class "
                "number of the teacher from 0 on, or several; leave no class without one"
            )
        groups.append(tuple(int(one) for one in group))
    if not groups:
        raise ValueError("classes: got none, expected an entry for each class of the student")
    named = Counter(one for group in groups for one in group)
    if twice := [one for one, times in named.items() if times > 1]:
        raise ValueError(
            f"classes: got the teacher's class {twice[0]} more than once, expected each at most "
            "once; or its probability would count twice: leave it to one class of the student"
        )
    return tuple(groups)


def _is_class(value: object) -> bool:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and int(value) >= 0  # type: ignore[call-overload]


def map_classes(logits: Tensor, classes: Classes) -> Tensor:
    """The answer about other classes: log Σ_{k ∈ G_c} exp z_k for each class c and its group G_c.

    The softmax of the result is that of the logits, summed over each group, and, if some classes
    are in no group, conditional on its being one of the others. So it serves a student whose
    classes are a selection, a grouping or another order of its teacher's. Summed in logarithms:
    improbable groups keep their digits. For a temperature T > 1, apply it afterwards: what is
    softened then is the distribution over the student's own classes.

    Args:
        logits: of the teacher, ``[..., C_T]``.
        classes: as in `class_groups`, one entry for each of the student's C classes.

    Returns:
        ``[..., C]``, float32 (float64 for float64). Gradients flow; detach nothing here.

    Raises:
        ValueError: as `class_groups`; logits that are not floating; a class that they do not have.
    """
    groups = class_groups(classes)
    check_logits("logits", logits, tuple(range(1, logits.dim() + 1)))
    have, highest = logits.shape[-1], max(max(group) for group in groups)
    if highest >= have:
        raise ValueError(
            f"classes: got {highest}, expected classes of the teacher from 0 to {have - 1}; "
            f"its logits are {list(logits.shape)}"
        )
    # Groups of different sizes are filled up with a class that has the probability 0.
    size = max(len(group) for group in groups)
    places = [[*group, *[have] * (size - len(group))] for group in groups]
    index = torch.tensor(places, device=logits.device)
    known = logits.to(compute_dtype(logits))
    filled = torch.cat([known, known.new_full((*known.shape[:-1], 1), -torch.inf)], dim=-1)
    return filled.index_select(-1, index.flatten()).unflatten(-1, index.shape).logsumexp(-1)
