"""The exercises of lesson 07."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdlab.exercises import Exercise, choice, detached, function, number
from kdlab.losses import soft_target_loss

CHANNELS, SHARE = 24, 0.3  # of the layer in exercise 2
WRONG = (
    "means and variances of the channels",
    "the first channels of each convolution",
    "the bias of the last layer",
    "the labels of the training images",
)

_PROBES = torch.Generator().manual_seed(7)
_SQUARE, _WIDE, _TALL = (
    torch.randn(*shape, generator=_PROBES) for shape in ((8, 8), (5, 9), (9, 5))
)
_NARROW, _WIDEST = torch.randn(2, 6, 4, generator=_PROBES) * 2


def _cut(weight: Tensor, width: float) -> Tensor:
    rows, columns = (math.ceil(width * n) for n in weight.shape)
    return weight[:rows, :columns]


def _floor(weight: Tensor, width: float) -> Tensor:
    rows, columns = (math.floor(width * n) for n in weight.shape)
    return weight[:rows, :columns]


def _outputs_only(weight: Tensor, width: float) -> Tensor:
    return weight[: math.ceil(width * len(weight))]


def _inputs_only(weight: Tensor, width: float) -> Tensor:
    return weight[:, : math.ceil(width * weight.shape[1])]


def _last(weight: Tensor, width: float) -> Tensor:
    rows, columns = (math.ceil(width * n) for n in weight.shape)
    return weight[-rows:, -columns:]


def _in_place(narrow: Tensor, widest: Tensor) -> Tensor:
    return soft_target_loss(narrow, widest, temperature=1.0)


def _swapped(narrow: Tensor, widest: Tensor) -> Tensor:
    return _in_place(widest, narrow)


def _mean_over_all(narrow: Tensor, widest: Tensor) -> Tensor:
    return _in_place(narrow, widest) / narrow.shape[-1]


def _sum(narrow: Tensor, widest: Tensor) -> Tensor:
    return _in_place(narrow, widest) * len(narrow)


def _cross_entropy(narrow: Tensor, widest: Tensor) -> Tensor:
    return -(widest.softmax(-1) * narrow.log_softmax(-1)).sum(-1).mean()


EXERCISES = [
    Exercise(
        "a narrow layer",
        function(
            _cut,
            [(_SQUARE, 0.5), (_WIDE, 0.25), (_TALL, 0.75)],
            diagnoses=[
                (_floor, "round up: a width keeps at least one channel of each layer"),
                (_outputs_only, "the layer also reads from one that is narrow now"),
                (_inputs_only, "the layer also writes fewer outputs"),
                (_last, "all widths share the first channels, not the last ones"),
            ],
        ),
        (
            "A weight is outputs × inputs, and both lose channels.",
            "Keep the first ones: weight[:rows, :columns].",
            "rows = math.ceil(width * weight.shape[0]), and columns alike.",
        ),
    ),
    Exercise(
        "channels of a width",
        number(math.ceil(SHARE * CHANNELS), tolerance=0, close=1),
        (
            "Multiply the channels by the width.",
            "That is no whole number. In which direction is it rounded?",
            "Up, so that something is left of every layer.",
        ),
    ),
    Exercise(
        "in-place distillation",
        detached(
            function(
                _in_place,
                [(_NARROW, _WIDEST), (_NARROW * 3, _WIDEST), (_WIDEST, _WIDEST)],
                diagnoses=[
                    (_swapped, "the widest teaches: its probabilities come first in KL(p || q)"),
                    (_mean_over_all, "add up over the classes, then take the mean over the images"),
                    (_sum, "take the mean over the images, not their sum"),
                    (
                        _cross_entropy,
                        "it should be 0 where both agree: subtract the widest's entropy",
                    ),
                ],
            ),
            _in_place,
            (_NARROW, _WIDEST),
            "right value, but the widest bends towards its students",
        ),
        (
            "It is the loss of lesson 01 at T = 1, without labels; the widest is the teacher.",
            "KL(p || q) = sum of p * (log p - log q) over the classes.",
            "p = widest.detach().softmax(-1), and the mean over the images of that sum.",
        ),
    ),
    Exercise(
        "what each width needs of its own",
        choice(WRONG[0], WRONG),
        (
            "What does a layer of a narrow network read, and is it what it reads in the wide one?",
            "Fewer channels are added up, so the sums are distributed differently.",
            "Batch norm subtracts and divides by something that was measured at one width.",
        ),
    ),
]
