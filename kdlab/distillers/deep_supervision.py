"""Deep supervision: classifiers at inner layers of the student, each taught like the last one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.distillers.adapters import adapter
from kdlab.distillers.base import (
    LayerDistiller,
    Layers,
    Outputs,
    check_fraction,
    checked_teacher,
    read_layers,
    teacher_logits,
)
from kdlab.distillers.connectors import pair_shapes
from kdlab.losses import hint_loss, soft_target_loss
from kdlab.losses.checks import check_temperature, check_weight
from kdlab.models.exits import exit_heads, padding_mask

BALANCES = ("equal", "loss")


class DeepSupervision(LayerDistiller):
    """``weight · Σ_l w_l · L_l`` over auxiliary classifiers at layers l of the student.

    ``L_l = (1 − α) · CE(q_l, labels) + α · T² · KL(teacher ‖ q_l) + γ · mean (r_l(s_l) − t_l)²``
    with q_l the answer of a small head on the student's features s_l, and r_l an adapter to the
    features t_l of the teacher. With α = γ = 0 it needs no teacher and is deeply-supervised nets.
    Add it to a method for the last classifier: ``SoftTargets() + DeepSupervision()``. Afterwards
    drop the heads, or keep them: ``kdlab.models.with_exits(student, method.exits)``.

    Sources: Lee, Xie, Gallagher, Zhang, Tu, "Deeply-Supervised Nets", 2014, arXiv:1409.5185 (labels
    alone; there with a squared hinge loss). Luo, Chen, Wang, "Knowledge Distillation with Deep
    Supervision" (DSKD), 2022, arXiv:2202.07846: predictions and feature maps of the teacher at
    shallow layers, and weights from the losses. Its abstract is all that we could read: the public
    repository is empty. What is ours, and may differ, is: the heads, the adapters and which layers
    are paired, α, T and γ, and the formula of the weights,
    ``w_l = n · L_l / Σ_k L_k`` over n layers, without gradient, anew in each batch. It keeps the
    mean weight at 1 and gives most to the layer that is furthest behind, which usually is the
    shallowest. Derived in lesson 04.

    Args:
        layers: of the student; as pairs, with the teacher's layers for γ. Any that `ExitHead` can
            read: maps, tokens, embeddings.
        weight: of all terms, at least 0.
        temperature: T > 0.
        alpha: from 0, labels alone, to 1, teacher alone.
        feature_weight: γ, at least 0. With 0 the teacher's inner layers are not read.
        balance: "equal": w_l = 1; "loss": as above; or one number of at least 0 per layer.

    Raises:
        ValueError: no layer, an option out of its range.
    """

    labelled_terms = ("exit_hard",)
    in_tournament = False

    tasks = ("classes",)

    def __init__(
        self,
        layers: Layers = ("stage1", "stage2"),
        weight: float = 1.0,
        temperature: float = 4.0,
        alpha: float = 0.9,
        feature_weight: float = 0.0,
        balance: str | Sequence[float] = "equal",
    ) -> None:
        super().__init__(layers, weight)
        check_temperature("temperature", temperature)
        check_weight("feature_weight", feature_weight)
        self.temperature = temperature
        self.alpha = check_fraction("alpha", alpha)
        self.feature_weight = float(feature_weight)
        self.balance = _check_balance(balance, len(self.layers))
        self.relates_images = balance == "loss"  # its weights come from all images
        self.needs_teacher = alpha > 0 or feature_weight > 0
        if not feature_weight:
            self.teacher_taps = ()
        self._weights: Tensor | None = None

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Build one head per layer, and one adapter if features are compared."""
        self.heads = exit_heads(student, [path for path, _ in self.layers], train.x[:1])
        self.adapters = nn.ModuleList()
        if self.feature_weight:
            found = pair_shapes(self.layers, student, teacher, train)
            self.adapters.extend(
                adapter(path, mine, other, theirs)
                for (path, other), (mine, theirs) in zip(self.layers, found, strict=True)
            )

    @property
    def exits(self) -> dict[str, nn.Module]:
        """The heads by the student's layers, for `kdlab.models.with_exits`."""
        return {path: head for (path, _), head in zip(self.layers, self.heads, strict=True)}

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms ``exit_hard``, ``exit_soft`` if α > 0, ``exit_feature`` if γ > 0."""
        mask = padding_mask(student.inputs)
        answers = [head(student.taps[path], mask) for path, head in self.exits.items()]
        values = {
            "exit_hard": [(1 - self.alpha) * student.label_loss(targets, logits=a) for a in answers]
        }
        if self.alpha:
            said = teacher_logits(teacher, self)
            values["exit_soft"] = [
                self.alpha * soft_target_loss(a, said, self.temperature) for a in answers
            ]
        if self.feature_weight:
            pairs = read_layers(self.layers, student, checked_teacher(teacher, self))
            values["exit_feature"] = [
                self.feature_weight * hint_loss(adapt(mine), theirs)
                for adapt, (mine, theirs) in zip(self.adapters, pairs, strict=True)
            ]
        by_layer = {name: torch.stack(each) for name, each in values.items()}
        weights = self._layer_weights(torch.stack(list(by_layer.values())).sum(0))
        return {name: self.weight * (weights * each).sum() for name, each in by_layer.items()}

    def _layer_weights(self, losses: Tensor) -> Tensor:
        if isinstance(self.balance, tuple):
            return losses.new_tensor(self.balance)
        weights = torch.ones_like(losses)
        if self.balance == "loss":
            losses = losses.detach()
            # all of them 0: nothing is left to weigh, and 0 / 0 is avoided
            weights = torch.where(losses.sum() > 0, len(losses) * losses / losses.sum(), weights)
            self._weights = weights
        return weights

    def measures(self) -> dict[str, Tensor]:
        """Return the weights of the layers if they follow the losses: ``weight_stage1``, ..."""
        if self._weights is None:
            return {}
        named = zip(self.layers, self._weights, strict=True)
        return {f"weight_{path}": weight for (path, _), weight in named}


def _check_balance(balance: str | Sequence[float], layers: int) -> str | tuple[float, ...]:
    if isinstance(balance, str):
        if balance not in BALANCES:
            raise ValueError(
                f'balance: {balance!r} came, expected "equal", "loss" or one number per layer'
            )
        return balance
    if len(balance) != layers:
        raise ValueError(f"balance: {len(balance)} numbers came, expected one per layer, {layers}")
    for value in balance:
        check_weight("balance", value)
    return tuple(float(value) for value in balance)
