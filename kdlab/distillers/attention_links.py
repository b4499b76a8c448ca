"""AFD: which layer of the student learns from which layer of the teacher is learned as well."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlab.datasets import Split
from kdlab.distillers.adapters import as_map
from kdlab.distillers.base import Distiller, Outputs, checked_teacher
from kdlab.distillers.connectors import check_places, map_shapes
from kdlab.losses import hint_loss
from kdlab.losses.checks import check_count, check_weight, compute_dtype, reduce, unit
from kdlab.models.exits import mean_over_places, padding_mask

STAGES = ("stage1", "stage2", "stage3")
MEMORY = 0.95  # of the running mean of the links


class AttentionLinks(Distiller):
    """``weight · Σ_t Σ_s α_ts · mean (A_t − A_s)²`` over all layers t of the teacher and s.

    A is where a layer looks: the mean over the channels of f², brought to the teacher's size by
    averaging and scaled to unit length. For each image and layer t the link α_ts is a softmax over
    the layers s of ``(q_t · W_t k_s + p_t · p_s) / √d``: the query q_t comes from the teacher's
    channel means (Linear, batch norm), the key k_s from the student's (Linear, batch norm, ReLU),
    W_t is one Linear with batch norm per layer t, and p are learned vectors of the layers' places.

    The links are trained by the loss that they weigh. So they may settle on the pairs that are
    alike anyway instead of those that teach; look at ``links`` and at the measure
    ``link_entropy``: 1 means that every layer of the student counts alike, 0 that one alone does.

    Source: Ji, Heo, Park, "Show, Attend and Distill: Knowledge Distillation via Attention-based
    Feature Matching", AAAI 2021, arXiv:2102.02973. The formula is that of the authors' released
    code, with its width d = 128 and its weight 200 (for WRN-40-2 to WRN-16-2 on CIFAR-100, where
    every residual block is a layer, beside soft targets). We read the code, not the paper.
    Derived in lesson 04.

    Args:
        student_layers: at least two paths.
        teacher_layers: at least one.
        weight: of the term, at least 0.
        width: d.

    Raises:
        ValueError: too few layers, an option out of its range; in ``prepare`` no teacher, a path
            that a model does not have, a layer that is no map, tokens or embedding, or no two
            layers with more than one place.
    """

    complete = False
    in_tournament = False

    def __init__(
        self,
        student_layers: Sequence[str] = STAGES,
        teacher_layers: Sequence[str] = STAGES,
        weight: float = 200.0,
        width: int = 128,
    ) -> None:
        super().__init__()
        check_weight("weight", weight)
        check_count("width", width)
        self.student_layers = _checked("student_layers", student_layers, least=2)
        self.teacher_layers = _checked("teacher_layers", teacher_layers, least=1)
        self.weight = float(weight)
        self.width = width
        self.student_taps, self.teacher_taps = self.student_layers, self.teacher_layers
        self._entropy: Tensor | None = None

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Build queries, keys and places."""
        pairs = [(s, t) for s in self.student_layers for t in self.teacher_layers]
        found = map_shapes(pairs, student, teacher, train)
        check_places(pairs, found)
        mine = {s: shape for (s, _), (shape, _) in zip(pairs, found, strict=True)}
        theirs = {t: shape for (_, t), (_, shape) in zip(pairs, found, strict=True)}
        d, queries, keys = self.width, len(theirs), len(mine)
        self.queries = nn.ModuleList(_projection(shape[1], d) for shape in theirs.values())
        self.keys = nn.ModuleList(_projection(shape[1], d) for shape in mine.values())
        self.bilinear = _projection(d, d * queries)
        self.query_places = nn.Parameter(nn.init.xavier_normal_(torch.empty(queries, d)))
        self.key_places = nn.Parameter(nn.init.xavier_normal_(torch.empty(keys, d)))
        self.register_buffer("links", torch.full((queries, keys), 1 / keys))

    def attention(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return the links α of each image, ``[B, teacher's layers, student's layers]``."""
        mask = padding_mask(student.inputs)
        seen = [x.detach() for x in _read(teacher, self.teacher_layers)]
        theirs = [mean_over_places(x, mask) for x in seen]
        mine = [mean_over_places(x, mask) for x in _read(student, self.student_layers)]
        q = torch.stack([f(x) for f, x in zip(self.queries, theirs, strict=True)], 1)
        k = torch.stack([f(x).relu() for f, x in zip(self.keys, mine, strict=True)], 1)
        # one key for each pair, [B, S, T, d]
        k = self.bilinear(k.flatten(0, 1)).view(len(k), len(mine), len(theirs), self.width)
        scores = torch.einsum("btd,bstd->bts", q, k) + self.query_places @ self.key_places.T
        return (scores / math.sqrt(self.width)).softmax(-1)

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the term ``links``."""
        teacher = checked_teacher(teacher, self)
        links = self.attention(student, teacher)
        mask = padding_mask(student.inputs)
        mine = [_energy(x, mask) for x in _read(student, self.student_layers)]
        theirs = [_energy(x, mask) for x in _read(teacher, self.teacher_layers)]
        gaps = [
            [hint_loss(_looks(s, t.shape[2:]), _looks(t), reduction="none") for s in mine]
            for t in theirs
        ]
        distances = torch.stack([torch.stack(row, -1) for row in gaps], 1)
        self._note(links.detach())
        return {"links": self.weight * reduce((links * distances).sum((1, 2)), None, "mean")}

    def _note(self, links: Tensor) -> None:
        entropy = -(links * links.clamp(min=1e-30).log()).sum(-1).mean()
        self._entropy = entropy / math.log(links.shape[-1])
        if self.training:
            self.get_buffer("links").lerp_(links.mean(0), 1 - MEMORY)

    def measures(self) -> dict[str, Tensor]:
        """Return ``link_entropy``, the mean over images and layers, from 0 to 1."""
        return {} if self._entropy is None else {"link_entropy": self._entropy}


def _checked(name: str, layers: Sequence[str], least: int) -> tuple[str, ...]:
    layers = (layers,) if isinstance(layers, str) else tuple(layers)
    if len(layers) < least:
        raise ValueError(
            f"{name}: {layers!r} came, expected at least {least} paths: links are choices between "
            "layers of the student"
        )
    return layers


def _projection(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs))


def _read(outputs: Outputs, layers: Sequence[str]) -> list[Tensor]:
    return [outputs.taps[path].to(compute_dtype(outputs.taps[path])) for path in layers]


def _energy(features: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean square over the channels as a map ``[B, 1, h, w]``, 0 at padding."""
    energy = as_map(features).square().mean(1, keepdim=True)
    if mask is not None and features.dim() == 3:
        energy = energy.where(mask[:, None, :, None], 0.0)
    return energy


def _looks(energy: Tensor, size: torch.Size | None = None) -> Tensor:
    """Return where a layer looks, ``[B, places]`` of unit length, averaged to ``size``."""
    if size is not None and energy.shape[2:] != size:
        energy = F.adaptive_avg_pool2d(energy, (size[0], size[1]))
    return unit(energy.flatten(1), 1)
