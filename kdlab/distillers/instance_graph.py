"""IRG: the graph that the samples of a batch form in each layer, and how it moves between them."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlab.datasets import Split
from kdlab.distillers.adapters import as_map, match_size
from kdlab.distillers.base import LayerDistiller, Layers, Outputs, checked_teacher
from kdlab.distillers.connectors import map_shapes, pair_shapes
from kdlab.losses import instance_edge_loss, instance_transformation_loss, logit_matching_loss
from kdlab.losses.checks import check_weight

Pair = tuple[torch.Size, torch.Size]  # a layer's shapes in the student and in the teacher


class InstanceGraph(LayerDistiller):
    """``weight · (v · vertices + e · edges + t · transformation)``: add it to a method on labels.

    Vertices are the logits, mean (z_S − z_T)². Edges are the squared distances of the samples in a
    layer, in units of the largest, and the term is the mean over the layers. The transformation is
    how far each sample moves from one layer to the next, in units of the largest, for neighbours
    in ``layers`` that have one form (two maps, say); of two sizes the smaller is taken, of places
    and of channels, by averages.

    Source: Liu, Cao, Li, Yuan, Hu, Li, Duan, "Knowledge Distillation via Instance Relationship
    Graph", CVPR 2019 (not on arXiv). Details, layers and weights are those of public PyTorch code
    (github.com/AberHu/Knowledge-Distillation-Zoo; the authors' is for Caffe), which like this has
    no movement of the edges.

    Args:
        layers: a path, several, or student's path → teacher's path; of any two shapes.
        vertices: v, at least 0.
        edges: e, at least 0.
        transformation: t, at least 0.
        weight: factor on all three.

    Raises:
        ValueError: no layer, a negative factor; in ``prepare``, with t > 0, no two neighbours of
            one form; in ``forward``, fewer than two samples.
    """

    relates_images = True
    in_tournament = False

    def __init__(
        self,
        layers: Layers = ("stage2", "stage3", "pool"),
        vertices: float = 0.1,
        edges: float = 5.0,
        transformation: float = 5.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__(layers, weight)
        for name, value in (
            ("vertices", vertices),
            ("edges", edges),
            ("transformation", transformation),
        ):
            check_weight(name, value)
        self.vertices = float(vertices)
        self.edges = float(edges)
        self.transformation = float(transformation)
        self.complete = vertices > 0 and weight > 0

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Look whether the layers can be compared."""
        map_shapes(self.layers, student, teacher, train)
        found = pair_shapes(self.layers, student, teacher, train)
        if self.transformation and not any(
            _one_form(first, second) for first, second in pairwise(found)
        ):
            shapes = "; ".join(
                f"{path!r} {list(mine)} and {other!r} {list(theirs)}"
                for (path, other), (mine, theirs) in zip(self.layers, found, strict=True)
            )
            raise ValueError(
                f"layers: got {shapes}, expected two neighbours of one form, such as two maps, to "
                "follow the samples from one to the other; name more, or take transformation=0"
            )

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms ``vertices``, ``edges``, ``transformation`` whose factor is above 0."""
        pairs = self.pairs(student, teacher)
        terms = {}
        if self.vertices:
            said = checked_teacher(teacher, self).logits
            terms["vertices"] = self.vertices * logit_matching_loss(student.logits, said)
        if self.edges:
            values = [instance_edge_loss(*pair) for pair in pairs]
            terms["edges"] = self.edges * torch.stack(values).mean()
        if self.transformation:
            moves = [
                tuple(one_size(before, after) for before, after in zip(first, second, strict=True))
                for first, second in pairwise(pairs)
                if _one_form(_shapes(first), _shapes(second))
            ]
            values = [instance_transformation_loss(mine, theirs) for mine, theirs in moves]
            terms["transformation"] = self.transformation * torch.stack(values).mean()
        return {name: self.weight * term for name, term in terms.items()}


def _one_form(first: Pair, second: Pair) -> bool:
    """Say whether two layers have one rank in each of the models."""
    return all(len(a) == len(b) for a, b in zip(first, second, strict=True))


def _shapes(pair: tuple[Tensor, Tensor]) -> Pair:
    return pair[0].shape, pair[1].shape


def one_size(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return two layers of one network at the smaller size of both, in places and channels."""
    first, second = match_size(as_map(first), as_map(second))
    channels = min(first.shape[1], second.shape[1])
    return _fewer_channels(first, channels), _fewer_channels(second, channels)


def _fewer_channels(features: Tensor, channels: int) -> Tensor:
    if features.shape[1] == channels:
        return features
    return F.adaptive_avg_pool1d(features.flatten(2).mT, channels).mT.unflatten(
        2, features.shape[2:]
    )
