"""MiniLMv2: whom a token resembles, by queries, keys and values, at one layer or many."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdlab.distillers.base import Outputs
from kdlab.distillers.hierarchy import HierarchicalDistiller, LayerMapping
from kdlab.losses import relation_loss
from kdlab.losses.checks import check_count
from kdlab.words import check_known

RELATIONS = ("query", "key", "value", "hidden")


class SelfAttentionRelations(HierarchicalDistiller):
    """``weight · Σ_layers w_i · mean_X KL(R_T(X) ‖ R_S(X))`` for X = queries, keys, values.

    R(X) = softmax(X Xᵀ / √d_r) in each of the *relation heads*, which cut the width anew, whatever
    heads the networks have: widths, heads and depths may all differ, and nothing is added to the
    student. ``relations=("hidden",)`` compares hidden states instead, which every network has: an
    LSTM's, or the places of a CNN's feature maps. Padding takes no part where the inputs are token
    numbers. Which layers, and when: `kdlab.distillers.hierarchy`.

    Source: Wang, Bao, Huang, Dong, Wei, "MiniLMv2: Multi-Head Self-Attention Relation Distillation
    for Compressing Pretrained Transformers", Findings of ACL 2021, arXiv:2012.15828. There a single
    layer of the teacher teaches the student's last one (``mapping="last"``, or a dict for an upper
    middle layer), before any labels are seen; a hierarchy beside other terms is ours. Derived in
    lesson 04.

    Args:
        relations: which of "query", "key", "value", "hidden"; their mean is taken.
        relation_heads: a divisor of both widths. More heads ask for finer resemblances.
        mapping, schedule, evenness: as in `kdlab.distillers.hierarchy`.
        weight: of the term, at least 0.

    Raises:
        ValueError: an unknown relation, relation heads below 1 and what the hierarchy raises; when
            training begins, a model without attention, or layers whose shapes do not fit.
    """

    def __init__(
        self,
        relations: Sequence[str] = ("query", "key", "value"),
        relation_heads: int = 4,
        mapping: LayerMapping = "uniform",
        schedule: str = "all",
        weight: float = 1.0,
        evenness: float = 1.0,
    ) -> None:
        super().__init__(mapping, schedule, weight, evenness)
        self.relations = (relations,) if isinstance(relations, str) else tuple(relations)
        if not self.relations:
            raise ValueError(f"relations: none came, expected some of {', '.join(RELATIONS)}")
        for relation in self.relations:
            check_known("relation", relation, RELATIONS)
        check_count("relation_heads", relation_heads)
        self.relation_heads = relation_heads
        self._read = self.relations

    def join(self, part: str, student: torch.Size, teacher: torch.Size) -> None:
        """Raise ValueError unless the relation heads divide both widths and tokens have company."""
        if student[2] % self.relation_heads or teacher[2] % self.relation_heads:
            raise ValueError(
                f"relation_heads: {self.relation_heads}, expected a divisor of both widths, "
                f"{student[2]} and {teacher[2]}"
            )
        if student[1] == 1:
            raise ValueError("expected more than one token, since tokens are compared")

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the term ``relation``, and ``evenness`` if the mapping is learned."""
        mask = self.mask(student)
        found = [
            [
                relation_loss(mine, theirs, self.relation_heads, mask)
                for mine, theirs in self.read(part, student, teacher)
            ]
            for part in self._read
        ]
        means = [torch.stack(values).mean() for values in zip(*found, strict=True)]
        return self.terms({"relation": means}, student.progress)
