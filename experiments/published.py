"""Run a published pair and method on CIFAR-100 by the published recipe; needs a GPU to be of use.

    python experiments/published.py --data DIR --pair resnet32x4:resnet8x4 --method kd
        --teacher ckpt_epoch_240.pth --out DIR

The recipe is that of RepDistiller (Tian, Krishnan, Isola, "Contrastive Representation
Distillation", ICLR 2020, arXiv:1910.10699): 240 epochs, batches of 64, SGD with momentum 0.9,
weight decay 5e-4, learning rate 0.05 (0.01 for MobileNetV2 and the ShuffleNets) times 0.1 at epochs
150, 180 and 210; crops of the image padded by 4, and flips; all 50,000 images to learn from, and
the *last* epoch's accuracy on the test images. Nothing is chosen by these. Where this differs: the
border of a crop is the mean and not black, the last 16 images of each shuffled epoch are left out,
and what AB, FT and FSP do in a stage of its own is one term beside the labels.

DIR of the data holds `train.bin`, `test.bin` and `fine_label_names.txt`, as they are in CIFAR-100's
"binary version" from its author's page, or the archive cifar-100-binary.tar.gz itself.
"""

from __future__ import annotations

import argparse
import json
import platform
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kdlab import distillers
from kdlab.datasets import Data, Split
from kdlab.datasets.views import Augmentation
from kdlab.distillers import Distiller
from kdlab.files import atomic_write
from kdlab.metrics import accuracy
from kdlab.models import build, load_published, preactivation
from kdlab.models.registry import known_name
from kdlab.training import fit, predict
from kdlab.words import check_known

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)  # as published teachers expect
RECORD = 2 + 3 * 32 * 32  # coarse label, fine label, red, green, blue
EPOCHS, MILESTONES = 240, (5 / 8, 3 / 4, 7 / 8)
LIGHT = ("mobilenetv2", "shufflenetv1", "shufflenetv2")  # a fifth of the learning rate
# Teacher and student: test accuracy of teacher, of the student alone, of the student with "kd", in
# the tables of RepDistiller's README (last epoch).
PAIRS = {
    ("wrn_40_2", "wrn_16_2"): (75.61, 73.26, 74.92),
    ("wrn_40_2", "wrn_40_1"): (75.61, 71.98, 73.54),
    ("resnet56", "resnet20"): (72.34, 69.06, 70.66),
    ("resnet110", "resnet20"): (74.31, 69.06, 70.67),
    ("resnet110", "resnet32"): (74.31, 71.14, 73.08),
    ("resnet32x4", "resnet8x4"): (79.42, 72.50, 73.33),
    ("vgg13", "vgg8"): (74.64, 70.36, 72.98),
    ("vgg13", "mobilenetv2"): (74.64, 64.60, 67.37),
    ("resnet50", "mobilenetv2"): (79.34, 64.60, 67.35),
    ("resnet50", "vgg8"): (79.34, 70.36, 73.81),
    ("resnet32x4", "shufflenetv1"): (79.42, 70.50, 74.07),
    ("resnet32x4", "shufflenetv2"): (79.42, 71.82, 74.45),
    ("wrn_40_2", "shufflenetv1"): (75.61, 70.50, 74.83),
}


def _beside_labels(name: str, layers: Callable[[list[str]], object]) -> Callable[..., Distiller]:
    def made(stages: list[str]) -> Distiller:
        return distillers.Labels() + distillers.build(name, layers=layers(stages))

    return made


def every(stages: list[str]) -> object:
    return stages


def last(stages: list[str]) -> object:
    return stages[-1]


# RepDistiller's names, with the layers that it reads; the weights are the methods' own.
METHODS: dict[str, Callable[[list[str]], Distiller | None]] = {
    "none": lambda stages: None,
    "kd": lambda stages: distillers.SoftTargets(temperature=4.0, alpha=0.9),
    "hint": _beside_labels("hints", lambda stages: "stage2"),
    "attention": _beside_labels("attention_transfer", every),
    "similarity": _beside_labels("similarity_preserving", last),
    "correlation": _beside_labels("correlation_congruence", lambda stages: "pool"),
    "vid": _beside_labels("variational", every),
    "rkd": _beside_labels("relational", lambda stages: "pool"),
    "pkt": _beside_labels("probabilistic", lambda stages: "pool"),
    "abound": _beside_labels("activation_boundary", every),
    "factor": _beside_labels("factor_transfer", last),
    "fsp": _beside_labels("flow", lambda stages: ["stem", *stages]),
    "nst": _beside_labels("neuron_selectivity", every),
    "crd": _beside_labels("contrastive", lambda stages: "pool"),
    "ofd": _beside_labels("overhaul", every),
    "review": _beside_labels("review", lambda stages: [*stages, "pool"]),
    "dkd": lambda stages: distillers.Labels() + distillers.Decoupled(),
    "dist": lambda stages: distillers.Labels() + distillers.Dist(),
}


def read_cifar100(path: str | Path) -> Data:
    """CIFAR-100 from its author's binary files, normalised as published teachers expect.

    All 50,000 images are the training split, and the test images both others: what is published
    chooses nothing, so nothing is set aside.

    Args:
        path: the folder with `train.bin`, `test.bin` and `fine_label_names.txt`, or the .tar.gz.

    Raises:
        ValueError: files that are not there or not whole, or other labels than 0 to 99.
    """
    files = _files(Path(path))
    classes = tuple(files["fine_label_names.txt"].decode().split())
    train, test = (_split(path, name, files[name], len(classes)) for name in NEEDED[:2])
    card = {"source": "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"}
    return Data("cifar100", train, test, test, classes, MEAN, STD, card)


NEEDED = ("train.bin", "test.bin", "fine_label_names.txt")


def _files(path: Path) -> dict[str, bytes]:
    found = {}
    if path.is_dir():
        found = {name: (path / name).read_bytes() for name in NEEDED if (path / name).is_file()}
    elif path.is_file() and tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:  # read in place, never unpacked
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if name in NEEDED and (file := archive.extractfile(member)):
                    found[name] = file.read()
    missing = [name for name in NEEDED if name not in found]
    if missing:
        raise ValueError(
            f"data: got {str(path)!r} without {', '.join(missing)}, expected the folder "
            "cifar-100-binary or its archive; get CIFAR-100's binary version from its author's page"
        )
    return found


def _split(path: str | Path, name: str, content: bytes, classes: int) -> Split:
    if not content or len(content) % RECORD:
        raise ValueError(
            f"data: got {len(content)} bytes in {name} of {str(path)!r}, expected a multiple of "
            f"{RECORD}; copy the file again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    labels = torch.from_numpy(records[:, 1].astype(np.int64))
    if int(labels.max()) >= classes:
        raise ValueError(
            f"data: got label {int(labels.max())} in {name} of {str(path)!r}, expected 0 to "
            f"{classes - 1}; is this CIFAR-100?"
        )
    images = torch.from_numpy(records[:, 2:].astype(np.float32)).view(-1, 3, 32, 32) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return Split((images - mean) / std, labels)


def recipe(student: str, epochs: int = EPOCHS) -> dict[str, object]:
    """The published recipe as arguments of `fit`; with fewer epochs its drops move along."""
    return {
        "epochs": epochs,
        "batch_size": 64,
        "lr": 0.01 if student in LIGHT else 0.05,
        "optimizer": "momentum",
        "weight_decay": 5e-4,
        "schedule": "steps",
        "milestones": [round(epochs * share) for share in MILESTONES] if epochs > 3 else None,
        "lr_decay": 0.1,
        "augment": Augmentation(shift=4, flip=True),
        "validate": False,
    }


def stages_of(student: nn.Module, teacher: nn.Module) -> list[str]:
    """The stages that both have; in the published pairs that is all of both."""
    both = [dict(model.named_children()) for model in (student, teacher)]
    return [name for name in both[0] if name.startswith("stage") and name in both[1]]


def run(
    data: Data,
    teacher: nn.Module | None,
    student: str,
    method: str,
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
    checkpoint: Path | None = None,
    device: str = "auto",
    progress: bool = False,
) -> tuple[nn.Module, dict[str, object]]:
    """Train ``student`` by a name in `METHODS`; return it and the row of the results.

    Raises:
        ValueError: an unknown method, a method without its teacher, and what `fit` raises.
    """
    check_known("method", method, METHODS)
    student = known_name(student)
    model = build(student, data.num_classes, seed=seed)
    distiller = METHODS[method]([] if teacher is None else stages_of(model, teacher))
    trained = fit(
        model,
        data,
        distiller,
        teacher=None if distiller is None else teacher,
        seed=seed,
        checkpoint=checkpoint,
        device=device,
        progress=progress,
        **recipe(student, epochs),  # type: ignore[arg-type]
    )
    test = accuracy(predict(model, data.test.x, device=device), data.test.y)
    row: dict[str, object] = {"student": student, "method": method, "seed": seed, "epochs": epochs}
    row |= {"test_accuracy": round(100 * test, 2), "seconds": round(trained.seconds, 1)}
    row |= {"samples_per_second": round(trained.samples_per_second), **trained.facts}
    row |= {"torch": torch.__version__, "machine": platform.machine()}
    return model, row


def main(arguments: Sequence[str] | None = None) -> dict[str, object]:
    """Read the command line, train, print and keep one row."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    pairs = ", ".join(":".join(pair) for pair in PAIRS)
    parser.add_argument("--data", required=True, help="CIFAR-100's binary version")
    parser.add_argument("--pair", required=True, help=f"teacher:student, such as {pairs}")
    parser.add_argument("--method", default="kd", choices=list(METHODS))
    parser.add_argument("--teacher", help="published checkpoint; without it one is trained first")
    parser.add_argument("--out", type=Path, default=Path("build/published"), help="for the results")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--progress", action="store_true")
    options = parser.parse_args(arguments)
    teacher_name, _, student = options.pair.partition(":")
    teacher_name, student = known_name(teacher_name), known_name(student)
    data = read_cifar100(options.data)
    options.out.mkdir(parents=True, exist_ok=True)
    common = {"device": options.device, "progress": options.progress, "epochs": options.epochs}
    teacher: nn.Module | None = None
    if options.teacher is not None:
        teacher = load_published(teacher_name, options.teacher, data.num_classes)
    elif options.method != "none":
        kept = options.out / f"{teacher_name}.run"
        teacher, _ = run(data, None, teacher_name, "none", checkpoint=kept, **common)
    name = f"{teacher_name}-{student}-{options.method}-{options.seed}"
    _, row = run(
        data,
        teacher,
        student,
        options.method,
        seed=options.seed,
        checkpoint=options.out / f"{name}.run",
        **common,
    )
    row["teacher"] = teacher_name
    if teacher is not None:
        logits = predict(teacher, data.test.x, device=options.device)
        row["teacher_test_accuracy"] = round(100 * accuracy(logits, data.test.y), 2)
        row["before_activation"] = [
            preactivation(teacher, stage, data.test.x[:1])
            for stage in dict(teacher.named_children())
            if stage.startswith("stage")
        ]
    if (teacher_name, student) in PAIRS:
        row["published"] = dict(
            zip(("teacher", "student", "kd"), PAIRS[teacher_name, student], strict=True)
        )
    with atomic_write(options.out / f"{name}.json") as path:
        path.write_text(json.dumps(row, indent=1), "utf-8")
    print(json.dumps(row))
    return row


if __name__ == "__main__":
    main()
