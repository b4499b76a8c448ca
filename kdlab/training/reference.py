"""Stored results of comparisons that take too long for a lesson, with how they were made."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from kdlab.distillers import Labels, SoftTargets, build
from kdlab.files import project_folder
from kdlab.training.study import Setting

BASES = {"labels": Labels, "soft targets": SoftTargets}  # what a method of the inside is added to


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


def tuned_methods(base: str = "labels") -> dict[str, Setting]:
    """Return every feature, relation, gradient and weight method, added to ``base``.

    Each has the factor on its default weight and the learning rate that were best on validation
    images in a stored sweep. The base alone comes first, at its own best learning rate.

    Args:
        base: "labels" or "soft targets".
    """
    table, _ = reference_results("feature_methods")
    alone = {"labels": "labels", "soft targets": "soft_targets"}[base]
    settings = {base: Setting(BASES[base](), options={"lr": best_learning_rates()[alone]})}
    means = table[table["base"] == base].groupby(["method", "factor", "lr"])["val_accuracy"].mean()
    for method in means.index.unique("method"):
        factor, lr = means[method].idxmax()
        settings[method.replace("_", " ")] = Setting(
            BASES[base]() + factor * build(method), options={"lr": lr}
        )
    return settings
