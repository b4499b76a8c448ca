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


def _cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_q = F.log_softmax(student / temperature, dim=-1)
    return -(_soften(teacher, temperature) * log_q).sum(dim=-1).mean()


def _one_sided(student: Tensor, teacher: Tensor, *temperatures: float) -> Tensor:
    """KL of the teacher at the second temperature from the student at the first."""
    of_student, of_teacher = temperatures
    return _kl(student / of_student, teacher / of_teacher, 1.0)


# temperatures that are no positions of a row or a group, so that nobody is taken for another
_CHOICES = pd.DataFrame(
    {
        "temperature": [2.5, 2.5, 8.0, 8.0, 16.0, 16.0],
        "seed": [0, 1] * 3,
        "val_accuracy": [0.50, 0.52, 0.60, 0.68, 0.70, 0.54],
        "accuracy": [0.71, 0.72, 0.60, 0.61, 0.55, 0.56],
    }
)
_CHOSEN = {
    2.5: "that one is best on the test images: choosing by them is cheating",
    16.0: "one seed of it was lucky: compare means over the seeds",
}


def _check_choice_of_temperature(answer: Any) -> Verdict:
    """Try the learner's function on a table in which validation and test disagree."""
    if not callable(answer):
        return Verdict("wrong", "expected a function that takes a table")
    given = answer(_CHOICES.copy())
    if is_placeholder(given):
        return Verdict("not yet", NOT_YET)
    try:
        value = float(given)
    except (TypeError, ValueError):
        return Verdict("wrong", f"expected one temperature, got {type(given).__name__}")
    if value == 8.0:
        return Verdict("right")
    if 0 < value < 1:
        return Verdict("wrong", "that is an accuracy: return the temperature that has it")
    if value in range(len(_CHOICES)):
        return Verdict("wrong", "that is a position, not the temperature that stands there")
    return Verdict("wrong", _CHOSEN.get(value, "that is no temperature of the table"))


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
                (
                    lambda z, t: F.log_softmax(z / t, dim=-1),
                    "these are logarithms: probabilities are wanted, so softmax",
                ),
                (lambda z, t: z / t, "these are softer logits: the softmax is still to come"),
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
                *(
                    (
                        lambda s, t, temp, squared=squared, sides=sides: (
                            temp**squared * _one_sided(s, t, *(temp**side for side in sides))
                        ),
                        f"only the {softened} is softened: both sides need the temperature",
                    )
                    for squared in (2, 0)
                    for sides, softened in (((0, 1), "teacher"), ((1, 0), "student"))
                ),
                (
                    lambda s, t, temp: _kl(s, t, temp) / s.shape[-1],
                    "two things: the T² is missing, and it is C times too small (a mean over the "
                    "classes, where a sum is wanted)",
                ),
                *(
                    (
                        lambda s, t, temp, squared=squared: (
                            temp**squared * _cross_entropy(s, t, temp)
                        ),
                        f"that is the cross-entropy{also}: the part p · log p is missing, so it "
                        "is not 0 where both agree",
                    )
                    for squared, also in ((2, ""), (0, ", without T²"))
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
