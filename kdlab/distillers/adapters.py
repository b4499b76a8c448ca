"""What makes inner tensors of two models comparable: shapes from a dry run, trained adapters."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlab.datasets import Split
from kdlab.models import Taps
from kdlab.models.modes import evaluating, inputs_for, uncompiled
from kdlab.models.taps import CHANNELS_FIRST, channels_first

FORMS = {2: "an embedding [B, d]", 3: "tokens [B, N, d]", 4: "a feature map [B, c, h, w]"}


def example_of(train: Split, count: int = 2) -> Tensor:
    """Return the first sample ``count`` times, for a dry run."""
    return train.x[:1].repeat_interleave(count, dim=0)


def shapes(model: nn.Module, taps: Iterable[str], train: Split) -> dict[str, torch.Size]:
    """Return the shape of each tap from one dry run on two samples; the first entry is 2.

    Features ``[B, c, l]`` of a Conv1d count as l tokens of c numbers, ``[B, l, c]``, here and
    wherever a method reads them (`rows_of`).

    Raises:
        ValueError: a path that the model does not have, or a layer that cannot be reached, that
            gives no floating tensor, or none with one entry per sample.
    """
    wanted = list(taps)
    example = example_of(train)
    found = read_features(model, wanted, example, rows_of(model, wanted, train))
    for path, features in found.items():
        form = f"layers: {path!r} gives {str(features.dtype).removeprefix('torch.')} of shape "
        form += str(list(features.shape))
        if not features.is_floating_point():
            raise ValueError(f"{form}, expected floating features: pair another layer")
        if features.dim() < 2 or len(features) != 2 or 0 in features.shape:
            raise ValueError(
                f"{form} for 2 samples, expected one entry per sample, [2, ...], with features in "
                "it: pair another layer (an LSTM needs batch_first=True)"
            )
    return {path: features.shape for path, features in found.items()}


def rows_of(model: nn.Module, taps: Iterable[str], train: Split) -> frozenset[str]:
    """Return the taps ``[B, c, l]`` that are read as tokens ``[B, l, c]``: `channels_first`."""
    if not any(isinstance(module, CHANNELS_FIRST) for module in model.modules()):
        return frozenset()  # without a dry run
    return channels_first(model, taps, example_of(train))


@torch.no_grad()
def read_features(
    model: nn.Module, taps: Iterable[str], images: Tensor, rows: frozenset[str] = frozenset()
) -> dict[str, Tensor]:
    """Return what each tap holds for a batch, in eval mode; those in ``rows`` as ``[B, l, c]``."""
    with uncompiled(), evaluating(model), Taps(model, list(taps)) as read:
        model(inputs_for(model, images))
        return {path: read[path].mT if path in rows else read[path] for path in read}


def adapter(
    student_path: str, student_shape: torch.Size, teacher_path: str, teacher_shape: torch.Size
) -> nn.Module:
    """Return a trainable map from the student's tensor to the teacher's shape.

    Feature maps are resized and go through a 1×1 convolution (Romero et al.'s regressor, with the
    resizing in place of a larger kernel), embeddings through a linear layer, tokens through a
    linear layer and a resizing along N. Maps and tokens become an embedding by their mean, a map
    tokens by reading its places row by row, and n² tokens a map of n rows.

    Source: Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets",
    2014, arXiv:1412.6550.

    Raises:
        ValueError: no such map exists; the message names both layers and shapes.
    """
    forms = (len(student_shape), len(teacher_shape))
    build = ADAPTERS.get(forms)
    if build is None or (forms == (3, 4) and math.isqrt(student_shape[1]) ** 2 != student_shape[1]):
        what, wanted = (FORMS.get(form, f"a tensor of {form} dimensions") for form in forms)
        raise ValueError(
            f"layers: the student's {student_path!r} gives {what} of shape {list(student_shape)}, "
            f"the teacher's {teacher_path!r} {wanted} of shape {list(teacher_shape)}; no adapter "
            "leads from one to the other: pair other layers (kdlab.models.paths lists them)"
        )
    return build(student_shape, teacher_shape)


class Resize(nn.Module):
    """Feature maps ``[B, c, h, w]`` at another size: average pooling down, bilinear up."""

    def __init__(self, size: Iterable[int]) -> None:
        super().__init__()
        self.size = tuple(size)

    def forward(self, features: Tensor) -> Tensor:
        """Return ``[B, c, *size]``."""
        return resize(features, self.size)


class Places(nn.Module):
    """A feature map's places as tokens: ``[B, c, h, w]`` → ``[B, h·w, c]``."""

    def forward(self, features: Tensor) -> Tensor:
        """Return the places, row by row."""
        return features.flatten(2).mT


class Square(nn.Module):
    """Tokens as a square feature map: ``[B, n², d]`` → ``[B, d, n, n]``."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the tokens in rows of n."""
        side = math.isqrt(tokens.shape[1])
        return tokens.mT.unflatten(2, (side, side))


class Count(nn.Module):
    """Tokens ``[B, N, d]`` at another N, by averaging or linear interpolation along N."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ``[B, count, d]``."""
        return resize(as_map(tokens), (self.count, 1)).squeeze(-1).mT


def _map_to_map(student: torch.Size, teacher: torch.Size) -> nn.Module:
    resized = [Resize(teacher[2:])] if student[2:] != teacher[2:] else []
    return nn.Sequential(*resized, nn.Conv2d(student[1], teacher[1], kernel_size=1))


def _map_to_embedding(student: torch.Size, teacher: torch.Size) -> nn.Module:
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*pooled, nn.Linear(student[1], teacher[1]))


def _tokens_to_embedding(student: torch.Size, teacher: torch.Size) -> nn.Module:
    return nn.Sequential(Count(1), nn.Flatten(), nn.Linear(student[2], teacher[1]))


def _tokens_to_tokens(student: torch.Size, teacher: torch.Size) -> nn.Module:
    counted = [Count(teacher[1])] if student[1] != teacher[1] else []
    return nn.Sequential(*counted, nn.Linear(student[2], teacher[2]))


def _map_to_tokens(student: torch.Size, teacher: torch.Size) -> nn.Module:
    places = torch.Size((student[0], math.prod(student[2:]), student[1]))
    return nn.Sequential(Places(), _tokens_to_tokens(places, teacher))


def _tokens_to_map(student: torch.Size, teacher: torch.Size) -> nn.Module:
    side = math.isqrt(student[1])
    square = torch.Size((student[0], student[2], side, side))
    return nn.Sequential(Square(), _map_to_map(square, teacher))


ADAPTERS = {
    (2, 2): lambda student, teacher: nn.Linear(student[1], teacher[1]),
    (3, 3): _tokens_to_tokens,
    (4, 4): _map_to_map,
    (4, 2): _map_to_embedding,
    (3, 2): _tokens_to_embedding,
    (4, 3): _map_to_tokens,
    (3, 4): _tokens_to_map,
}


def as_map(features: Tensor) -> Tensor:
    """Return tokens ``[B, N, d]`` or an embedding ``[B, d]`` as a map ``[B, d, N or 1, 1]``.

    Raises:
        ValueError: a tensor of another rank.
    """
    if features.dim() not in FORMS:
        raise ValueError(
            f"features: shape {list(features.shape)}, expected {', '.join(FORMS.values())}"
        )
    if features.dim() == 4:
        return features
    return (features.unsqueeze(1) if features.dim() == 2 else features).mT.unsqueeze(-1)


def match_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return both maps ``[B, c, h, w]`` at the smaller of the two heights and widths."""
    size = tuple(min(mine, theirs) for mine, theirs in zip(a.shape[2:], b.shape[2:], strict=True))
    return resize(a, size), resize(b, size)


def resize(features: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return maps ``[B, c, *size]``: pooled by averages where they shrink, bilinear where not."""
    smaller = tuple(min(now, then) for now, then in zip(features.shape[2:], size, strict=True))
    if smaller != tuple(features.shape[2:]):
        features = F.adaptive_avg_pool2d(features, (smaller[0], smaller[1]))
    if smaller != size:
        features = F.interpolate(features, size, mode="bilinear", align_corners=False)
    return features
