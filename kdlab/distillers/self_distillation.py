"""Be your own teacher: the deepest classifier of a model teaches those at its inner layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.distillers.adapters import shapes
from kdlab.distillers.base import Distiller, Outputs, check_fraction
from kdlab.losses import hint_loss, soft_target_loss
from kdlab.losses.checks import check_temperature, check_weight
from kdlab.models.exits import ExitHead, exit_heads, padding_mask


class SelfDistillation(Distiller):
    """BYOT: ``Σ_i (1 − α) · CE(q_i, y) + α · T² · KL(q_C ‖ q_i) + β · ‖F_i − F_C‖²``, no teacher.

    q_i is the answer of a head on an inner layer, F_i the embedding that the head reads, q_C and
    F_C those of the model itself, which takes part in the first term alone. The deepest side is
    detached: it teaches and is not pulled down to the shallow ones. All is a mean over the images;
    ‖·‖² is a sum over the features. Afterwards drop the heads, or keep them:
    ``kdlab.models.with_exits(student, method.exits)``.

    Source: Zhang, Song, Gao, Chen, Bao, Ma, "Be Your Own Teacher: Improve the Performance of
    Convolutional Neural Networks via Self Distillation", ICCV 2019, arXiv:1905.08094. A
    reproduction that reaches the paper's numbers (github.com/luanyunteng/pytorch-be-your-own-
    teacher) gave us what the formula leaves open: the divergence goes from the deepest softmax (its
    gradient is that of the cross-entropy with it), F are embeddings after the heads' bottlenecks
    and the model's pooling, and q_C and F_C are detached; also α, T, β and the weight 1 − α of the
    model's own cross-entropy. It sums ‖F_i − F_C‖² over the batch of 128, so its β is 128 times
    this one: take 1.28e-4 for the same strength. The code of the first author's later journal
    version (github.com/ArchipLab-LinfengZhang/pytorch-self-distillation-final) differs: weight 1
    for the model's own cross-entropy, no T², α = 0.3, a linear map before the features' distance.
    Derived in lesson 04.

    Args:
        layers: of the student, from shallow to deep.
        temperature: T > 0.
        alpha: from 0, labels alone, to 1, the deepest exit alone; the labels then teach nobody.
        feature_weight: β, at least 0.
        embedding: the path that reads F_C ``[B, d]``; the default is what the classifier takes.

    Raises:
        ValueError: no layer, an option out of its range; in ``prepare`` a path that the student
            does not have, or an embedding of another rank.
    """

    needs_teacher = False
    labelled_terms = ("hard", "exit_hard")
    in_tournament = False

    def __init__(
        self,
        layers: str | Sequence[str] = ("stage1", "stage2"),
        temperature: float = 3.0,
        alpha: float = 0.1,
        feature_weight: float = 1e-6,
        embedding: str = "head:input",
    ) -> None:
        super().__init__()
        check_temperature("temperature", temperature)
        check_weight("feature_weight", feature_weight)
        self.layers = (layers,) if isinstance(layers, str) else tuple(layers)
        if not self.layers:
            raise ValueError('layers: none came, expected at least one, such as "stage1"')
        self.temperature = temperature
        self.alpha = check_fraction("alpha", alpha)
        self.feature_weight = float(feature_weight)
        self.embedding = embedding
        self.student_taps = (*self.layers, embedding)

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Build one head per layer, with embeddings as wide as the model's own."""
        shape = shapes(student, [self.embedding], train)[self.embedding]
        if len(shape) != 2:
            raise ValueError(
                f"embedding: {self.embedding!r} gives shape {list(shape)}, expected [B, d], what "
                "the classifier reads"
            )
        self.heads = exit_heads(student, self.layers, train.x[:1], width=shape[1])

    @property
    def exits(self) -> dict[str, nn.Module]:
        """The heads by layer, for `kdlab.models.with_exits`."""
        return dict(zip(self.layers, self.heads, strict=True))

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms ``hard`` (the model's own), ``exit_hard``, ``_soft``, ``_feature``."""
        mask = padding_mask(student.inputs)
        deepest = student.taps[self.embedding]
        hard, soft, feature = [], [], []
        for path, head in self.exits.items():
            assert isinstance(head, ExitHead)
            embedding = head.embed(student.taps[path], mask)
            logits = head.classifier(embedding)
            hard.append(student.label_loss(targets, logits=logits))
            soft.append(soft_target_loss(logits, student.logits, self.temperature))
            # the loss is a mean over the features, the formula a sum
            feature.append(deepest.shape[1] * hint_loss(embedding, deepest))
        return {
            "hard": (1 - self.alpha) * student.label_loss(targets),
            "exit_hard": (1 - self.alpha) * torch.stack(hard).sum(),
            "exit_soft": self.alpha * torch.stack(soft).sum(),
            "exit_feature": self.feature_weight * torch.stack(feature).sum(),
        }
