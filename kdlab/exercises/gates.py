"""The exercises of lesson 05."""

from __future__ import annotations

import torch
from torch import Tensor

from kdlab.exercises import Exercise, choice, detached, function, number
from kdlab.losses import mixture_loss

OPEN = 0.7  # of the random gate in exercise 2
RIVALS = (
    "no gate at all",
    "a random gate with the same mean",
    "one constant weight with the same mean",
    "a gate that is always closed",
    "another random seed",
)

_PROBES = torch.Generator().manual_seed(5)
_VALUES = torch.rand(6, generator=_PROBES)
_SCORES, _GUESSES = torch.randn(2, 5, 3, generator=_PROBES)
_LIKELIHOODS = _GUESSES.log_softmax(dim=0)
_SOFT, _HALF = torch.rand(6, generator=_PROBES), torch.tensor([1.0, 0.0] * 3)


def _gated_mean(values: Tensor, gate: Tensor) -> Tensor:
    return (gate.detach() * values).mean()


def _mean_of_open(values: Tensor, gate: Tensor) -> Tensor:
    return (gate * values).sum() / gate.sum()


def _sum(values: Tensor, gate: Tensor) -> Tensor:
    return (gate * values).sum()


def _mean_times_mean(values: Tensor, gate: Tensor) -> Tensor:
    return gate.mean() * values.mean()


def _no_mean(values: Tensor, gate: Tensor) -> Tensor:
    return gate * values


def _sum_outside_the_log(scores: Tensor, log_p: Tensor) -> Tensor:
    return -(scores.softmax(dim=-1) * log_p).sum(dim=-1).mean()


def _no_softmax(scores: Tensor, log_p: Tensor) -> Tensor:
    return -(scores + log_p).logsumexp(dim=-1).mean()


def _softmax_over_samples(scores: Tensor, log_p: Tensor) -> Tensor:
    return -(scores.log_softmax(dim=0) + log_p).logsumexp(dim=-1).mean()


def _sum_over_samples(scores: Tensor, log_p: Tensor) -> Tensor:
    return mixture_loss(scores, log_p) * len(scores)


def _no_minus(scores: Tensor, log_p: Tensor) -> Tensor:
    return -mixture_loss(scores, log_p)


EXERCISES = [
    Exercise(
        "gated mean",
        detached(
            function(
                _gated_mean,
                [(_VALUES, _SOFT), (_VALUES, _HALF)],
                diagnoses=[
                    (_mean_of_open, "divide by the size of the batch, not by what is open"),
                    (_sum, "it is B times too large: average over the batch"),
                    (_mean_times_mean, "each sample has a weight of its own: weigh, then average"),
                    (_no_mean, "one number is wanted: the mean over the batch"),
                ],
            ),
            _gated_mean,
            (_VALUES, _SOFT),
            "right value, but the gate is not detached: it would learn to close",
        ),
        (
            "Weigh each sample's value, then take the mean over the batch.",
            "With a closed gate the result is 0. What would a division by the sum of it give?",
            "The mean of the product of gate.detach() and values.",
        ),
    ),
    Exercise(
        "what a random gate catches",
        number(
            1 - OPEN,
            tolerance=0.005,
            close=0.06,
            diagnoses={OPEN: "that is what it lets through"},
        ),
        (
            "Such a gate knows nothing: it treats mistakes as it treats all other answers.",
            "How much does it hold back of any group of samples?",
            "What is not open is closed: one minus the open share.",
        ),
    ),
    Exercise(
        "a gate's rivals",
        choice({RIVALS[1], RIVALS[2]}, RIVALS),
        (
            "A gate does two things: it weakens the teacher, and it chooses where.",
            "To see the choice alone, the rival must be just as weak.",
            "Two of the five have the gate's mean.",
        ),
    ),
    Exercise(
        "mixture likelihood",
        function(
            mixture_loss,
            [(_SCORES, _LIKELIHOODS), (3 * _SCORES, 2 * _LIKELIHOODS), (_SCORES - 5, _LIKELIHOODS)],
            diagnoses=[
                (_sum_outside_the_log, "add the probabilities up first, then take the logarithm"),
                (_no_softmax, "scores are no weights yet: softmax makes them add up to one"),
                (_softmax_over_samples, "each image has its own weights: softmax over teachers"),
                (_sum_over_samples, "it is B times too large: average over the batch"),
                (_no_minus, "a likelihood shall grow and a loss shall fall: change the sign"),
            ],
        ),
        (
            "The weights are the softmax of the scores over the teachers, the last dimension.",
            "The mixture gives the label the probability (weights * log_p.exp()).sum(dim=-1).",
            "Minus the logarithm of that, and the mean over the batch.",
        ),
    ),
]
