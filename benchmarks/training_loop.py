"""Speed of `kdlab.fit` against the plain tutorial loop, and the price in accuracy: none.

Prints two tables and saves build/benchmarks/training_loop.png. `--quick` only shows that it works.

Speed: a resnet20 student under a wide residual network with ten times its parameters, on 32×32×3
noise. Windows of the ladder's rungs take turns, so that a busy moment hits all of them; the
median counts. Beside it: the student's arithmetic as a share of what the machine's matrix product
reaches. Accuracy: a small CNN on glyphs of 32×32, three seeds, the same budget for each loop.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from kdlab import datasets, metrics, models
from kdlab.datasets import Data
from kdlab.distillers import SoftTargets
from kdlab.models.wide_resnet import wide_resnet
from kdlab.plots import PALETTE
from kdlab.training import TeacherOutputs, fit, predict
from kdlab.training.device import describe, pick_device, pick_precision
from kdlab.training.loop import Plan

BATCH, CLASSES = 128, 10
TEMPERATURE, ALPHA = 4.0, 0.9
ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "build" / "benchmarks" / "training_loop.png"
STORED = ROOT / "data" / "results" / "training_loop.json"


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    batches: int
    windows: int
    glyphs: int
    epochs: int
    seeds: int


QUICK = Size(batches=2, windows=2, glyphs=512, epochs=1, seeds=2)
ON_CPU = Size(batches=16, windows=5, glyphs=3000, epochs=20, seeds=3)
ON_GPU = Size(batches=200, windows=7, glyphs=20_000, epochs=10, seeds=5)


def tutorial_loss(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """Soft targets as the tutorials write them."""
    log_q = F.log_softmax(student / TEMPERATURE, dim=1)
    p = F.softmax(teacher / TEMPERATURE, dim=1)
    soft = F.kl_div(log_q, p, reduction="batchmean") * TEMPERATURE**2
    return ALPHA * soft + (1 - ALPHA) * F.cross_entropy(student, targets)


def tutorial_loop(
    student: nn.Module,
    teacher: nn.Module,
    data: Data,
    device: torch.device,
    epochs: int = 1,
    plan: Plan | None = None,
) -> float:
    """Train as the tutorials do and return the seconds; with ``plan``, by fit's optimizer."""
    loader = DataLoader(
        TensorDataset(data.train.x, data.train.y), batch_size=BATCH, shuffle=True, drop_last=True
    )
    student.to(device).train()
    teacher.to(device).eval()
    optimizer: torch.optim.Optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    if plan is not None:
        optimizer = torch.optim.SGD(
            student.parameters(), lr=plan.lr, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
    running = 0.0
    started = time.perf_counter()
    for epoch in range(epochs):
        for step, (images, targets) in enumerate(loader):
            if plan is not None:
                optimizer.param_groups[0]["lr"] = plan.learning_rate(epoch, step)
            images, targets = images.to(device), targets.to(device)
            with torch.no_grad():
                answers = teacher(images)
            logits = student(images)
            loss = tutorial_loss(logits, answers, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            running += loss.item()
    return time.perf_counter() - started


def matrix_product_rate(device: torch.device, precision: str) -> float:
    """Return the highest GFLOP/s of a square matrix product, sizes 1024 to 2048 (8192 on a GPU)."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    best = 0.0
    for side in (4096, 8192) if device.type == "cuda" else (1024, 1536, 2048):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        for _ in range(6):
            synchronize(device)
            started = time.perf_counter()
            a @ b
            synchronize(device)
            best = max(best, 2 * side**3 / (time.perf_counter() - started) / 1e9)
    return best


def student_gflop(student: nn.Module, images: Tensor) -> float:
    """Return the GFLOP of forward and backward for one image."""
    with FlopCounterMode(display=False) as counter:
        student(images).sum().backward()
    student.zero_grad()
    return counter.get_total_flops() / len(images) / 1e9


def synchronize(device: torch.device) -> None:
    """Wait until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ladder(data: Data, device: torch.device) -> dict[str, Callable[[], float]]:
    """Return for each rung a function that trains for one window and returns samples/s."""
    teacher = wide_resnet(CLASSES, 3, depth=46, widen=2)
    method = SoftTargets(TEMPERATURE, ALPHA)
    outputs = TeacherOutputs.build(teacher, data, device=device)
    still = datasets.views.Augmentation(shift=0)  # views without end: a live teacher

    def student() -> nn.Module:
        return models.build("resnet20", CLASSES, seed=0)

    def tutorial() -> float:
        return len(data.train) / tutorial_loop(student(), teacher, data, device)

    def by_fit(**options: object) -> Callable[[], float]:
        model = student()  # one for all windows, so that compiling is done once
        return lambda: (
            fit(
                model,
                data,
                method,
                teacher=teacher,
                epochs=1,
                batch_size=BATCH,
                lr=0.01,
                device=str(device),
                validate=False,
                **options,  # type: ignore[arg-type]
            ).samples_per_second
        )

    rungs = {
        "tutorial loop": tutorial,
        "fit, live teacher": by_fit(augment=still),
        "fit, cached teacher": by_fit(teacher_outputs=outputs),
    }
    if device.type == "cuda":
        rungs["fit, cached, compiled"] = by_fit(teacher_outputs=outputs, compile=True)
    return rungs


def measure_speed(size: Size, device: torch.device) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return samples/s of each rung, and the machine's and the student's arithmetic."""
    precision = pick_precision("auto", device)
    data = noise(size.batches * BATCH)
    rungs = ladder(data, device)
    for window in rungs.values():
        window()  # warm up
    rates: dict[str, list[float]] = {name: [] for name in rungs}
    peaks = []
    for _ in range(size.windows):
        peaks.append(matrix_product_rate(device, precision))
        for name, window in rungs.items():
            rates[name].append(window())
    gflop = student_gflop(models.build("resnet20", CLASSES), data.train.x[:8])
    peak, base = max(peaks), statistics.median(rates["tutorial loop"])
    rows = []
    for name, values in rates.items():
        rate = statistics.median(values)
        rows.append(
            {
                "loop": name,
                "samples_per_second": rate,
                "lowest": min(values),
                "highest": max(values),
                "ratio": rate / base,
                "gflops": rate * gflop,
                "share_of_peak": rate * gflop / peak,
            }
        )
    return pd.DataFrame(rows), {"peak_gflops": peak, "mflop_per_image": 1e3 * gflop}


def noise(n: int) -> Data:
    """Return images whose content does not matter."""
    rng = np.random.default_rng(0)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        x = rng.random((count, 32, 32, 3), dtype=np.float32)
        return x, np.arange(count) % CLASSES

    few = draw(20)
    return datasets.from_arrays(*draw(n), *few, x_val=few[0], y_val=few[1])


def measure_accuracy(size: Size, device: torch.device) -> pd.DataFrame:
    """Return test accuracy by loop and seed: one teacher, equal epochs and batches."""
    data = datasets.load("glyphs", size=32, n_train=size.glyphs, n_val=200, n_test=2000)
    teacher = models.build_for("cnn_large", data.shape, data.num_classes, seed=99)
    fit(teacher, data, epochs=2 * size.epochs, batch_size=BATCH, device=str(device), seed=99)
    method, rows = SoftTargets(TEMPERATURE, ALPHA), []
    outputs = TeacherOutputs.build(teacher, data, device=device)
    for seed in range(size.seeds):
        plan = Plan(len(data.train), size.epochs, BATCH, 0.2, seed, 1)
        students = {
            name: models.build_for("cnn_small", data.shape, data.num_classes, seed=seed)
            for name in ("tutorial, Adam", "tutorial, fit's optimizer", "fit, cached teacher")
        }
        torch.manual_seed(seed)
        adam, sgd, ours = students.values()
        tutorial_loop(adam, teacher, data, device, size.epochs)
        tutorial_loop(sgd, teacher, data, device, size.epochs, plan)
        fit(
            ours,
            data,
            method,
            teacher=teacher.cpu(),
            teacher_outputs=outputs,
            epochs=size.epochs,
            batch_size=BATCH,
            lr=plan.lr,
            seed=seed,
            device=str(device),
            validate=False,
        )
        for name, student in students.items():
            logits = predict(student, data.test.x, device=device)
            accuracy = metrics.accuracy(logits, data.test.y)
            rows.append({"loop": name, "seed": seed, "accuracy": accuracy})
    return pd.DataFrame(rows)


def summary_of(accuracies: pd.DataFrame) -> pd.DataFrame:
    """Return mean and 95 % interval of each loop, and of its difference to the last, by seed."""
    by_loop = accuracies.pivot(index="seed", columns="loop", values="accuracy")
    ours = by_loop["fit, cached teacher"]
    rows = []
    for name in accuracies.loop.unique():
        mean = metrics.mean_interval(by_loop[name].tolist())
        gain = metrics.mean_interval((ours - by_loop[name]).tolist())
        rows.append(
            {"loop": name, "accuracy": mean.mean, "low": mean.low, "high": mean.high}
            | {"fit_minus_this": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
        )
    return pd.DataFrame(rows)


def draw(speed: pd.DataFrame, accuracy: pd.DataFrame, title: str) -> Figure:
    """Return the picture: rates on the left, accuracies on the right."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = range(len(speed))[::-1]
    colours = list(PALETTE)
    left.barh(places, speed.samples_per_second, color=colours[: len(speed)])
    left.hlines(places, speed.lowest, speed.highest, color="black", linewidth=1)
    left.set_yticks(places, speed.loop)
    left.set_xlabel("training images per second (median; line: all windows)")
    for place, row in zip(places, speed.itertuples(), strict=True):
        left.text(row.highest, place, f"  {row.ratio:.1f} ×", va="center")
    left.set_xlim(0, 1.15 * speed.highest.max())
    places = range(len(accuracy))[::-1]
    half = (accuracy.high - accuracy.low) / 2
    right.errorbar(accuracy.accuracy, places, xerr=half, fmt="o", color=colours[0], capsize=4)
    right.set_yticks(places, accuracy.loop)
    right.set_ylim(-0.5, len(accuracy) - 0.5)
    right.set_xlabel("test accuracy (mean and 95 % interval over seeds)")
    figure.suptitle(title, fontsize=10)
    return figure


def show(console: Console, frame: pd.DataFrame, formats: dict[str, str], title: str) -> None:
    """Print a table."""
    table = Table(title=title)
    for name in frame.columns:
        table.add_column(name.replace("_", " "), justify="left" if name == "loop" else "right")
    for row in frame.to_dict("records"):
        table.add_row(*(format(value, formats.get(str(name), "")) for name, value in row.items()))
    console.print(table)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds, to see that it works")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--output", type=Path, default=PICTURE, help="where the picture goes")
    parser.add_argument("--store", action="store_true", help="keep the numbers for the README")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="stopped in epoch")
    device = pick_device(arguments.device)
    size = QUICK if arguments.quick else ON_GPU if device.type == "cuda" else ON_CPU
    facts, console = describe(), Console(width=110)
    machine = f"{facts['name']}, {facts['threads']} threads, torch {facts['torch']}, {device.type}"
    speed, arithmetic = measure_speed(size, device)
    console.print(
        f"{machine}\nmatrix product {arithmetic['peak_gflops']:.0f} GFLOP/s; the student needs "
        f"{arithmetic['mflop_per_image']:.0f} MFLOP per image, forward and backward"
    )
    formats = dict.fromkeys(("samples_per_second", "lowest", "highest", "gflops"), ",.0f")
    formats |= {"ratio": ".2f", "share_of_peak": ".0%"}
    show(console, speed, formats, "resnet20 under a 10 times larger teacher, 32×32×3")
    accuracy = summary_of(measure_accuracy(size, device))
    columns = dict.fromkeys(accuracy.columns[1:4], ".4f")
    columns |= dict.fromkeys(accuracy.columns[4:], "+.4f")
    show(console, accuracy, columns, f"cnn_small on glyphs, {size.seeds} seeds, 95 % intervals")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    draw(speed, accuracy, machine).savefig(arguments.output, dpi=150)
    console.print(f"saved {arguments.output.name}")
    if arguments.store:
        card = {
            "speed": speed.round(3).to_dict("records"),
            "accuracy": accuracy.round(4).to_dict("records"),
            "seeds": size.seeds,
            "made_on": facts,
        }
        STORED.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
