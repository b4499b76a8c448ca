"""The exercises of lesson 01."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.exercises import NOT_YET, Exercise, Verdict, function, is_placeholder, number
from kdlab.losses import soft_target_loss

_PROBES = torch.Generator().manual_seed(1)
_STUDENT, _TEACHER = (3 * torch.randn(5, 7, generator=_PROBES) for _ in range(2))


def _soften(logits: Tensor, temperature: float) -> Tensor:
    return F.softmax(logits / temperature, dim=-1)


def _kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_q = F.log_softmax(student / temperature, dim=-1)
    return F.kl_div(log_q, _soften(teacher, temperature), reduction="batchmean")


def _check_choice_of_temperature(answer: Any) -> Verdict:
    """Try the learner's function on a table in which validation and test disagree."""
    if not callable(answer):
        return Verdict("wrong", "expected a function that takes a table")
    table = pd.DataFrame(
        {
            "temperature": [1.0, 1.0, 4.0, 4.0, 16.0, 16.0],
            "seed": [0, 1] * 3,
            "val_accuracy": [0.50, 0.52, 0.60, 0.68, 0.70, 0.54],
            "accuracy": [0.71, 0.72, 0.60, 0.61, 0.55, 0.56],
        }
    )
    given = answer(table.copy())
    if is_placeholder(given):
        return Verdict("not yet", NOT_YET)
    means = {1.0: "that one is best on the test images: choosing by them is cheating"}
    single = {16.0: "one seed of it was lucky: compare means over the seeds"}
    try:
        value = float(given)
    except (TypeError, ValueError):
        return Verdict("wrong", f"expected one temperature, got {type(given).__name__}")
    return Verdict("right") if value == 4.0 else Verdict("wrong", (means | single).get(value, ""))


EXERCISES = [
    Exercise(
        "soften",
        function(
            _soften,
            [(_STUDENT, 1.0), (_STUDENT, 4.0), (_STUDENT, 0.5)],
            diagnoses=[
                (lambda z, t: F.softmax(z * t, dim=-1), "hotter must be flatter: divide by T"),
                (lambda z, t: F.softmax(z, dim=-1) / t, "divide the logits, not the probabilities"),
                (
                    lambda z, t: F.softmax(z / t, dim=0),
                    "the probabilities of one image must add up to 1: which dim are the classes?",
                ),
            ],
        ),
        (
            "Temperature acts on the logits, before the softmax.",
            "The formula is softmax(z / T), over the last dimension.",
            "torch.softmax(logits / temperature, dim=-1)",
        ),
    ),
    Exercise(
        "two to one",
        number(4 / math.log(2), tolerance=0.05, close=0.5),
        (
            "The ratio of two softmax probabilities depends only on the difference of the logits.",
            "The ratio is exp(4 / T). Which T makes that 2?",
            "T is 4 divided by the natural logarithm of 2.",
        ),
    ),
    Exercise(
        "soft target loss",
        function(
            soft_target_loss,
            [(_STUDENT, _TEACHER, 1.0), (_STUDENT, _TEACHER, 4.0), (_STUDENT * 9, _TEACHER, 2.0)],
            diagnoses=[
                (_kl, "the T² is missing: without it the gradient shrinks as T grows"),
                (
                    lambda s, t, temp: temp * _kl(s, t, temp),
                    "the factor must be T², not T: two derivatives by z / T",
                ),
                (
                    lambda s, t, temp: temp**2 * _kl(s, t, temp) / s.shape[-1],
                    "it is C times too small: sum over the classes, average over the samples only",
                ),
                (
                    lambda s, t, temp: temp**2 * _kl(s, t, temp) * len(s),
                    "it is B times too large: average over the samples",
                ),
                (
                    lambda s, t, temp: temp**2 * _kl(t, s, temp),
                    "the roles are swapped: the teacher's probabilities weigh the sum",
                ),
            ],
        ),
        (
            "Start with the two softened distributions p (teacher) and q (student).",
            "KL(p ‖ q) = Σ p (log p - log q), summed over classes, averaged over samples.",
            "Multiply by T². Use log_softmax for log p and log q.",
        ),
    ),
    Exercise(
        "choose a temperature",
        _check_choice_of_temperature,
        (
            "Which column may you look at when you choose?",
            "Average val_accuracy over the seeds for each temperature.",
            'table.groupby("temperature")["val_accuracy"].mean().idxmax()',
        ),
    ),
]
