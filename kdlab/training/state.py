"""How far a run has come: everything that must survive an interrupt, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.training.checkpoint import (
    check_storable,
    check_writable,
    load_checkpoint,
    try_to_save,
)
from kdlab.training.distributed import ALONE, Alone
from kdlab.training.history import History
from kdlab.training.identity import unsaved_buffers
from kdlab.training.step import add_up

RESERVED = {"epoch", "loss", "lr", "val_accuracy", "val_nll", "val_mse", "val_r2"}


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
            "modules": {name: state_of(module) for name, module in self.modules.items()},
            "buffers": {name: unsaved_buffers(module) for name, module in self.modules.items()},
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }
        return try_to_save(self.path, state)

    def resume(self) -> None:
        """Go to where the checkpoint stands, if there is one.

        Raises:
            ValueError: the file is damaged, another run's or another version's, or the modules
                hold what no checkpoint can give back. Nothing is changed then.
        """
        state = self.ranks.from_first(self._load)
        if state is None:
            return
        self._check_fits(state)
        rates = [group["lr"] for group in self.optimizer.param_groups]
        for name, module in self.modules.items():
            restore(module, state["modules"][name], state["buffers"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # a tensor where this run is compiled, whatever that one was
        self.epoch, self.step = state["epoch"], state["step"]
        self.totals, self.measured = (
            {name: total.to(self._device) for name, total in state[sums].items()}
            for sums in ("totals", "measured")
        )
        self.history.rows[:] = state["history"]
        torch.set_rng_state(state["rng"])
        if state["rng_cuda"] is not None and self._device.type == "cuda":
            torch.cuda.set_rng_state(state["rng_cuda"], self._device)

    def _check_fits(self, state: dict[str, Any]) -> None:
        """Raise ValueError, before anything is changed, if a state lacks what a module has."""
        for name, module in self.modules.items():
            if lacking := state_of(module).keys() - state["modules"].get(name, {}).keys():
                raise ValueError(
                    f"checkpoint: it lacks {min(lacking)!r} of the {name}, expected the state of "
                    "this run; use the same settings to continue, or another path to start anew"
                )

    def _load(self) -> dict[str, Any] | None:
        if self.path is None:
            return None
        check_writable(self.path)
        check_storable({name: state_of(module) for name, module in self.modules.items()})
        return load_checkpoint(self.path, self.identity) if self.path.exists() else None

    @property
    def _device(self) -> torch.device:
        return next(self.modules["model"].parameters()).device


def state_of(module: nn.Module) -> dict[str, Any]:
    """Return a module's state under the names that it has when it is not compiled."""
    return {key.replace("_orig_mod.", ""): value for key, value in module.state_dict().items()}


def restore(module: nn.Module, state: Mapping[str, Any], buffers: Mapping[str, Any]) -> None:
    """Load a state from `state_of`, and the buffers that are no part of it, in place."""
    given = module.state_dict()  # not a new dict: layers look for their version in its _metadata
    for key in given:
        given[key] = state[key.replace("_orig_mod.", "")]
    module.load_state_dict(given)
    for path, part in module.named_modules():
        for key in part._non_persistent_buffers_set:
            name = (f"{path}.{key}" if path else key).replace("_orig_mod.", "")
            now, then = part._buffers.get(key), buffers.get(name)
            if now is None or then is None or now.shape != then.shape:
                part._buffers[key] = then if now is None or then is None else then.to(now.device)
            else:
                now.copy_(then)
