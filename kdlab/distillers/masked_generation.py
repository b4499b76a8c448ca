"""MGD: the student's features, a part of them masked, must generate all of the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.distillers.adapters import adapter, as_map
from kdlab.distillers.base import LayerDistiller, Layers, Outputs, check_fraction
from kdlab.distillers.connectors import map_shapes, pair_shapes
from kdlab.losses import hint_loss

MASKS = ("channels", "places")


class MaskedGeneration(LayerDistiller):
    """``weight · Σ_layers mean (G(mask ⊙ a(F_S)) − F_T)²`` with a random mask of 0 and 1.

    a adapts the student's features to the teacher's shape, G is 3×3, ReLU, 3×3; both train with the
    student and are dropped afterwards. Each image gets a mask of its own in each step, drawn like
    dropout's but without rescaling, and none in eval mode.

    Source: Yang, Li, Shao, Shi, Yuan, Yuan, "Masked Generative Distillation", ECCV 2022,
    arXiv:2205.01529, with what its code (github.com/yzd-v/MGD) takes for classification: channels,
    a ratio of 0.15. It masks places with a ratio of 0.65 for detection, 0.75 for segmentation. Its
    loss is the *sum* over the features with a weight of 7e-5: for the 512×7×7 of its ImageNet
    models that is 1.75 times the mean. It has no a where the channels agree; here there is one
    wherever the shapes differ, which resizes, too. A 3×3 window is no wider than the map.

    Args:
        layers: pairs of layers; any pair of maps, tokens or embeddings that `adapter` can join.
        weight: of the term, at least 0.
        ratio: the share that is masked, from 0 to below 1.
        mask: "channels" or "places" (tokens), whole ones.

    Raises:
        ValueError: no layer, an option out of its range.
    """

    in_tournament = False

    def __init__(
        self,
        layers: Layers = "stage3",
        weight: float = 1.75,
        ratio: float = 0.15,
        mask: str = "channels",
    ) -> None:
        super().__init__(layers, weight)
        self.ratio = check_fraction("ratio", ratio)
        if ratio == 1:
            raise ValueError("ratio: got 1, expected less, or nothing would be left to learn from")
        if mask not in MASKS:
            raise ValueError(f'mask: got {mask!r}, expected "channels" or "places"')
        self.mask = mask

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Build an adapter and a generator per pair."""
        found = pair_shapes(self.layers, student, teacher, train)
        maps = [theirs for _, theirs in map_shapes(self.layers, student, teacher, train)]
        self.adapters = nn.ModuleList(
            nn.Identity() if mine == theirs else adapter(path, mine, other, theirs)
            for (path, other), (mine, theirs) in zip(self.layers, found, strict=True)
        )
        self.generators = nn.ModuleList(generator(shape) for shape in maps)

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the term ``generation``."""
        values = []
        pairs = self.pairs(student, teacher)
        for adapt, generate, (mine, theirs) in zip(
            self.adapters, self.generators, pairs, strict=True
        ):
            features = as_map(adapt(mine))
            values.append(hint_loss(generate(features * self.kept(features)), as_map(theirs)))
        return {"generation": self.weight * torch.stack(values).sum()}

    def kept(self, features: Tensor) -> Tensor:
        """Draw what stays, 1, and what is masked, 0: ``[B, c, 1, 1]`` or ``[B, 1, h, w]``."""
        batch, channels, *size = features.shape
        shape = (batch, channels, 1, 1) if self.mask == "channels" else (batch, 1, *size)
        if not self.training:
            return torch.ones(shape, dtype=features.dtype, device=features.device)
        drawn = torch.rand(shape, device=features.device)
        return (drawn >= self.ratio).to(features.dtype)


def generator(shape: torch.Size) -> nn.Sequential:
    """Return two convolutions of a map's channels with a ReLU between."""
    window = tuple(3 if side > 1 else 1 for side in shape[2:])
    padding = tuple(side // 2 for side in window)
    first, second = (
        nn.Conv2d(shape[1], shape[1], window, padding=padding)  # type: ignore[arg-type]
        for _ in range(2)
    )
    return nn.Sequential(first, nn.ReLU(), second)
