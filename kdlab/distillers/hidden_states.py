"""TinyBERT's hidden states: what each token has become, layer by layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.distillers.base import Outputs
from kdlab.distillers.hierarchy import HierarchicalDistiller
from kdlab.losses import hidden_state_loss


class HiddenStates(HierarchicalDistiller):
    """``weight · Σ_layers w_i · mean (W_i H_S − H_T)²`` over a sample's tokens and features.

    W_i is a linear map to the teacher's width, trained with the student, one per pair of layers.
    Any two networks with layers that can be counted will do, transformers, LSTMs or CNNs, as long
    as their tokens correspond. Padding takes no part where the inputs are token numbers. Which
    layers, and when: `kdlab.distillers.hierarchy`. (`Hints` compares layers by any paths, padding
    included, with a bias.)

    Source: Jiao, Yin, Shang, Jiang, Chen, Li, Wang, Liu, "TinyBERT: Distilling BERT for Natural
    Language Understanding", Findings of EMNLP 2020, arXiv:1909.10351, which adds the embeddings,
    shares one W and trains so before any labels are seen. TinyBERT adds the layers up; here w_i are
    1/n for n layers at once (``schedule="all"``), a mean: n times the weight trains as it does.
    Compared in lesson 04.

    Args:
        mapping, schedule, evenness: as in `kdlab.distillers.hierarchy`.
        weight: of the term, at least 0.

    Raises:
        ValueError: what the hierarchy raises; when training begins, layers of other tokens.
    """

    _read = ("hidden",)

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Build one linear map per pair of layers."""
        self.maps = nn.ModuleList()
        super().prepare(student, teacher, train)

    def join(self, part: str, student: torch.Size, teacher: torch.Size) -> None:
        """Build the map of a pair that can be compared."""
        self.maps.append(nn.Linear(student[2], teacher[2], bias=False))

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the term ``hidden``, and ``evenness`` if the mapping is learned."""
        mask = self.mask(student)
        pairs = self.read("hidden", student, teacher)
        values = [
            hidden_state_loss(linear(mine), theirs, mask)
            for linear, (mine, theirs) in zip(self.maps, pairs, strict=True)
        ]
        return self.terms({"hidden": values}, student.progress)
