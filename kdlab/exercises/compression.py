"""The exercises of lesson 06."""

from __future__ import annotations

import torch
from torch import Tensor

from kdlab.exercises import Exercise, choice, function, number

FEWER, MORE, BITS = 24, 48, 5  # of the layer whose bytes are asked for
CHANNELS = 64  # of the convolutions whose FLOPs are compared
CHANGES = (
    "set nine of ten weights to 0",
    "cut out half of all channels",
    "round the weights, stored as floats",
    "train it under a better teacher",
    "show it images of half the width and height",
)

_PROBES = torch.Generator().manual_seed(6)
_ACTIVATIONS = torch.rand(4, 5, generator=_PROBES) * 6  # never below 0, as after a ReLU
_ACTIVATIONS[0, 0] = 0.0
_WEIGHTS = torch.randn(40, generator=_PROBES)


def _codes(x: Tensor, bits: int) -> Tensor:
    scale = (x.max() - x.min()) / (2**bits - 1)
    return (x / scale).round() + (-x.min() / scale).round()


def _floats_again(x: Tensor, bits: int) -> Tensor:
    scale = (x.max() - x.min()) / (2**bits - 1)
    return scale * (x / scale).round()


def _no_zero_point(x: Tensor, bits: int) -> Tensor:
    scale = (x.max() - x.min()) / (2**bits - 1)
    return (x / scale).round()


def _zero_between(x: Tensor, bits: int) -> Tensor:
    scale = (x.max() - x.min()) / (2**bits - 1)
    return ((x - x.min()) / scale).round()


def _not_rounded(x: Tensor, bits: int) -> Tensor:
    scale = (x.max() - x.min()) / (2**bits - 1)
    return x / scale + (-x.min() / scale).round()


def _zero_not_rounded(x: Tensor, bits: int) -> Tensor:
    scale = (x.max() - x.min()) / (2**bits - 1)
    return (x / scale).round() - x.min() / scale


def _floor(x: Tensor, bits: int) -> Tensor:
    scale = (x.max() - x.min()) / (2**bits - 1)
    return (x / scale).floor() + (-x.min() / scale).round()


def _both_floor(x: Tensor, bits: int) -> Tensor:
    scale = (x.max() - x.min()) / (2**bits - 1)
    return (x / scale).floor() + (-x.min() / scale).floor()


def _other_sign(x: Tensor, bits: int) -> Tensor:
    scale = (x.max() - x.min()) / (2**bits - 1)
    return (x / scale).round() - (-x.min() / scale).round()


def _one_level_more(x: Tensor, bits: int) -> Tensor:
    scale = (x.max() - x.min()) / 2**bits
    return (x / scale).round() + (-x.min() / scale).round()


def _symmetric(x: Tensor, bits: int) -> Tensor:
    scale = x.abs().max() / (2 ** (bits - 1) - 1)
    return (x / scale).round()


_MACS, _SEPARABLE = 9 * CHANNELS * CHANNELS, 9 * CHANNELS + CHANNELS * CHANNELS
_COUNT = 9 * FEWER * MORE

EXERCISES = [
    Exercise(
        "what leaves less to compute",
        choice({CHANGES[1], CHANGES[4]}, CHANGES),
        (
            "A usual runtime multiplies what is there, whatever its value.",
            "Ask of each change: are there fewer numbers, or only other ones?",
            "Two of the five make shapes smaller: one that of the model, one that of its inputs.",
        ),
    ),
    Exercise(
        "bytes of a rounded layer",
        number(
            _COUNT * BITS / 8 + 4 * MORE,
            tolerance=0.5,
            close=4 * FEWER,
            diagnoses={
                _COUNT * BITS / 8: "the scales are missing: four bytes for each output channel",
                _COUNT * BITS: "this is in bits, and without the scales: a byte has eight",
                _COUNT * BITS + 32 * MORE: "this is in bits: a byte has eight",
                _COUNT * 4: "these are the bytes before: four for each weight",
                _COUNT * BITS / 8 + 4: "each output channel has a scale of its own",
                _COUNT * BITS / 8 + 4 * FEWER: "a scale belongs to an output channel, not an input",
                FEWER * MORE * BITS / 8 + 4 * MORE: "each filter is 3×3: nine weights per input",
            },
        ),
        (
            "First the number of weights: each output channel sees 3×3 of all inputs.",
            "Weights times bits over eight, and four bytes for each scale.",
            "9 · 24 · 48 weights, and one scale for each of the 48 output channels.",
        ),
    ),
    Exercise(
        "quantize by hand",
        function(
            _codes,
            [(_ACTIVATIONS, 8), (_ACTIVATIONS, 3), (_WEIGHTS, 4), (_WEIGHTS, 2)],
            diagnoses=[
                (_floats_again, "these are floats again: the whole numbers q are wanted"),
                (_no_zero_point, "what is below 0 has no place there: add the zero point z"),
                (_zero_between, "a 0 must be a whole number exactly: round z by itself"),
                (_not_rounded, "these are no whole numbers yet: round x / s"),
                (_zero_not_rounded, "the zero point is a whole number, too: round z"),
                (_floor, "x / s goes to the nearest whole number, not to the one below"),
                (_both_floor, "round to the nearest whole number, not to the one below"),
                (_other_sign, "z has the wrong sign: the smallest x gets the number 0"),
                (_one_level_more, "2^bits levels have 2^bits − 1 steps between them"),
                (_symmetric, "this is symmetric about 0: use the whole range from min to max"),
            ],
            gradients=False,
        ),
        (
            "First the scale s, from x.max() and x.min(), then the zero point z, then q.",
            "The zero point is the whole number that stands for 0: z = (-x.min() / s).round().",
            "q = (x / s).round() + z, with s = (x.max() - x.min()) / (2**bits - 1).",
        ),
    ),
    Exercise(
        "a separable convolution",
        number(
            _MACS / _SEPARABLE,
            tolerance=0.06,
            close=0.5,
            diagnoses={
                9: "almost: the 3×3 filters of the first half are not free",
                CHANNELS: "the 1×1 convolution of the second half costs as well",
                _SEPARABLE / _MACS: "the other way round: how many times as many has the plain one",
            },
        ),
        (
            "Count the multiplications for one pixel; factors that both share cancel.",
            "A plain one has 9 · c · c. A depthwise one has 9 · c, a 1×1 one has c · c.",
            "9 · 64 · 64 over (9 · 64 + 64 · 64).",
        ),
    ),
]
