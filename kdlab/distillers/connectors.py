"""What methods on pairs of layers share: reading, maps of one size, connectors, layer weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.distillers.adapters import as_map, example_of, match_size, shapes
from kdlab.distillers.base import Outputs, read_layers
from kdlab.models import preactivation

Pairs = Sequence[tuple[str, str]]  # paths of layers, the student's first
Shapes = list[tuple[torch.Size, torch.Size]]


def pair_shapes(
    layers: Pairs, student: nn.Module, teacher: nn.Module | None, train: Split
) -> Shapes:
    """Return the shapes of each pair's tensors from one dry run; the first entry is 2.

    Raises:
        ValueError: no teacher; a path that a model does not have.
    """
    mine = shapes(student, [path for path, _ in layers], train)
    theirs = shapes(given(teacher), [path for _, path in layers], train)
    return [(mine[path], theirs[other]) for path, other in layers]


def map_shapes(
    layers: Pairs, student: nn.Module, teacher: nn.Module | None, train: Split
) -> Shapes:
    """Return the shapes ``[2, c, h, w]`` of each pair, embeddings and tokens read as maps.

    Raises:
        ValueError: as `pair_shapes`; a tensor that cannot be read as a map.
    """
    found = []
    raw = pair_shapes(layers, student, teacher, train)
    for (path, other), (mine, theirs) in zip(layers, raw, strict=True):
        try:
            found.append((_map_shape(mine), _map_shape(theirs)))
        except ValueError as error:
            raise ValueError(
                f"layers: the student's {path!r} gives shape {list(mine)}, the teacher's "
                f"{other!r} {list(theirs)}; {error}"
            ) from None
    return found


def _map_shape(shape: torch.Size) -> torch.Size:
    return as_map(torch.empty(shape, device="meta")).shape


def check_places(layers: Pairs, found: Shapes) -> None:
    """Raise ValueError if no pair has two places in common: the term would teach nothing."""
    if any(min(mine[2], theirs[2]) * min(mine[3], theirs[3]) > 1 for mine, theirs in found):
        return
    what = "; ".join(
        f"the student's {path!r} gives {list(mine)}, the teacher's {other!r} {list(theirs)}"
        for (path, other), (mine, theirs) in zip(layers, found, strict=True)
    )
    raise ValueError(
        f"layers: {what}; expected a pair with more than one place in common, because this method "
        "compares places with each other: take an earlier layer"
    )


def read_maps(layers: Pairs, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
    """Return each pair as maps ``[B, c, h, w]``, the larger pooled to the size of the smaller."""
    pairs = read_layers(layers, student, teacher)
    return [match_size(as_map(mine), as_map(theirs)) for mine, theirs in pairs]


def before_activations(
    layers: Pairs, student: nn.Module, teacher: nn.Module | None, train: Split
) -> tuple[tuple[str, str], ...]:
    """Return the paths that read each pair before the activation that follows: `preactivation`.

    Raises:
        ValueError: as `pair_shapes`.
    """
    example = example_of(train, 1)
    return tuple(
        (preactivation(student, path, example), preactivation(given(teacher), other, example))
        for path, other in layers
    )


def given(teacher: nn.Module | None) -> nn.Module:
    """Return the teacher, or raise ValueError that says that there is none."""
    if teacher is None:
        raise ValueError("teacher: none came, but this method reads inner layers of one")
    return teacher


def connector(student: torch.Size, teacher: torch.Size) -> nn.Sequential:
    """Return a trainable map to the teacher's channels: 1×1 convolution and batch norm."""
    return nn.Sequential(
        nn.Conv2d(student[1], teacher[1], kernel_size=1, bias=False), nn.BatchNorm2d(teacher[1])
    )


def deepest_first(values: Sequence[Tensor]) -> Tensor:
    """Return the sum of the layers' values, each layer counting twice the one before it.

    The deepest, which is the last, has the weight 1.
    """
    return torch.stack([v * 0.5**depth for depth, v in enumerate(reversed(values))]).sum()
