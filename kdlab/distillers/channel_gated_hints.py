"""Hints through a gate over channels: only those that the teacher's own answer needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.distillers.adapters import adapter, rows_of
from kdlab.distillers.base import LayerDistiller, Layers, Outputs, check_fraction
from kdlab.distillers.connectors import given, pair_shapes
from kdlab.losses import channel_gated_hint_loss, kl_divergence
from kdlab.losses.channel_gates import by_channel
from kdlab.losses.checks import check_count
from kdlab.models import logits_of
from kdlab.models.modes import device_of, inputs_for
from kdlab.models.taps import INPUT, check_path
from kdlab.words import check_known

GATES = ("learned", "random", "constant")
BATCH, RATE, BUDGET_WEIGHT = 64, 0.1, 10.0


class ChannelGatedHints(LayerDistiller):
    """``weight · Σ_layers 1/n · Σ g_c (r(s) − t)²``: a hint on some of the teacher's channels.

    Which ones is learned before the run, on an aim of its own: the layer's channels are multiplied
    by gates, and the gates are trained until the teacher's answers stay what they were, while the
    mean gate is held at ``share``. The most needed channels are then open (1), the others closed
    (0). Trained by the hint itself, a gate would close where the student finds it hard.

    The mean stays over all channels, so the term gets weaker as the share falls. Two controls have
    the same strength: as many channels at random, and all of them times the share.

    Source: Romero et al., 2014, arXiv:1412.6550 (the hint); Liu, Li, Shen, Huang, Yan, Zhang,
    ICCV 2017, arXiv:1708.06519 (a learned gate for each channel, with a budget). Lesson 05.

    Args:
        layers: pairs of layers; any pair of maps, tokens or embeddings that `adapter` can join.
        weight: of the term, at least 0.
        share: of the teacher's channels, above 0 and at most 1; at least one channel is open.
        gate: "learned", "random" or "constant".
        steps: batches on which the gates are trained.

    Raises:
        ValueError: an option out of range; in `prepare`, a teacher's path that ends in ":input".
    """

    in_tournament = False

    def __init__(
        self,
        layers: Layers = "stage2",
        weight: float = 100.0,
        share: float = 0.5,
        gate: str = "learned",
        steps: int = 100,
    ) -> None:
        super().__init__(layers, weight)
        check_known("gate", gate, GATES)
        check_count("steps", steps)
        self.share = check_fraction("share", share)
        self.gate = gate
        self.steps = steps

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Build one regressor per pair, and find each layer's gate."""
        teacher = given(teacher)
        found = pair_shapes(self.layers, student, teacher, train)
        self.regressors = nn.ModuleList(
            adapter(path, mine, other, theirs)
            for (path, other), (mine, theirs) in zip(self.layers, found, strict=True)
        )
        for number, ((_, path), (_, shape)) in enumerate(zip(self.layers, found, strict=True)):
            channels = shape[1] if len(shape) == 4 else shape[-1]
            rows = path in rows_of(teacher, [path], train)
            self.register_buffer(f"gate_{number}", self._find(teacher, path, channels, train, rows))

    def _find(
        self, teacher: nn.Module, path: str, channels: int, train: Split, rows: bool
    ) -> Tensor:
        if self.gate == "constant":
            return torch.full((channels,), self.share)
        if self.gate == "random":
            scores = torch.rand(channels)
        else:
            scores = needed_channels(
                teacher, path, channels, train.x, self.share, self.steps, rows=rows
            )
        best = scores.topk(max(1, round(self.share * channels))).indices
        return torch.zeros(channels).index_fill(0, best.cpu(), 1.0)

    @property
    def gates(self) -> Sequence[Tensor]:
        """The gate of each pair of layers, ``[c]``, after `prepare`."""
        return [getattr(self, f"gate_{number}") for number in range(len(self.layers))]

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the term ``hint``."""
        pairs = self.pairs(student, teacher)
        values = [
            channel_gated_hint_loss(regressor(mine), theirs, gate)
            for regressor, gate, (mine, theirs) in zip(
                self.regressors, self.gates, pairs, strict=True
            )
        ]
        return {"hint": self.weight * torch.stack(values).sum()}


def needed_channels(
    teacher: nn.Module,
    path: str,
    channels: int,
    images: Tensor,
    share: float,
    steps: int,
    *,
    rows: bool = False,
) -> Tensor:
    """Return a score per channel ``[channels]``: how much the teacher's answers need it.

    With ``rows`` the layer gives ``[B, channels, l]``.

    Minimises KL(answer ‖ answer with gated channels) + 10 · (mean gate − share)². Random batches
    from PyTorch's global generator; the teacher is not changed.

    Raises:
        ValueError: a path that the teacher does not have, one that ends in ":input", or a layer
            that gives more than one tensor.
    """
    if path.endswith(INPUT):
        raise ValueError(
            f"layers: the teacher's {path!r} names an input, expected a layer whose output can be "
            "gated; take the layer before it"
        )
    layer = check_path(teacher, path)
    scores = torch.zeros(channels, device=device_of(teacher), requires_grad=True)
    optimizer = torch.optim.Adam([scores], lr=RATE)

    def gated(module: nn.Module, args: object, output: Tensor) -> Tensor:
        if not isinstance(output, Tensor):
            raise ValueError(
                f"layers: the teacher's {path!r} gives a {type(output).__name__}, expected one "
                "tensor, whose channels can be gated; take a layer inside it or after it"
            )
        gate = scores.sigmoid()
        if rows:
            return output * gate.unsqueeze(-1).to(output.dtype)
        return output * by_channel(gate, output).to(output.dtype)

    for _ in range(steps):
        chosen = torch.randint(len(images), (min(BATCH, len(images)),))
        batch = inputs_for(teacher, images[chosen])
        wanted = F.log_softmax(logits_of(teacher(batch), "teacher").float(), dim=-1)
        with torch.enable_grad():
            handle = layer.register_forward_hook(gated)
            try:
                answer = F.log_softmax(logits_of(teacher(batch), "teacher").float(), dim=-1)
            finally:
                handle.remove()
            gap = scores.sigmoid().mean() - share
            loss = kl_divergence(wanted, answer).mean() + BUDGET_WEIGHT * gap.square()
            # not backward(): the teacher's own weights must get no gradient
            (scores.grad,) = torch.autograd.grad(loss, scores)
        optimizer.step()
    return scores.detach()
