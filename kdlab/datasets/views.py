"""Augmentation as a function of (image, view): the same two numbers always give the same picture.

That is what makes a cache of the teacher's answers right: the student is shown exactly the view
that the teacher was asked about, whatever the shuffle, the batch size or a resumed run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Random crop after padding, random horizontal flip, random noise.

    Args:
        shift: largest move in pixels, in each direction; the border is filled with zeros, which
            is the mean of normalised images.
        flip: mirror half of the views left to right. Wrong for letters, right for photographs.
        noise: standard deviation of normal noise that is added to every pixel of the normalised
            images.
        seed: another seed, another set of views.
    """

    shift: int = 2
    flip: bool = False
    seed: int = 0
    noise: float = 0.0

    def __post_init__(self) -> None:
        if type(self.shift) is not int or self.shift < 0:
            raise ValueError(f"shift: {self.shift!r} came, expected a whole number from 0 on")
        if type(self.seed) is not int:
            raise ValueError(f"seed: {self.seed!r} came, expected a whole number")
        number = isinstance(self.noise, int | float) and not isinstance(self.noise, bool)
        if not number or not 0 <= self.noise < math.inf:
            raise ValueError(f"noise: {self.noise!r} came, expected a finite number, not negative")

    def __call__(self, images: Tensor, index: Tensor, view: int) -> Tensor:
        """Return view number ``view`` of a batch.

        Args:
            images: ``[B, c, h, w]``.
            index: ``[B]`` int64, each image's number in its data set.
            view: number of the view, 0 or more.
        """
        if self.flip:
            mirrored = uniform(index, view, self.seed, stream=2) < 0.5
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
        if self.shift:
            images = self._moved(images, index, view)
        if self.noise:
            images = images + self.noise * normal(index, view, self.seed, images.shape[1:])
        return images

    def _moved(self, images: Tensor, index: Tensor, view: int) -> Tensor:
        height, width = images.shape[-2:]
        places = 2 * self.shift + 1
        down, right = (
            (uniform(index, view, self.seed, stream) * places).long().clamp_(max=places - 1)
            for stream in (0, 1)
        )
        padded = F.pad(images, [self.shift] * 4)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        batch = torch.arange(len(images), device=images.device)
        return windows[batch, :, down, right]


def normal(index: Tensor, view: int, seed: int, shape: Sequence[int]) -> Tensor:
    """Return normal numbers that depend on nothing but the arguments, ``[B, *shape]`` float32.

    Box and Muller, "A Note on the Generation of Random Normal Deviates", 1958: two uniform numbers
    give a radius and an angle, and those two normal ones.
    """
    count = math.prod(shape)
    pairs = (count + 1) // 2
    each = index.long().unsqueeze(1) * pairs + torch.arange(pairs, device=index.device)
    radius = (-2 * torch.log1p(-uniform(each, view, seed, stream=3))).sqrt()
    angle = 2 * math.pi * uniform(each, view, seed, stream=4)
    both = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return both[:, :count].reshape(-1, *shape)


def uniform(index: Tensor, view: int, seed: int, stream: int) -> Tensor:
    """Return numbers in [0, 1) that depend on nothing but the arguments, as ``index``, float32.

    A counter-based generator: the bits of the counter are mixed by the finaliser of SplitMix
    (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014), here on 32 bits
    kept in int64, so that every device gives the same numbers.
    """
    mask = 0xFFFFFFFF
    key = (seed * 0x9E3779B1 + view * 0x85EBCA77 + stream * 0xC2B2AE3D + 0x27D4EB2F) & mask
    bits = (index.long() + key) & mask
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        bits = ((bits ^ (bits >> shift)) * factor) & mask
        bits = bits ^ (bits >> 15)
    bits = ((bits + key) * 0x2C1B3C6D) & mask
    bits = bits ^ (bits >> 16)
    return (bits >> 8).to(torch.float32) / (1 << 24)
