"""Stored results of comparisons that take too long for a lesson, with how they were made."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from kdlab.files import project_folder


def reference_results(name: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return a table of stored runs and its card (settings, hardware, versions).

    Raises:
        FileNotFoundError: no such results here; the message says how to make them.
    """
    root = project_folder()
    path = root / "data" / "results" / f"{name}.csv" if root else None
    if path is None or not path.exists():
        raise FileNotFoundError(
            f"name: there are no stored results {name!r}; in a checkout, make results makes them"
        )
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return pd.read_csv(path), card


def best_learning_rates() -> dict[str, float]:
    """Return for each method of lesson 01 the learning rate that was best on validation images."""
    table, _ = reference_results("learning_rates")
    means = table.groupby(["method", "lr"])["val_accuracy"].mean()
    return {method: float(means[method].idxmax()) for method in table["method"].unique()}
