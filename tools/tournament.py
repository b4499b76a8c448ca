"""All methods that look inside, on your own images and with your own student: a table.

python tools/tournament.py images.npz --student resnet8x4 --epochs 10 --out tournament.csv

Every method has the weight that was chosen on the glyphs' validation images (stored results), and
one common learning rate. The labels alone run with more seeds than the rest: their spread says how
large a difference between two single runs must be to mean anything. Rows are written as they come.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
from torch import nn

from kdlab import datasets, models, training
from kdlab.training.reference import tuned_methods
from kdlab.training.teachers import load_teacher


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", help="a name of kdlab.datasets, or a path")
    parser.add_argument("--student", default="cnn_tiny")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--measured", type=int, default=10_000, help="test images, at most")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--precision", default="auto", help="fp32, bf16 or auto")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--label-seeds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("tournament.csv"))
    return parser.parse_args()


def fits(asked: argparse.Namespace, data: datasets.Data, teacher: nn.Module) -> bool:
    """Whether the student can start as a slice of this teacher."""
    student = models.build_for(asked.student, data.shape, data.num_classes)
    try:
        models.inherit(student, teacher, data.train.x[:2])
    except ValueError as error:
        print(f"weight transfer is left out: {error}")
        return False
    return True


def main() -> None:
    """Run it."""
    asked = parse()
    data = datasets.load(asked.dataset)
    teacher, _ = load_teacher(data)
    few = data.subset(min(asked.images, len(data.train)))
    few = replace(few, val=few.val.first(1000), test=few.test.first(asked.measured))
    settings = tuned_methods()
    settings["soft targets"] = tuned_methods("soft targets")["soft targets"]
    budget = {
        "epochs": asked.epochs,
        "batch_size": asked.batch_size,
        "lr": asked.lr,
        "precision": asked.precision,
    }
    started, rows = time.perf_counter(), []
    names = [name for name in settings if name != "weight transfer" or fits(asked, few, teacher)]
    groups = [(["labels"], asked.label_seeds)]
    groups += [(names[k : k + 4], asked.seeds) for k in range(1, len(names), 4)]
    for group, seeds in groups:
        alike = {name: replace(settings[name], options={}) for name in group}
        rows.append(
            training.study(asked.student, few, alike, seeds=seeds, teacher=teacher, **budget)
        )
        pd.concat(rows).round(4).to_csv(asked.out, index=False)
        print(f"{', '.join(group)}: done after {time.perf_counter() - started:.0f} s", flush=True)
    table = pd.concat(rows).groupby("setting")["accuracy"].agg(["mean", "std", "count"])
    print(table.sort_values("mean", ascending=False).round(4).to_string())
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
