"""One network made small in many ways: what each way costs in accuracy, bytes and time.

python tools/compressed_models.py [DATASET] [--seeds 5] [--epochs 15] [--out table.csv]

Distillation alone, compression alone, and both. Every model is exported to .onnx and answers from
that file in onnxruntime, on one thread; that is what is scored, weighed and timed. All networks see
the teacher's training images, moved by up to two pixels. The learning rate of each way to train is
chosen on validation images, with a seed that is not used again. Rows are written as they come; the
times are taken at the end, one model after another: let nothing else run then.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
from reference_results import FOLDER
from torch import nn

from kdlab import compression, datasets, training
from kdlab.compression import measure_file, prune_channels, quantize
from kdlab.datasets import Data
from kdlab.datasets.views import Augmentation
from kdlab.distillers import SoftTargets
from kdlab.metrics import Cost, evaluate
from kdlab.training.device import describe
from kdlab.training.study import Student, build_student
from kdlab.training.teachers import load_teacher

ROOT = Path(__file__).parents[1]
RATES = (0.1, 0.2, 0.4)
SPARE_SEED = 100  # only for the choice of rates
BATCH, WATTS = 64, 10.0  # samples in a timed forward; a guess at what one busy core draws
STUDENTS: dict[str, Student] = {
    "cnn_tiny": "cnn_tiny",
    "cnn_small": "cnn_small",
    "half": ("cnn", {"widths": (16, 32, 48)}),
}
COSTS = [field.name for field in fields(Cost)]

Found = Iterator[tuple[str, str, nn.Module]]  # name, how it was made, model


class Bench:
    """One data set, its teacher, and one way to train for all.

    Args:
        name: of the data set, or a path.
        epochs: of a student that starts anew; what was pruned gets half as many.
    """

    def __init__(self, name: str, epochs: int) -> None:
        self.data: Data = datasets.load(name)
        self.teacher, self.card = load_teacher(self.data)
        self.epochs, self.rates = epochs, {True: RATES[0], False: RATES[0]}

    def fit(self, model: nn.Module, seed: int, taught: bool, share: float = 1.0) -> nn.Module:
        """Train in place for a share of the epochs, on labels or under the teacher."""
        compression.recover(
            model,
            self.data,
            self.teacher if taught else None,
            SoftTargets() if taught else None,
            epochs=max(1, round(share * self.epochs)),
            lr=self.rates[taught],
            batch_size=128,
            seed=seed,
            augment=Augmentation(2),
            validate=False,
            device="cpu",
        )
        return model

    def student(self, name: str, seed: int, taught: bool) -> nn.Module:
        """One of the students, trained from the start."""
        return self.fit(build_student(STUDENTS[name], self.data, seed), seed, taught)

    def choose_rates(self) -> None:
        """The best rate on validation images, for labels and for soft targets, in half the time."""
        for taught in (False, True):
            found = {}
            for rate in RATES:
                self.rates[taught] = rate
                model = build_student(STUDENTS["half"], self.data, SPARE_SEED)
                self.fit(model, SPARE_SEED, taught, share=0.5)
                logits = training.predict(model, self.data.val.x)
                found[rate] = evaluate(logits, self.data.val.y)["accuracy"]
            self.rates[taught] = max(found, key=lambda rate: found[rate])

    def half_of(self, model: nn.Module) -> nn.Module:
        """What is left when every layer loses half of its channels."""
        return prune_channels(model, self.data.train.x[:2], 0.5, multiple_of=8)


def without_training(bench: Bench) -> Found:
    """The teacher, and what can be made of it at once."""
    teacher = bench.teacher
    yield "teacher", "teacher", teacher
    yield "teacher, int8", "quantized", quantize(teacher, bench.data)
    yield "teacher, half of it cut", "pruned", bench.half_of(teacher)
    yield "teacher, of low rank", "factorized", compression.factorize(teacher, 0.9)


def trained(bench: Bench, seed: int) -> Found:
    """Students, what pruning left, and chains of both."""
    for name in STUDENTS:
        yield f"{name}, labels", "labels", bench.student(name, seed, taught=False)
        student = bench.student(name, seed, taught=True)
        yield f"{name}, distilled", "distilled", student
        yield f"{name}, distilled, int8", "chain", quantize(student, bench.data)
    narrow = prune_channels(student, bench.data.train.x[:2], 0.25, multiple_of=8)
    bench.fit(narrow, seed, taught=True, share=0.5)
    yield "half, distilled, pruned, recovered, int8", "chain", quantize(narrow, bench.data)
    for taught, how in ((False, "labels"), (True, "distilled")):
        left = bench.fit(bench.half_of(bench.teacher), seed, taught, share=0.5)
        yield f"teacher, half of it cut, {how}", "pruned", left
        yield f"teacher, half of it cut, {how}, int8", "chain", quantize(left, bench.data)
    split = bench.fit(compression.factorize(bench.teacher, 0.9), seed, True, share=0.25)
    yield "teacher, of low rank, distilled", "factorized", split


def main() -> None:
    """Make the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", nargs="?", default="glyphs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--out", type=Path, default=FOLDER / "compressed_models.csv")
    parser.add_argument("--times", action="store_true", help="measure an existing table's costs")
    asked = parser.parse_args()
    files = ROOT / "build" / "compressed" / asked.out.stem
    if not asked.times:
        make(asked, files)
    bench = Bench(asked.dataset, asked.epochs)
    table = pd.read_csv(asked.out)
    for name in table["model"].unique():
        path = files / f"{name}.onnx"
        costs = measure_file(path, bench.teacher, bench.data, batch=BATCH, runs=200, watts=WATTS)
        for column in set(COSTS) - {"flops"}:
            table.loc[table["model"] == name, column] = costs[column]
    table.round(5).to_csv(asked.out, index=False)
    base = table[table["model"] == "teacher"].iloc[0]
    means = table.groupby("model", sort=False)[["accuracy", "bytes", "latency_ms"]].mean()
    means["smaller"], means["faster"] = (
        base[column] / means[column] for column in ("bytes", "latency_ms")
    )
    print(means.round(4).to_string())


def make(asked: argparse.Namespace, files: Path) -> None:
    """Train, export and score all models; keep the files of the first seed."""
    started = time.perf_counter()
    for folder in (files, asked.out.parent):
        folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(asked.dataset, asked.epochs)
    bench.choose_rates()
    logits = training.predict(bench.teacher, bench.data.test.x)
    rows: list[dict[str, Any]] = []

    def keep(found: Found, seed: int) -> None:
        for name, made_by, model in found:
            path = files / f"{name}{f', seed {seed}' if seed else ''}.onnx"
            compression.export(model, path, bench.data, card={"model": name, "seed": seed})
            scores = measure_file(path, model, bench.data, logits, batch=BATCH, runs=3)
            rows.append({"model": name, "made_by": made_by, "seed": seed, **scores})
            pd.DataFrame(rows).round(5).to_csv(asked.out, index=False)

    keep(without_training(bench), 0)
    for seed in range(asked.seeds):
        keep(trained(bench, seed), seed)
        print(f"seed {seed}: done after {time.perf_counter() - started:.0f} s", flush=True)
    card = {
        "data": bench.data.card,
        "teacher": bench.card["sha256"],
        "teacher_scores": bench.card["scores"],
        "epochs": asked.epochs,
        "rates": {"labels": bench.rates[False], "soft targets": bench.rates[True]},
        "batch": BATCH,
        "watts": WATTS,
        "made_on": describe(),
        "seconds": round(time.perf_counter() - started),
    }
    asked.out.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
