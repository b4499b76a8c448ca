"""Make the stored results of lessons 06 and 07: a CSV and a card each in data/results/.

python tools/compression_results.py [NAME ...]
"""

import copy
import sys
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import joblib
import pandas as pd
import torch
from reference_results import main
from torch import nn

from kdlab import compression, datasets, models, training
from kdlab.compression import Nested, Sandwich
from kdlab.compression.trials import FLOAT, KINDS, prune_and_round
from kdlab.datasets import Data
from kdlab.distillers import Distiller, SoftTargets
from kdlab.metrics import accuracy, cost
from kdlab.models import count_parameters
from kdlab.training.reference import best_learning_rates
from kdlab.training.study import Student, build_student
from kdlab.training.teachers import load_teacher

SEEDS = 5
HALF, QUARTER = (16, 32, 48), (8, 16, 24)  # of the teacher's channels
SIZES: dict[str, Student] = {
    "cnn_tiny": "cnn_tiny",
    "cnn_small": "cnn_small",
    "half of cnn_large": ("cnn", {"widths": HALF}),
    "cnn_large": "cnn_large",
}
BUDGET: dict[str, Any] = {"epochs": 20, "batch_size": 32, "device": "cpu", "validate": False}
SHARES = (0.0, 0.25, 0.5, 0.625, 0.75, 0.875, 0.95)
BITS = (2, 3, 4, 5, 6, 8, FLOAT)
NESTED: Student = ("cnn", {"widths": (16, 32, 64)})

Row = dict[str, Any]


def student_sizes() -> tuple[pd.DataFrame, dict[str, Any]]:
    """Students of four sizes on 1,000 glyphs: labels, and soft targets of three teachers."""
    few, large, facts = _glyphs(1000)
    teachers = {f"taught by {n} images": _weak_teacher(n) for n in (1000, 4000)}
    teachers["taught by 12000 images"] = large
    rates = facts["rates"]
    settings = {
        f"{name}|soft targets|{who}": training.Setting(
            SoftTargets(), student=size, teacher=teacher, options={"lr": rates["soft targets"]}
        )
        for (name, size), (who, teacher) in product(SIZES.items(), teachers.items())
    }
    settings |= {
        f"{name}|labels|none": training.Setting(student=size, options={"lr": rates["labels"]})
        for name, size in SIZES.items()
    }
    runs = training.study("cnn_tiny", few, settings, seeds=SEEDS, progress=True, **BUDGET)
    runs[["student", "method", "teacher"]] = runs["setting"].str.split("|", expand=True)
    sizes = {n: count_parameters(build_student(size, few, 0)) for n, size in SIZES.items()}
    strength = {who: _scores(model, few)["accuracy"] for who, model in teachers.items()}
    runs["parameters"] = runs["student"].map(sizes)
    runs["teacher_accuracy"] = runs["teacher"].map(strength)
    columns = ["student", "parameters", "method", "teacher", "teacher_accuracy"]
    return runs[[*columns, "seed", "accuracy", "val_accuracy"]], facts


def pruning_order() -> tuple[pd.DataFrame, dict[str, Any]]:
    """Four ways to one and the same small network on 2,000 glyphs, with equally many epochs."""
    data, teacher, facts = _glyphs(2000)
    example = data.train.x[:2]
    fit = _fitting(data, teacher, facts["rates"])

    def prune(model: nn.Module, share: float, importance: str = "l1") -> nn.Module:
        return compression.prune_channels(model, example, share, importance=importance)

    def direct(seed: int) -> nn.Module:
        return fit(build_student(("cnn", {"widths": QUARTER}), data, seed), seed, 20)

    def after(seed: int) -> nn.Module:
        student = fit(build_student(("cnn", {"widths": HALF}), data, seed), seed, 10)
        return fit(prune(student, 0.5), seed, 10)

    def before(seed: int) -> nn.Module:
        return fit(prune(teacher, 0.75), seed, 20)

    def by_chance(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return fit(prune(teacher, 0.75, "random"), seed, 20)

    def gradually(seed: int) -> nn.Module:
        return compression.prune_gradually(
            teacher, 0.75, 2, prune, lambda model: fit(model, seed, 10)
        )

    ways = {
        "a small student, distilled": direct,
        "a student of twice the channels, distilled, pruned, distilled": after,
        "the teacher pruned, then distilled": before,
        "the teacher pruned in two steps, distilled after each": gradually,
        "the teacher pruned by chance, then distilled": by_chance,
    }

    def row(way: str, seed: int) -> list[Row]:
        model = ways[way](seed)
        return [{"order": way, "seed": seed, **_scores(model, data), **_size(model, data)}]

    return _side_by_side(row, product(ways, range(SEEDS))), facts | {"images": 2000}


def compression_sweep() -> tuple[pd.DataFrame, dict[str, Any]]:
    """A distilled student pruned by many shares and rounded to many bits, three ways to recover."""
    data, teacher, facts = _glyphs(2000)
    seeds = 3
    fits = {
        "labels": _fitting(data, None, facts["rates"]),
        "distilled": _fitting(data, teacher, facts["rates"]),
    }

    def rows(seed: int) -> Iterator[Row]:
        student = fits["distilled"](build_student("cnn_small", data, seed), seed, 20)
        for kind, share in product(KINDS, SHARES):
            setting = {"kind": kind, "share": share}
            pruned = {"no": prune_and_round(student, data, **setting, bits=FLOAT)}
            for name, fit in fits.items():
                pruned[name] = fit(copy.deepcopy(pruned["no"]), seed, 5)
            for (recovered, model), bits in product(pruned.items(), BITS):
                rounded = model if bits == FLOAT else compression.round_weights(model, bits)
                place = {"kind": kind, "share": share, "bits": bits, "recovered": recovered}
                yield place | {"seed": seed, **_scores(rounded, data), **_size(model, data)}

    table = _side_by_side(lambda seed: list(rows(seed)), product(range(seeds)))
    return table, facts | {"images": 2000, "seeds": seeds, "student": "cnn_small", "recovery": 5}


def nested_widths() -> tuple[pd.DataFrame, dict[str, Any]]:
    """One network with four widths, trained in three ways, against networks of their sizes."""
    data, teacher, facts = _glyphs(2000)
    rates = facts["rates"]
    methods: dict[str, tuple[Distiller | None, float]] = {
        "widest only": (None, rates["labels"]),
        "sandwich": (Sandwich(), rates["labels"]),
        "sandwich under a teacher": (Sandwich(SoftTargets()), rates["soft targets"]),
    }

    def whole(seed: int) -> Nested:
        return Nested(build_student(NESTED, data, seed), data.train.x[:2])

    def rows(trained: str, seed: int) -> list[Row]:
        nested = whole(seed)
        if trained.startswith("alone"):
            alone = {width: nested.subnetwork(width) for width in nested.widths}
            fit = _fitting(data, teacher if "soft" in trained else None, rates)
            return [place(trained, seed, w, False, fit(m, seed, 20)) for w, m in alone.items()]
        method, lr = methods[trained]
        shown = teacher if method is not None and method.needs_teacher else None
        training.fit(nested, data, method, teacher=shown, seed=seed, lr=lr, **BUDGET)
        found = []
        for recalibrated in (False, True):
            if recalibrated:
                nested.recalibrate(data.train.x)
            for width in nested.widths:
                model = nested.subnetwork(width)
                found.append(place(trained, seed, width, recalibrated, model))
        return found

    def place(trained: str, seed: int, width: float, again: bool, model: nn.Module) -> Row:
        where = {"width": width, "trained": trained, "recalibrated": again, "seed": seed}
        return where | _scores(model, data) | _size(model, data)

    ways = [*methods, "alone, labels", "alone, soft targets"]
    table = _side_by_side(rows, product(ways, range(SEEDS)))
    return table, facts | {"images": 2000, "network": NESTED}


def _glyphs(images: int) -> tuple[Data, nn.Module, dict[str, Any]]:
    """Glyphs to learn from, the teacher, and what the card of a result says of both."""
    data = datasets.load("glyphs")
    teacher, card = load_teacher(data)
    best = best_learning_rates()
    rates = {"labels": best["labels"], "soft targets": best["soft_targets"]}
    facts = {"images": images, "seeds": SEEDS, "teacher": card["sha256"], "rates": rates}
    return data.subset(images), teacher, facts | BUDGET


def _weak_teacher(images: int) -> nn.Module:
    """The teacher's network, taught by fewer images."""
    data = datasets.load("glyphs").subset(images)
    model = models.build_for("cnn_large", data.shape, data.num_classes, seed=100)
    lr = best_learning_rates()["labels"]
    training.fit(model, data, seed=100, lr=lr, **BUDGET)
    return model


def _fitting(
    data: Data, teacher: nn.Module | None, rates: dict[str, float]
) -> Callable[[nn.Module, int, int], nn.Module]:
    """Train in place, on labels or under the teacher; weights that are 0 stay 0."""
    lr = rates["labels"] if teacher is None else rates["soft targets"]

    def fit(model: nn.Module, seed: int, epochs: int) -> nn.Module:
        options = BUDGET | {"epochs": epochs, "lr": lr, "seed": seed}
        compression.recover(model, data, teacher, **options)
        return model

    return fit


def _scores(model: nn.Module, data: Data) -> Row:
    return {
        name: accuracy(training.predict(model, split.x), split.y)
        for name, split in (("accuracy", data.test), ("val_accuracy", data.val))
    }


def _size(model: nn.Module, data: Data) -> Row:
    counted = cost(model, data.test.x[:1], runs=3, seconds=1e-3)
    nonzero = sum(int(w.count_nonzero()) for w in model.parameters())
    return {
        "parameters": counted.parameters,
        "nonzero": nonzero,
        "bytes": counted.bytes,
        "flops": counted.flops,
    }


def _side_by_side(
    make: Callable[..., list[Row]], places: Iterator[tuple[Any, ...]]
) -> pd.DataFrame:
    """One process for each core, one thread in each."""

    def quietly(*place: Any) -> list[Row]:
        torch.set_num_threads(1)
        return make(*place)

    done = joblib.Parallel(n_jobs=-1)(joblib.delayed(quietly)(*place) for place in places)
    return pd.DataFrame([row for rows in done for row in rows])


RESULTS = {
    "student_sizes": student_sizes,
    "pruning_order": pruning_order,
    "compression_sweep": compression_sweep,
    "nested_widths": nested_widths,
}

if __name__ == "__main__":
    main(sys.argv[1:], RESULTS)
