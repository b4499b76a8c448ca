"""Images of two kinds, and teachers of which each knows one kind."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.datasets import Data, Split


class Specialist(nn.Module):
    """Knows the images of one brightness, and is as certain of a wrong class on the others."""

    def __init__(self, bright: bool) -> None:
        super().__init__()
        self.bright = bright

    def forward(self, x: Tensor) -> Tensor:
        knows = is_bright(x) == self.bright
        return 6.0 * F.one_hot(torch.where(knows, label_in(x), (label_in(x) + 1) % 4), 4).to(x)


def is_bright(x: Tensor) -> Tensor:
    return x[:, 0, 0, 0] > 0


def label_in(x: Tensor) -> Tensor:
    """The label, of which one pixel tells a teacher that knows where to look."""
    return (x[:, 0, 0, 1] * 4).long()


def two_kinds(n: int = 480, seed: int = 0) -> Data:
    """Noise of 8×8 pixels, half of it bright and half dark, of four classes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 4
    bright = torch.rand(n, generator=generator) < 0.5
    x = 0.3 * torch.randn(n, 1, 8, 8, generator=generator) + 2.0 * bright.view(-1, 1, 1, 1) - 1.0
    x[:, 0, 0, 0] = bright * 2.0 - 1.0
    x[:, 0, 0, 1] = y / 4 + 0.1
    split = Split(x, y)
    return Data("two kinds", split, split, split, tuple("abcd"), (0.0,), (1.0,), {})
