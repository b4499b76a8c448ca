"""Make the stored results of lesson 05: gates against their controls, a CSV and a card.

python tools/gate_results.py [NAME ...]
"""

import math
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from reference_results import main
from torch import nn

from kdlab import datasets, models, training
from kdlab.datasets import Data, Split
from kdlab.distillers import Distiller, Labels, SoftTargets
from kdlab.distillers.gated import Gated, LearnedGate, controls
from kdlab.metrics import accuracy, gate_report_of

STUDENT, IMAGES, SEEDS = "cnn_tiny", 1000, 5
BUDGET = {"epochs": 20, "batch_size": 32, "device": "cpu"}  # those of lesson 02
WRONG = 6  # classes whose labels the teacher learned wrong
RATES = (0.1, 0.2, 0.4)
GATES = ("correct", "better", "wsld", "confidence", "wttm", "median", "rising")
ON_SWAPPED = ("correct", "better", "confidence", "learned")
# These judge an image by the teacher and the label alone, so always in the same way; their random
# control, too, decides once for each image.
STATIC = ("correct", "confidence", "wttm", "learned")


def wrong_teacher(data: Data, swapped: bool) -> nn.Module:
    """Train a teacher that learned some classes wrong.

    Either their labels are shuffled among their images, and it can know no better than that it is
    one of them; or each class bears the name of the next, and it is certain of a wrong answer.
    """
    y = data.train.y.clone()
    hit = (y < WRONG).nonzero().squeeze(1)
    shuffled = y[hit[torch.randperm(len(hit), generator=torch.Generator().manual_seed(0))]]
    y[hit] = (y[hit] + 1) % WRONG if swapped else shuffled
    teacher = models.build_for("cnn_large", data.shape, data.num_classes, seed=0)
    corrupted = replace(data, train=Split(data.train.x, y))
    training.fit(teacher, corrupted, epochs=8, validate=False, device="cpu")
    return teacher


def gated(name: str) -> Gated:
    """The soft targets alone, gated: the labels are added in full."""
    gate = LearnedGate("answer", share=1.0) if name == "learned" else name
    return Gated(SoftTargets(alpha=1.0), gate)


def under_wrong_teacher(
    names: tuple[str, ...], swapped: bool
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Each gate and its controls on glyphs, under a teacher that learned some nonsense."""
    data = datasets.load("glyphs")
    teacher = wrong_teacher(data, swapped)
    answers = training.predict(teacher, data.test.x)
    whole = data.test.y >= WRONG
    runs, card = compare(names, data, teacher)
    scores = {
        "model": "cnn_large",
        "accuracy on them": accuracy(answers[~whole], data.test.y[~whole]),
        "accuracy on the others": accuracy(answers[whole], data.test.y[whole]),
    }
    return runs, card | {"wrong_classes": WRONG, "teacher": scores}


def compare(
    names: tuple[str, ...], data: Data, teacher: nn.Module
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Each gate, its random and its constant control, under one teacher.

    All have the learning rate that is best on validation images for the ungated soft targets; the
    labels alone have their own. The controls have the mean that the gate had in its run of seed 0.
    """
    few = data.subset(IMAGES)
    plain: dict[str, Distiller | None] = {
        "labels": None,
        "soft targets": Labels() + SoftTargets(alpha=1.0),
    }
    tried = training.study(
        STUDENT,
        few,
        {
            f"{name}|{lr}": training.Setting(method, options={"lr": lr})
            for name, method in plain.items()
            for lr in RATES
        },
        seeds=3,
        teacher=teacher,
        **BUDGET,
    )
    means = tried.groupby("setting")["val_accuracy"].mean()
    rate = {name: max(RATES, key=lambda lr, n=name: means[f"{n}|{lr}"]) for name in plain}
    settings = {
        f"{name}|none": training.Setting(method, options={"lr": rate[name]})
        for name, method in plain.items()
    }
    reports = {}
    for name in names:
        method = gated(name)
        first = models.build_for(STUDENT, data.shape, data.num_classes, seed=0)
        run = training.fit(
            first, few, Labels() + method, teacher=teacher, lr=rate["soft targets"], **BUDGET
        )
        rows = run.history.rows
        mean_row = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
        reports[name] = {
            key: None if math.isnan(value) else round(value, 4)
            for key, value in vars(gate_report_of(mean_row)).items()
        }
        both = controls(method, rows, fresh=name not in STATIC)
        for control, chosen in {"none": gated(name), **both}.items():
            settings[f"{name}|{control}"] = training.Setting(
                Labels() + chosen, options={"lr": rate["soft targets"]}
            )
    runs = training.study(
        STUDENT, few, settings, seeds=SEEDS, teacher=teacher, progress=True, **BUDGET
    )
    runs[["gate", "control"]] = runs["setting"].str.split("|", expand=True)
    card = {
        "student": STUDENT,
        "images": IMAGES,
        "seeds": SEEDS,
        "rates": rate,
        "reports": reports,
    }
    columns = ["gate", "control", "seed", "accuracy", "agreement", "val_accuracy"]
    return runs[columns], card | BUDGET


RESULTS = {
    "gates": partial(under_wrong_teacher, GATES, swapped=False),
    "gates_swapped": partial(under_wrong_teacher, ON_SWAPPED, swapped=True),
}

if __name__ == "__main__":
    main(sys.argv[1:], RESULTS)
