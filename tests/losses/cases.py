"""The losses under test, each beside its reference, in one table."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import reference
import torch
from hypothesis import settings
from torch import Tensor

from kdlab.losses import (
    batch_relation_loss,
    class_relation_loss,
    decoupled_loss,
    dist_loss,
    hard_label_loss,
    hard_target_loss,
    logit_matching_loss,
    soft_target_loss,
    standardize_logits,
    ttm_loss,
)

PROVED = settings(derandomize=True, deadline=None, max_examples=12)
T = 3.0


@dataclass(frozen=True)
class Case:
    """``loss(student, teacher, targets, **options)`` and ``reference(...)`` → values to average."""

    loss: Callable[..., Tensor]
    reference: Callable[..., np.ndarray]
    tokens: bool = False  # takes [B, N, C] too
    separable: bool = True  # a sample's value depends on that sample only
    uses_teacher: bool = True


CASES = {
    "soft_target": Case(
        lambda s, t, y, **k: soft_target_loss(s, t, T, **k),
        lambda s, t, y: reference.soft_target(s, t, T),
        tokens=True,
    ),
    "reverse": Case(
        lambda s, t, y, **k: soft_target_loss(s, t, T, divergence="reverse", **k),
        lambda s, t, y: reference.soft_target(s, t, T, reference.reverse),
        tokens=True,
    ),
    "jensen_shannon": Case(
        lambda s, t, y, **k: soft_target_loss(s, t, T, divergence="jensen-shannon", **k),
        lambda s, t, y: reference.soft_target(s, t, T, reference.jensen_shannon),
        tokens=True,
    ),
    "standardized": Case(
        lambda s, t, y, **k: soft_target_loss(standardize_logits(s), standardize_logits(t), T, **k),
        lambda s, t, y: reference.soft_target(
            reference.standardize(s), reference.standardize(t), T
        ),
        tokens=True,
    ),
    "decoupled": Case(
        lambda s, t, y, **k: decoupled_loss(s, t, y, T, 1.5, 4.0, **k),
        lambda s, t, y: reference.decoupled(s, t, y, T, 1.5, 4.0),
    ),
    "dist": Case(
        lambda s, t, y, **k: dist_loss(s, t, T, 2.0, 1.5, **k),
        lambda s, t, y: reference.dist(s, t, T, 2.0, 1.5),
        separable=False,
    ),
    "ttm": Case(
        lambda s, t, y, **k: ttm_loss(s, t, T, **k),
        lambda s, t, y: reference.ttm(s, t, T, False),
    ),
    "wttm": Case(
        lambda s, t, y, **k: ttm_loss(s, t, T, weighted=True, **k),
        lambda s, t, y: reference.ttm(s, t, T, True),
    ),
    "logit_matching": Case(
        lambda s, t, y, **k: logit_matching_loss(s, t, **k),
        lambda s, t, y: reference.logit_matching(s, t),
    ),
    "hard_target": Case(
        lambda s, t, y, **k: hard_target_loss(s, t, **k),
        lambda s, t, y: reference.hard_label(s, t.argmax(axis=-1), 0.0),
    ),
    "batch_relation": Case(
        lambda s, t, y, **k: 64 * batch_relation_loss(s, t, T, **k),
        lambda s, t, y: 64 * reference.batch_relation(s, t, T),
        separable=False,
    ),
    "class_relation": Case(
        lambda s, t, y, **k: 4096 * class_relation_loss(s, t, T, **k),
        lambda s, t, y: 4096 * reference.class_relation(s, t, T),
        separable=False,
    ),
    "hard_label": Case(
        lambda s, t, y, **k: hard_label_loss(s, y, **k),
        lambda s, t, y: reference.hard_label(s, y, 0.0),
        uses_teacher=False,
    ),
    "smoothed": Case(
        lambda s, t, y, **k: hard_label_loss(s, y, 0.2, **k),
        lambda s, t, y: reference.hard_label(s, y, 0.2),
        uses_teacher=False,
    ),
}
WITH_TEACHER = [name for name, case in CASES.items() if case.uses_teacher]
COPIES = [n for n in WITH_TEACHER if n not in ("ttm", "wttm", "hard_target")]  # 0 for a copy
SEPARABLE = [name for name, case in CASES.items() if case.separable]


def batch(
    *shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, scale: float = 3.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Student's and teacher's logits of a shape, rounded to a dtype, and targets."""
    random = np.random.default_rng([seed, *shape])
    student, teacher = (
        torch.tensor(random.normal(scale=scale, size=shape)).to(dtype) for _ in range(2)
    )
    return student, teacher, torch.tensor(random.integers(shape[-1], size=shape[0]))


def value_and_gradient(
    loss: Callable[..., Tensor], student: Tensor, *rest: Tensor, **options: object
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient with respect to the student's logits."""
    student = student.clone().requires_grad_()
    value = loss(student, *rest, **options)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    return value.detach(), gradient
