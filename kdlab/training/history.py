"""What a training run leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from torch import nn


@dataclass
class History:
    """One row per finished epoch: ``epoch``, ``lr``, ``loss``, each term by name, ``val_…``."""

    rows: list[dict[str, float]] = field(default_factory=list)

    def append(self, **row: float) -> None:
        """Add the row of one finished epoch."""
        self.rows.append(row)

    @property
    def last(self) -> dict[str, float]:
        """Return the row of the last finished epoch, empty before the first has ended."""
        return self.rows[-1] if self.rows else {}

    def frame(self) -> pd.DataFrame:
        """Return the rows as a table."""
        return pd.DataFrame(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass
class Run:
    """The result of ``fit``.

    Attributes:
        model: the trained model, in eval mode, on the device that it came from.
        history: a row per finished epoch; the last row counts, never the best.
        interrupted: True when the reader stopped it; the model is usable all the same.
        steps: optimizer steps made in this call.
        seconds: time spent in those steps, validation and set-up excluded.
        samples_per_second: training images per second over those steps.
        facts: device, precision, batch size and what else belongs beside a number.
    """

    model: nn.Module
    history: History
    interrupted: bool
    steps: int
    seconds: float
    samples_per_second: float
    facts: dict[str, Any]
