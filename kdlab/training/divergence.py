"""A run whose numbers are no longer finite is stopped, and the last good weights come back."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.training.identity import unsaved_buffers
from kdlab.training.state import restore, state_of


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
        self.modules = modules
        self.spoilt = set(self._not_finite())
        self.values = self._copy()

    def _not_finite(self) -> list[str]:
        floating = {  # looked up each time: a forward may put another tensor in a buffer's place
            f"{part}: {name}": tensor
            for part, module in self.modules.items()
            for own in (module.named_parameters, module.named_buffers)
            for name, tensor in own()
            if _can_be_looked_at(tensor)
        }
        if not floating:
            return []
        flags = torch.stack([tensor.detach().isfinite().all() for tensor in floating.values()])
        return [name for name, ok in zip(floating, flags.tolist(), strict=True) if not ok]

    def _copy(self) -> dict[str, list[dict[str, Any]]]:
        return {
            part: [
                {name: copied(value) for name, value in values.items()}
                for values in (state_of(module), unsaved_buffers(module))
            ]
            for part, module in self.modules.items()
        }

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
        for part, module in self.modules.items():
            restore(module, *self.values[part])
        state = f"after epoch {self.epoch}" if self.epoch else "before the first epoch"
        raise Diverged(
            f"lr: got {self.lr:g}, and in epoch {epoch} {bad[0]}, expected finite numbers. Data, "
            "teacher and the first step were finite, so the likely cause is a learning rate, or a "
            "weight of that term, that is too large: try a tenth of it, or clip=1.0. The model "
            f"has the weights that it had {state}"
        )


def copied(value: Any) -> Any:
    """Return a copy of one entry of a state, whatever it is."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    try:
        return copy.deepcopy(value)
    except Exception:  # quantized weights in an object of C++, which do not move
        return value


def _can_be_looked_at(tensor: Tensor) -> bool:
    """Whether PyTorch has `isfinite` for it: not for quantized, sparse, nested and 8-bit ones."""
    plain = type(tensor) in (Tensor, nn.Parameter) and not tensor.is_nested
    dense = plain and tensor.layout == torch.strided
    return dense and tensor.is_floating_point() and tensor.element_size() > 1
