"""Make the stored results that lessons show: a CSV and a card each in data/results/.

python tools/reference_results.py [NAME ...]
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd

from kdlab import datasets, training
from kdlab.distillers import available
from kdlab.training.device import describe
from kdlab.training.reference import best_learning_rates
from kdlab.training.teachers import load_teacher

FOLDER = Path(__file__).parents[1] / "data" / "results"
IMAGES, BUDGET = 1000, {"epochs": 20, "batch_size": 32, "device": "cpu"}  # those of lesson 01
RATES = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0)
ALPHAS = (0.3, 0.6, 0.9, 1.0)


def run(settings: dict[str, Any], seeds: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Train the student of lesson 01 in each setting."""
    data = datasets.load("glyphs")
    teacher, card = load_teacher(data)
    few = data.subset(IMAGES)
    runs = training.study(
        "cnn_tiny", few, settings, seeds=seeds, teacher=teacher, progress=True, **BUDGET
    )
    facts = {"student": "cnn_tiny", "images": IMAGES, "seeds": seeds, "teacher": card["sha256"]}
    return runs, facts | BUDGET


def learning_rates() -> tuple[pd.DataFrame, dict[str, Any]]:
    """Every method of lesson 01 at every learning rate, for a choice on the validation images."""
    methods = {"labels": None} | {name: method() for name, method in available().items()}
    settings = {
        f"{name} {lr}": training.Setting(method, options={"lr": lr})
        for name, method in methods.items()
        for lr in RATES
    }
    runs, card = run(settings, seeds=3)
    runs[["method", "lr"]] = runs["setting"].str.split(expand=True)
    return runs[["method", "lr", "seed", "val_accuracy"]], card


def alpha_temperature() -> tuple[pd.DataFrame, dict[str, Any]]:
    """Soft targets over a grid of α and T; α = 0 is the labels alone, at their own best rate."""
    best = best_learning_rates()
    method = available()["soft_targets"]
    settings = {"1.0 0.0": training.Setting(options={"lr": best["labels"]})} | {
        f"{t} {a}": training.Setting(
            method(temperature=t, alpha=a), options={"lr": best["soft_targets"]}
        )
        for t in TEMPERATURES
        for a in ALPHAS
    }
    runs, card = run(settings, seeds=5)
    runs[["temperature", "alpha"]] = runs["setting"].str.split(expand=True).astype(float)
    return runs[["temperature", "alpha", "seed", "val_accuracy", "accuracy"]], card


RESULTS = {"learning_rates": learning_rates, "alpha_temperature": alpha_temperature}


def main(names: list[str]) -> None:
    """Make the named results, or all, in the order in which they need one another."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names or RESULTS:
        started = time.perf_counter()
        table, card = RESULTS[name]()
        table.round(4).to_csv(FOLDER / f"{name}.csv", index=False)
        card |= {"made_on": describe(), "seconds": round(time.perf_counter() - started)}
        (FOLDER / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        print(f"{name}: {len(table)} runs in {card['seconds']} s")


if __name__ == "__main__":
    main(sys.argv[1:])
