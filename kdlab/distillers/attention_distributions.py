"""MiniLM and TinyBERT: each head looks where the teacher's head looks."""

from __future__ import annotations

from torch import Tensor

from kdlab.distillers.base import Outputs
from kdlab.distillers.hierarchy import HierarchicalDistiller, LayerMapping
from kdlab.losses import attention_distribution_loss, attention_score_loss, relation_loss
from kdlab.losses.checks import check_weight
from kdlab.words import check_known

COMPARED = {"probabilities": attention_distribution_loss, "scores": attention_score_loss}


class AttentionDistributions(HierarchicalDistiller):
    """``weight · Σ_layers w_i · (KL(A_T ‖ A_S) + value_weight · KL(R_T(V) ‖ R_S(V)))``.

    A are the attention probabilities of each head, R(V) the relation of the values (MiniLM), with
    as many relation heads as the networks have heads. With ``compare="scores"`` the mean squared
    difference of the scores before the softmax takes the place of the divergence (TinyBERT, which
    has no term for the values). Both networks need equally many heads; their widths may differ.
    Padding takes no part where the inputs are token numbers. Which layers, and when:
    `kdlab.distillers.hierarchy`.

    Sources: Wang, Wei, Dong, Bao, Yang, Zhou, "MiniLM: Deep Self-Attention Distillation for
    Task-Agnostic Compression of Pre-Trained Transformers", NeurIPS 2020, arXiv:2002.10957 (last
    layer alone, ``mapping="last"``); Jiao, Yin, Shang, Jiang, Chen, Li, Wang, Liu, "TinyBERT:
    Distilling BERT for Natural Language Understanding", Findings of EMNLP 2020, arXiv:1909.10351
    (``"uniform"``, all layers). Both train by these terms before any labels are seen. TinyBERT adds
    the layers up; here w_i are 1/n for n layers at once (``schedule="all"``), a mean: n times the
    weight trains as it does. Derived in lesson 04.

    Args:
        compare: "probabilities" or "scores".
        value_weight: of the values' relation, at least 0; with 0 the values are not read.
        mapping, schedule, evenness: as in `kdlab.distillers.hierarchy`.
        weight: of the terms, at least 0.

    Raises:
        ValueError: an unknown ``compare``, a negative weight and what the hierarchy raises; when
            training begins, a model without attention, or other heads or tokens than the other's.
    """

    def __init__(
        self,
        compare: str = "probabilities",
        value_weight: float = 1.0,
        mapping: LayerMapping = "last",
        schedule: str = "all",
        weight: float = 1.0,
        evenness: float = 1.0,
    ) -> None:
        super().__init__(mapping, schedule, weight, evenness)
        check_known("compare", compare, COMPARED)
        check_weight("value_weight", value_weight)
        self.compare = compare
        self.value_weight = float(value_weight)
        self._read = ("scores", "value") if value_weight else ("scores",)

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return ``attention``, ``value`` if it is read, and ``evenness`` for a learned mapping."""
        mask, loss = self.mask(student), COMPARED[self.compare]
        scores = self.read("scores", student, teacher)
        values = {"attention": [loss(mine, theirs, mask) for mine, theirs in scores]}
        if "value" in self._read:
            heads = scores[0][0].shape[1]
            values["value"] = [
                self.value_weight * relation_loss(mine, theirs, heads, mask)
                for mine, theirs in self.read("value", student, teacher)
            ]
        return self.terms(values, student.progress)
