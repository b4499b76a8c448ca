"""Make the stored results of lesson 04: a CSV and a card each in data/results/.

python tools/depth_results.py [NAME ...]

The texts depend on the versions of the packages that are installed; the cards list them.
"""

import sys
from itertools import product
from typing import Any

import pandas as pd
import torch
from reference_results import main
from torch import nn

from kdlab import datasets, training
from kdlab.datasets import Data
from kdlab.distillers import AttentionLinks, Distiller, Labels, SoftTargets
from kdlab.metrics import accuracy
from kdlab.metrics.exits import exit_accuracies
from kdlab.models import with_exits
from kdlab.models.modes import counting_flops
from kdlab.training.depth_methods import (
    BUDGET,
    DEEP_STUDENT,
    EXITS,
    INNER,
    LSTM,
    METHODS,
    STUDENT,
    WITHOUT_WEIGHT,
    attention_setting,
    tuned_attention,
)
from kdlab.training.reference import best_learning_rates
from kdlab.training.study import Student, build_student
from kdlab.training.teachers import load_teacher

SAMPLES = 1000
RATES, WEIGHTS = (0.003, 0.01), (1.0, 10.0)
PLACES: dict[str, tuple[Student, tuple[str, ...], dict[str, Any]]] = {
    "docstrings": (DEEP_STUDENT, INNER, BUDGET | {"device": "cpu"}),
    "glyphs": (
        "cnn_tiny",
        ("stage1", "stage2"),
        {"epochs": 20, "batch_size": 32, "device": "cpu"},
    ),
}


def texts(
    settings: dict[str, training.Setting], seeds: int, dataset: str = "docstrings"
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Train the student of lesson 04 on ``SAMPLES`` texts in each setting."""
    data = datasets.load(dataset)
    teacher, card = load_teacher(data)
    few = data.subset(SAMPLES)
    runs = training.study(
        STUDENT, few, settings, seeds=seeds, teacher=teacher, progress=True, device="cpu", **BUDGET
    )
    facts = {"student": STUDENT, "lstm": LSTM, "texts": SAMPLES, "seeds": seeds}
    facts |= {"teacher": card["sha256"], "teacher_scores": card["scores"]}
    return runs, facts | BUDGET | {"data": data.card}


def attention_choice() -> tuple[pd.DataFrame, dict[str, Any]]:
    """Rates for labels and soft targets, then weights for the rest, to choose on validation texts.

    Everybody has as many tries: two. What is added to soft targets keeps their rate.
    """
    first, _ = choose({name: list(product((0.0,), RATES)) for name in WITHOUT_WEIGHT})
    means = first.groupby(["method", "lr"])["val_accuracy"].mean()
    bases = {name: means[base(name)].idxmax() for name in METHODS if name not in WITHOUT_WEIGHT}
    second, card = choose({name: list(product(WEIGHTS, (lr,))) for name, lr in bases.items()})
    return pd.concat([first, second]), card


def choose(places: dict[str, list[tuple[float, float]]]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Every method at its places, weight and rate, two seeds."""
    settings = {
        f"{method}|{weight}|{lr}": attention_setting(method, weight, lr)
        for method, grid in places.items()
        for weight, lr in grid
    }
    runs, card = texts(settings, seeds=2)
    runs[["method", "weight", "lr"]] = runs["setting"].str.split("|", expand=True)
    numbers = runs.astype({"weight": float, "lr": float})
    return numbers[["method", "weight", "lr", "seed", "val_accuracy"]], card


def base(method: str) -> str:
    """The soft targets to which a method is added."""
    return "LSTM, soft targets" if method.startswith("LSTM") else "soft targets"


def attention_methods(dataset: str = "docstrings") -> tuple[pd.DataFrame, dict[str, Any]]:
    """Every method at its best place, five seeds; another data set keeps the places."""
    runs, card = texts(tuned_attention(), seeds=5, dataset=dataset)
    runs = runs.rename(columns={"setting": "method"})
    return runs[["method", "seed", "accuracy", "agreement", "val_accuracy"]], card


def best_rates(dataset: str) -> tuple[float, float]:
    """The learning rates that were best on validation data for labels and for soft targets."""
    if dataset == "glyphs":
        rates = best_learning_rates()
        return rates["labels"], rates["soft_targets"]
    tuned = tuned_attention()
    return tuned["labels"].options["lr"], tuned["soft targets"].options["lr"]


def exits() -> tuple[pd.DataFrame, dict[str, Any]]:
    """Each exit's accuracy and cost, for texts and for images, five seeds."""
    rows, teachers, rates = [], {}, {}
    for name, (student, layers, budget) in PLACES.items():
        data = datasets.load(name)
        teacher, card = load_teacher(data)
        teachers[name], rates[name] = card["sha256"], best_rates(name)
        few = data.subset(SAMPLES)
        methods = {"labels": Labels(), "soft targets": SoftTargets()}
        methods |= {method: make(layers) for method, make in EXITS.items()}
        if name == "glyphs":
            methods["learned links"] = SoftTargets() + AttentionLinks()
        for (method, distiller), seed in product(methods.items(), range(5)):
            model, asked = build_student(student, few, seed), distiller.needs_teacher
            options = budget | {"lr": rates[name][asked], "validate": False}
            shown = teacher if asked else None
            training.fit(model, few, distiller, teacher=shown, seed=seed, **options)
            place = {"data": name, "method": method, "seed": seed}
            measured = enumerate(measure(model, distiller, few), start=1)
            rows += [place | {"exit": n, "cost": c, "accuracy": a} for n, (c, a) in measured]
    card = {"places": PLACES, "rates": rates, "samples": SAMPLES, "teachers": teachers}
    return pd.DataFrame(rows), card


def measure(model: nn.Module, distiller: Distiller, data: Data) -> list[tuple[int, float]]:
    """Cost in FLOPs and accuracy of each exit; of the model alone if the method has no heads."""
    parts = [part.exits for part in distiller.modules() if hasattr(part, "exits")]
    if parts:
        model = with_exits(model, parts[0])
        logits = training.predict(model, data.test.x)
        return list(
            zip(model.costs(data.test.x), exit_accuracies(logits, data.test.y), strict=True)
        )
    with counting_flops() as counter, torch.no_grad():
        model(data.test.x[:1])
    right = accuracy(training.predict(model, data.test.x), data.test.y)
    return [(counter.get_total_flops(), right)]


RESULTS = {
    "attention_choice": attention_choice,
    "attention_methods": attention_methods,
    "exits": exits,
}

if __name__ == "__main__":
    main(sys.argv[1:], RESULTS)
