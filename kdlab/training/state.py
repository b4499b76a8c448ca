"""How far a run has come: everything that must survive an interrupt, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.training.checkpoint import check_writable, load_checkpoint, try_to_save
from kdlab.training.distributed import ALONE, Alone
from kdlab.training.history import History
from kdlab.training.step import add_up

RESERVED = {"epoch", "loss", "lr", "val_accuracy", "val_nll"}


class State:
    """Epoch, step, weights, optimizer, random numbers and history of one run.

    ``identity`` says which run this is; a checkpoint of another is refused. Of several ``ranks``
    the first writes and reads; all stand at the same place.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        identity: dict[str, Any],
        path: str | os.PathLike[str] | None,
        ranks: Alone = ALONE,
    ) -> None:
        self.modules = modules
        self.optimizer = optimizer
        self.identity = identity
        self.path = Path(path) if path else None
        self.ranks = ranks
        self.epoch = 0
        self.step = 0
        self.totals: dict[str, Tensor] = {}
        self.measured: dict[str, Tensor] = {}
        self.history = History()

    def add(self, terms: dict[str, Tensor], measured: dict[str, Tensor]) -> None:
        """Count one finished step; the sums stay on the device until the epoch ends."""
        if taken := (RESERVED | terms.keys()) & measured.keys() or RESERVED & terms.keys():
            raise ValueError(
                f"terms: {', '.join(taken)} is a column of the history; rename the term or measure"
            )
        self.step += 1
        add_up(self.totals, terms)
        add_up(self.measured, measured)

    def end_epoch(self) -> dict[str, float]:
        """Return the epoch's mean of each term, of their sum and of what was measured besides.

        The next epoch begins.
        """
        terms, measured = (
            {name: float(total) / self.step for name, total in sums.items()}
            for sums in (self.totals, self.measured)
        )
        row = {"epoch": self.epoch, "loss": sum(terms.values()), **terms, **measured}
        self.epoch, self.step, self.totals, self.measured = self.epoch + 1, 0, {}, {}
        return row

    def save(self) -> bool:
        """Write the checkpoint, if there is a path for it; say whether it is written.

        Raises:
            ValueError: the ranks have come apart, so that what one of them has is not all.
        """
        self.ranks.check_alike(self.modules)
        if self.path is None or self.ranks.rank > 0:
            return False
        device = self._device
        state = {
            "identity": self.identity,
            "epoch": self.epoch,
            "step": self.step,
            "totals": self.totals,
            "measured": self.measured,
            "history": self.history.rows,
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }
        return try_to_save(self.path, state)

    def resume(self) -> None:
        """Go to where the checkpoint stands, if there is one."""
        state = self.ranks.from_first(self._load)
        if state is None:
            return
        self.epoch, self.step = state["epoch"], state["step"]
        self.totals, self.measured = (
            {name: total.to(self._device) for name, total in state[sums].items()}
            for sums in ("totals", "measured")
        )
        self.history.rows[:] = state["history"]
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        if state["rng_cuda"] is not None and self._device.type == "cuda":
            torch.cuda.set_rng_state(state["rng_cuda"], self._device)

    def _load(self) -> dict[str, Any] | None:
        if self.path is None:
            return None
        check_writable(self.path)
        return load_checkpoint(self.path, self.identity) if self.path.exists() else None

    @property
    def _device(self) -> torch.device:
        return next(self.modules["model"].parameters()).device
