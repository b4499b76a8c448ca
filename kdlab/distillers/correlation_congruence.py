"""Correlation congruence: the same Gaussian correlations between the images of a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.distillers.base import LayerDistiller, Layers, Outputs
from kdlab.distillers.connectors import pair_shapes
from kdlab.losses import correlation_congruence_loss
from kdlab.losses.checks import check_count, check_positive


class CorrelationCongruence(LayerDistiller):
    """``weight · Σ_layers ‖C_S − C_T‖² / B²`` of the Gaussian kernel's Taylor polynomial.

    Both sides are first embedded in one dimension. The student's embedding is a linear layer that
    learns with it. The teacher's is a random map with orthonormal rows or columns, drawn anew for
    each run and then fixed: it leaves all cosines as they are where the teacher has at most that
    many features, and nearly so beyond. Public code trains both; then the term could
    reach 0 by mapping all images to one point.

    Source: Peng, Jin, Liu, Zhou, Wu, Liu, Li, Zhang, "Correlation Congruence for Knowledge
    Distillation", 2019, arXiv:1904.01802. The weight of 100 is that of AberHu's
    Knowledge-Distillation-Zoo, which has this kernel; 0.02, found elsewhere, belongs to another
    formula. Compared in lesson 02.

    Args:
        layers: a path, several, or student's path → teacher's path; of any two shapes.
        weight: of the term.
        gamma: γ > 0, the kernel's inverse width.
        order: of the Taylor polynomial.
        dimension: of both embeddings.

    Raises:
        ValueError: no layer, an option out of range, fewer than two images in a batch.
    """

    relates_images = True

    def __init__(
        self,
        layers: Layers = "pool",
        weight: float = 100.0,
        gamma: float = 0.4,
        order: int = 2,
        dimension: int = 128,
    ) -> None:
        super().__init__(layers, weight)
        check_positive("gamma", gamma)
        check_count("order", order)
        check_count("dimension", dimension)
        self.gamma = gamma
        self.order = order
        self.dimension = dimension

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Make both embeddings of each pair of layers."""
        found = pair_shapes(self.layers, student, teacher, train)
        widths = [(math.prod(mine[1:]), math.prod(theirs[1:])) for mine, theirs in found]
        self.embeddings = nn.ModuleList(nn.Linear(width, self.dimension) for width, _ in widths)
        self.projections = nn.ModuleList(Projection(width, self.dimension) for _, width in widths)

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the term ``correlation``."""
        pairs = zip(self.pairs(student, teacher), self.embeddings, self.projections, strict=True)
        values = [
            correlation_congruence_loss(
                embed(mine.flatten(1)),
                project(theirs.flatten(1)),
                self.gamma,
                self.order,
            )
            for (mine, theirs), embed, project in pairs
        ]
        return {"correlation": self.weight * torch.stack(values).sum()}


class Projection(nn.Module):
    """A random linear map ``[B, width]`` → ``[B, dimension]`` that is never trained."""

    weight: Tensor

    def __init__(self, width: int, dimension: int) -> None:
        super().__init__()
        self.register_buffer("weight", nn.init.orthogonal_(torch.empty(dimension, width)))

    def forward(self, rows: Tensor) -> Tensor:
        """Return the rows, projected."""
        return rows @ self.weight.mT
