"""The exercises of lesson 02."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.exercises import Check, Exercise, Verdict, choice, function, number
from kdlab.losses import attention_map

_RANDOM = torch.Generator().manual_seed(2)
_SMALL, _LARGE = (
    torch.randn(shape, generator=_RANDOM) * scale
    for shape, scale in (((3, 5, 2, 4), 1.0), ((4, 6, 3, 3), 7.0))
)
_CHANGES = (
    "rotation",
    "one factor for all channels",
    "one factor for each channel",
    "a shift",
    "another order of the channels",
    "another order of one model's samples",
)


def _known(check: Check, mistakes: Sequence[tuple[Check, Verdict]]) -> Check:
    """Return ``check`` with a verdict of its own for each answer that a mistake's check accepts."""

    def judge(answer: Any) -> Verdict:
        found = (told for mistake, told in mistakes if mistake(answer).status == "right")
        return next(found, check(answer))

    return judge


def _attention(features: Tensor) -> Tensor:
    return attention_map(features).flatten(1)


def _energy(features: Tensor) -> Tensor:
    return features.square().mean(1).flatten(1)


def _gram(features: Tensor) -> Tensor:
    rows = features.flatten(1)
    return rows @ rows.T


def _similarity(features: Tensor) -> Tensor:
    return F.normalize(_gram(features), dim=1)


EXERCISES = [
    Exercise(
        "attention map",
        function(
            _attention,
            [(_SMALL,), (_LARGE,)],
            diagnoses=[
                (
                    lambda f: F.normalize(f.mean(1).flatten(1)),
                    "the square is missing: strong negative channels count, too",
                ),
                (
                    lambda f: F.normalize(f.abs().mean(1).flatten(1)),
                    "square the features; the absolute value is another map",
                ),
                (
                    lambda f: F.normalize(f.mean(1).square().flatten(1)),
                    "square first, then average: else the channels cancel each other out",
                ),
                (
                    lambda f: F.normalize(f.square().mean((2, 3))),
                    "that says which channel is strong; average over the channels, not over space",
                ),
                (
                    lambda f: F.normalize(_energy(f), dim=0),
                    "each image gets a length of 1 by itself, not each place over the batch",
                ),
                (
                    lambda f: F.normalize(_energy(f).flatten(), dim=0).view(len(f), -1),
                    "each image gets a length of 1 by itself, not the batch as a whole",
                ),
                (_energy, "the map still has the layer's scale: give each image a length of 1"),
                (
                    lambda f: f.square().sum(1).flatten(1),
                    "the map still has the layer's scale: give each image a length of 1",
                ),
                (
                    lambda f: _energy(f) / _energy(f).sum(1, keepdim=True),
                    "the sum is 1, but the length (the root of the sum of squares) should be",
                ),
                (
                    lambda f: _energy(f).softmax(1),
                    "no softmax: divide by the length (the root of the sum of squares)",
                ),
            ],
        ),
        (
            "One number for each place: how strongly do the channels answer there?",
            "Square, average over dim 1, flatten the places, divide each row by its length.",
            "torch.nn.functional.normalize(features.square().mean(1).flatten(1), dim=1)",
        ),
    ),
    Exercise(
        "similarity matrix",
        function(
            _similarity,
            [(_SMALL,), (_LARGE,)],
            diagnoses=[
                (_gram, "the inner products are right; now give each row a length of 1"),
                (
                    lambda f: F.normalize(_gram(f), dim=0),
                    "the columns have a length of 1; the rows should: which dim is summed over?",
                ),
                (
                    lambda f: _gram(f) / _gram(f).norm(),
                    "each row gets a length of 1 by itself, not the matrix as a whole",
                ),
                (
                    lambda f: F.normalize(f.flatten(1)) @ F.normalize(f.flatten(1)).T,
                    "those are cosines: normalise the rows of the matrix, not the features",
                ),
                (
                    lambda f: _gram(f).softmax(1),
                    "no softmax: divide each row by its length (the root of the sum of squares)",
                ),
                (
                    lambda f: _similarity(f.mean((2, 3))),
                    "do not pool: flatten channels and places into one long row for each image",
                ),
            ],
        ),
        (
            "Flatten each image's features to one row; compare every row with every other.",
            "G = F Fᵀ has an inner product for each pair; then divide each row by its length.",
            "rows = features.flatten(1); torch.nn.functional.normalize(rows @ rows.T, dim=1)",
        ),
    ),
    Exercise(
        "hint regressor parameters",
        _known(
            number(16 * 64 + 64),
            [
                (
                    number(16 * 64),
                    Verdict("close", "those are the weights; what else does it learn?"),
                ),
                (
                    number(16 * 64 + 16),
                    Verdict("close", "a bias belongs to each channel that comes out"),
                ),
                (number(16 + 64), Verdict("wrong", "every input channel meets every output one")),
                (number(9 * 16 * 64 + 64), Verdict("wrong", "that would be a 3 × 3 convolution")),
                (number(9 * 16 * 64), Verdict("wrong", "that would be a 3 × 3 convolution")),
            ],
        ),
        (
            "A 1×1 convolution is a linear map from channels to channels, the same at every place.",
            "It has one weight for each pair of channels and one bias for each output channel.",
            "16 · 64 + 64",
        ),
    ),
    Exercise(
        "what CKA ignores",
        choice(set(_CHANGES[:2] + _CHANGES[3:5]), _CHANGES),
        (
            "CKA compares F Fᵀ of centred features: which changes leave that as it is?",
            "Channels may turn together and be scaled together. May one be scaled alone?",
            "Two of the six change it: stretching single channels, and mixing up the pairs.",
        ),
    ),
]
