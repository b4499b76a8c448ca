"""Make the stored results that lessons show: a CSV and a card each in data/results/.

python tools/reference_results.py [NAME ...]
python tools/reference_results.py --only METHOD

With --only, one method is added to the stored tables that compare all of its kind; the rows of the
others stay as they are.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from kdlab import datasets, training
from kdlab.distillers import Distiller, Labels, available, contestants
from kdlab.training.device import describe
from kdlab.training.reference import (
    BASES,
    best_learning_rates,
    reference_results,
    tuned_methods,
)
from kdlab.training.slope_methods import (
    BATCH,
    METHODS,
    RELU,
    STEPS,
    STUDENT,
    slope_setting,
    tuned_slopes,
)
from kdlab.training.teachers import load_teacher
from kdlab.words import check_known

FOLDER = Path(__file__).parents[1] / "data" / "results"
IMAGES, BUDGET = 1000, {"epochs": 20, "batch_size": 32, "device": "cpu"}  # those of lesson 01
RATES = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0)
ALPHAS = (0.3, 0.6, 0.9, 1.0)
FACTORS = (0.01, 0.1, 1.0, 10.0)  # times a method's default weight
SLOPE_IMAGES, SLOPE_RATES = (100, 300, 1000), (0.1, 0.2)
STRENGTHS = {  # lesson 03: weights of slopes, standard deviations of noise
    "noise": (0.15, 0.3, 0.6),
    "noise, same time": (0.3, 0.6, 1.0),
    "Jacobian": (3.0, 10.0, 30.0),
    "Sobolev": (3.0, 10.0, 30.0),
    "gradient attention": (0.3, 1.0, 3.0),
}
FEATURE_RATES = (0.1, 0.3)

Methods = Mapping[str, type[Distiller]]  # by name, as `contestants` gives them


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


def learning_rates(methods: Methods | None = None) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Every method of lesson 01 at every learning rate, for a choice on the validation images."""
    if methods is None:
        methods = {"labels": Labels} | contestants(complete=True)
    settings = {
        f"{name} {lr}": training.Setting(method(), options={"lr": lr})
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


def feature_methods(methods: Methods | None = None) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Every method of lessons 02 and 03 at several weights and learning rates.

    On top of the soft targets the weight stays as found on top of the labels; only the rate is
    searched again.
    """
    methods = methods or contestants(complete=False)

    def sweep(
        base: str, grid: dict[str, list[tuple[float, float]]]
    ) -> tuple[pd.DataFrame, dict[str, Any]]:
        settings = {
            f"{base}|{name}|{factor}|{lr}": training.Setting(
                BASES[base]() + factor * methods[name](), options={"lr": lr}
            )
            for name, places in grid.items()
            for factor, lr in places
        }
        runs, card = run(settings, seeds=2)
        runs[["base", "method", "factor", "lr"]] = runs["setting"].str.split("|", expand=True)
        return runs, card

    labels, card = sweep(
        "labels", {name: list(product(FACTORS, FEATURE_RATES)) for name in methods}
    )
    means = labels.groupby(["method", "factor", "lr"])["val_accuracy"].mean()
    grid = {
        name: [(float(means[name].idxmax()[0]), lr) for lr in FEATURE_RATES] for name in methods
    }
    runs = pd.concat([labels, sweep("soft targets", grid)[0]])
    return runs[["base", "method", "factor", "lr", "seed", "val_accuracy"]], card


def tournament(methods: Methods | None = None) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Every method at its own best setting on both bases, five seeds."""
    settings = {
        f"{base}|{name}": setting
        for base in BASES
        for name, setting in tuned_methods(base).items()
        if methods is None or name.replace(" ", "_") in methods
    }
    runs, card = run(settings, seeds=5)
    runs[["base", "method"]] = runs["setting"].str.split("|", expand=True)
    columns = ["base", "method", "seed", "accuracy", "agreement", "val_accuracy"]
    return runs[columns], card


def layer_pairs() -> tuple[pd.DataFrame, dict[str, Any]]:
    """Hints between every stage of the student and every stage of the teacher, each pair tuned."""
    stages = ("stage1", "stage2", "stage3")

    def setting(mine: str, theirs: str, factor: float, lr: float) -> training.Setting:
        method = Labels() + factor * available()["hints"](layers={mine: theirs})
        return training.Setting(method, options={"lr": lr})

    grid = list(product(stages, stages, FACTORS[:3], FEATURE_RATES))
    runs, _ = run({"|".join(map(str, place)): setting(*place) for place in grid}, seeds=2)
    means = runs.groupby("setting")["val_accuracy"].mean()
    best = {
        (mine, theirs): max(
            (place for place in grid if place[:2] == (mine, theirs)),
            key=lambda place: means["|".join(map(str, place))],
        )
        for mine, theirs in product(stages, stages)
    }
    runs, card = run({"|".join(pair): setting(*place) for pair, place in best.items()}, seeds=5)
    runs[["student", "teacher"]] = runs["setting"].str.split("|", expand=True)
    card["places"] = {" <- ".join(pair): place[2:] for pair, place in best.items()}
    return runs[["student", "teacher", "seed", "accuracy", "val_accuracy"]], card


def other_kind() -> tuple[pd.DataFrame, dict[str, Any]]:
    """A student without convolutions under the convolutional teacher, each method tuned."""
    student, pair = ("mlp", {"hidden": (64, 64)}), {"layers.1": "pool"}
    alone = {"labels": Labels(), "soft targets": BASES["soft targets"]()}
    inside = ("hints", "similarity_preserving", "relational", "probabilistic")

    def setting(name: str, factor: float, lr: float) -> training.Setting:
        method = alone.get(name) or Labels() + factor * available()[name](layers=pair)
        return training.Setting(method, student=student, options={"lr": lr})

    rates = (0.003, 0.01, 0.03)
    grid = [*product(alone, [1.0], rates), *product(inside, FACTORS[:3], rates)]
    runs, _ = run({"|".join(map(str, place)): setting(*place) for place in grid}, seeds=2)
    means = runs.groupby("setting")["val_accuracy"].mean()
    best = {
        name: max(
            (place for place in grid if place[0] == name),
            key=lambda place: means["|".join(map(str, place))],
        )
        for name in (*alone, *inside)
    }
    runs, card = run({name: setting(*place) for name, place in best.items()}, seeds=5)
    runs = runs.rename(columns={"setting": "method"})
    card |= {"student": student, "places": {name: place[1:] for name, place in best.items()}}
    return runs[["method", "seed", "accuracy", "val_accuracy"]], card


def slopes(
    settings: dict[str, training.Setting], images: int, seeds: int
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Train the student of lesson 03 on ``images`` glyphs in each setting."""
    data = datasets.load("glyphs")
    teacher, card = load_teacher(data)
    few = data.subset(images)
    budget = {"batch_size": BATCH, "device": "cpu"}
    runs = training.study(
        STUDENT, few, settings, seeds=seeds, teacher=teacher, progress=True, **budget
    )
    facts = {"student": STUDENT, "seeds": seeds, "teacher": card["sha256"], "steps": STEPS}
    return runs, facts | budget


def gradient_choice() -> tuple[pd.DataFrame, dict[str, Any]]:
    """The methods of lesson 03 at several strengths and rates, to choose on validation images."""
    places = {
        method: list(product(STRENGTHS.get(method, (0.0,)), SLOPE_RATES)) for method in METHODS
    }
    settings = {
        f"{method}|{strength}|{lr}": slope_setting(method, strength, lr, SLOPE_IMAGES[1])
        for method, grid in places.items()
        for strength, lr in grid
    }
    runs, card = slopes(settings, SLOPE_IMAGES[1], seeds=2)
    runs[["method", "strength", "lr"]] = runs["setting"].str.split("|", expand=True)
    return runs[["method", "strength", "lr", "seed", "val_accuracy"]], card


def gradient_methods() -> tuple[pd.DataFrame, dict[str, Any]]:
    """The methods of lesson 03, each at its best place, on few and on more images.

    Two of them are also there with a ReLU student, at the same place.
    """
    tables = []
    for images in SLOPE_IMAGES:
        settings = tuned_slopes(images)
        relu = {f"{name}, ReLU": settings[name] for name in ("soft targets", "Sobolev")}
        settings |= {name: replace(setting, student=RELU) for name, setting in relu.items()}
        runs, card = slopes(settings, images, seeds=5)
        tables.append(runs.assign(images=images))
    runs = pd.concat(tables).rename(columns={"setting": "method"})
    return runs[["images", "method", "seed", "accuracy", "agreement", "val_accuracy"]], card


RESULTS = {
    "learning_rates": learning_rates,
    "alpha_temperature": alpha_temperature,
    "feature_methods": feature_methods,
    "tournament": tournament,
    "layer_pairs": layer_pairs,
    "other_kind": other_kind,
    "gradient_choice": gradient_choice,
    "gradient_methods": gradient_methods,
}


OF_ALL_METHODS = {True: ("learning_rates",), False: ("feature_methods", "tournament")}  # complete?
Result = Callable[..., tuple[pd.DataFrame, dict[str, Any]]]


def main(names: list[str], results: dict[str, Result] = RESULTS) -> None:
    """Make the named results, or all, in the order in which they need one another."""
    for name in names or results:
        started = time.perf_counter()
        table, card = results[name]()
        store(name, table, card | made_since(started))
        print(f"{name}: {len(table)} runs in {time.perf_counter() - started:.0f} s")


def add(method: str) -> None:
    """Make the runs of one method, and put them into the stored tables in place of its old ones."""
    known = contestants(complete=True) | contestants(complete=False)
    check_known("method", method, known)
    for name in OF_ALL_METHODS[known[method].complete]:
        started = time.perf_counter()
        rows, _ = RESULTS[name]({method: known[method]})
        stored, card = reference_results(name)
        others = stored[~stored["method"].isin(rows["method"])]
        added = card.get("added", {}) | {method: made_since(started)}  # perhaps another machine
        store(name, pd.concat([others, rows]), card | {"added": added})
        print(f"{name}: {len(rows)} runs in {time.perf_counter() - started:.0f} s")


def made_since(started: float) -> dict[str, Any]:
    """Where and how fast something was made."""
    return {"made_on": describe(), "seconds": round(time.perf_counter() - started)}


def store(name: str, table: pd.DataFrame, card: dict[str, Any]) -> None:
    """Write a table and its card."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    table.round(4).to_csv(FOLDER / f"{name}.csv", index=False)
    (FOLDER / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="; ".join(RESULTS))
    parser.add_argument("--only", metavar="METHOD", help="add this method to the tables of all")
    given = parser.parse_args()
    add(given.only) if given.only else main(given.names)
