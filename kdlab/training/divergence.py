"""A run whose numbers are no longer finite is stopped, and the last good weights come back."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Diverged(ValueError):
    """Training has come to a loss or a weight that is NaN or infinite."""


class LastGood:
    """What the modules of a run held after the last epoch in which everything was finite.

    Costs a copy of the weights, and one look at them in each epoch.

    Args:
        modules: whose parameters and buffers are kept. What is not finite from the start, such as
            a mask of minus infinities, may stay so.
        lr: for the message.
        epoch: from which the run goes on.
    """

    def __init__(self, modules: Mapping[str, nn.Module], lr: float, epoch: int = 0) -> None:
        self.lr = lr
        self.epoch = epoch
        self.tensors = {
            f"{part}: {name}": tensor
            for part, module in modules.items()
            for own in (module.named_parameters, module.named_buffers)
            for name, tensor in own()
        }
        self.spoilt = set(self._not_finite())
        self.values = self._copy()

    def _not_finite(self) -> list[str]:
        floating = [name for name, tensor in self.tensors.items() if tensor.is_floating_point()]
        if not floating:
            return []
        flags = torch.stack([self.tensors[name].detach().isfinite().all() for name in floating])
        return [name for name, ok in zip(floating, flags.tolist(), strict=True) if not ok]

    def _copy(self) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in self.tensors.values()]

    @torch.no_grad()
    def check(self, terms: Mapping[str, float], epoch: int) -> None:
        """Keep what there is now, after ``epoch`` epochs; or restore what was kept, and raise.

        Args:
            terms: the mean of each term since the last look.
            epoch: how many are finished, the one that was looked at among them.

        Raises:
            Diverged: names the epoch, the term and the likely cause.
        """
        bad = [f"the term {name!r} became {x}" for name, x in terms.items() if not math.isfinite(x)]
        weights = [name for name in self._not_finite() if name not in self.spoilt]
        if not bad and not weights:
            self.values, self.epoch = self._copy(), epoch
            return
        if not bad:
            bad = [f"{weights[0]} holds NaN or infinity"]
        for tensor, value in zip(self.tensors.values(), self.values, strict=True):
            tensor.copy_(value)
        state = f"after epoch {self.epoch}" if self.epoch else "before the first epoch"
        raise Diverged(
            f"lr: got {self.lr:g}, and in epoch {epoch} {bad[0]}, expected finite numbers. Data, "
            "teacher and the first step were finite, so the likely cause is a learning rate, or a "
            "weight of that term, that is too large: try a tenth of it, or clip=1.0. The model "
            f"has the weights that it had {state}"
        )
