"""The published recipe as a command: two steps on random images, in CIFAR-100's own file format."""

import importlib.util
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kdlab import models
from kdlab.training import fit

FILE = Path(__file__).parents[2] / "experiments" / "published.py"


@pytest.fixture(scope="module")
def published():
    spec = importlib.util.spec_from_file_location("published", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """CIFAR-100's binary version with 128 random images to learn from: two steps of 64."""
    folder, random = tmp_path_factory.mktemp("cifar-100-binary"), np.random.default_rng(0)
    for name, count in (("train.bin", 128), ("test.bin", 8)):
        records = random.integers(256, size=(count, 3074), dtype=np.uint8)
        records[:, 1] = np.arange(count) % 5
        (folder / name).write_bytes(records.tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join("abcde"))
    return folder


def says(*parts):
    return pytest.raises(ValueError, match="^" + ".*".join(map(re.escape, parts)))


def test_the_pairs_are_the_thirteen_and_can_be_built(published):
    assert len(published.PAIRS) == 13
    for pair in published.PAIRS:
        assert all(name in models.available((3, 32, 32)) for name in pair)


def test_reading(published, files, tmp_path):
    data = published.read_cifar100(files)
    assert data.train.x.shape == (128, 3, 32, 32) and data.num_classes == 5
    raw = np.frombuffer((files / "train.bin").read_bytes(), np.uint8).reshape(128, 3074)
    assert data.train.y.tolist() == raw[:, 1].tolist()
    blue = (raw[3, 2 + 2048].astype(float) / 255 - 0.4408) / 0.2761
    assert float(data.train.x[3, 2, 0, 0]) == pytest.approx(blue, abs=1e-5)
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as archive:
        archive.add(files, "cifar-100-binary")
    assert torch.equal(published.read_cifar100(tmp_path / "cifar.tar.gz").test.x, data.test.x)


def test_files_that_are_not_those_are_refused_by_name(published, files, tmp_path):
    with says("data: got", "without train.bin, test.bin"):
        published.read_cifar100(tmp_path)
    for name in ("train.bin", "test.bin", "fine_label_names.txt"):
        (tmp_path / name).write_bytes((files / name).read_bytes())
    (tmp_path / "train.bin").write_bytes((files / "train.bin").read_bytes()[:-1])
    with says("data: got 393471 bytes in train.bin", "expected a multiple of 3074"):
        published.read_cifar100(tmp_path)
    (tmp_path / "train.bin").write_bytes(b"\x00\x07" + bytes(3072))
    with says("data: got label 7 in train.bin", "expected 0 to 4"):
        published.read_cifar100(tmp_path)


def test_the_recipe_is_the_published_one(published):
    recipe = published.recipe("resnet8x4")
    assert recipe["milestones"] == [150, 180, 210] and recipe["epochs"] == 240
    assert (recipe["lr"], recipe["optimizer"], recipe["schedule"]) == (0.05, "momentum", "steps")
    assert published.recipe("shufflenetv1")["lr"] == 0.01


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A published checkpoint of a small model, with the repositories' names."""
    path = tmp_path_factory.mktemp("teacher") / "ckpt_epoch_240.pth"
    renamed = {}
    for name, weight in models.build("resnet8", 5, seed=1).state_dict().items():
        for ours, theirs in (
            ("stem.0", "conv1"),
            ("stem.1", "bn1"),
            ("stage", "layer"),
            (".shortcut.", ".downsample."),
            ("head", "fc"),
        ):
            name = name.replace(ours, theirs)
        renamed[name] = weight
    torch.save({"epoch": 240, "model": renamed}, path)
    return path


def test_two_steps_of_a_pair_from_the_command_line(published, files, teacher, tmp_path):
    command = f"--data {files} --pair resnet8:resnet8 --method kd --teacher {teacher}"
    command += f" --epochs 1 --device cpu --out {tmp_path}"
    row = published.main(command.split())
    assert row == json.loads((tmp_path / "resnet8-resnet8-kd-0.json").read_text())
    assert (row["epochs"], row["method"], row["student"]) == (1, "kd", "resnet8")
    assert 0 <= row["test_accuracy"] <= 100 and row["teacher_test_accuracy"] >= 0
    # the same by hand, with plain arguments of fit
    data = published.read_cifar100(files)
    by_hand = models.build("resnet8", 5, seed=0)
    run = fit(
        by_hand,
        data,
        published.METHODS["kd"]([]),
        teacher=models.load_published("resnet8", teacher, 5),
        **published.recipe("resnet8", 1),
        device="cpu",
    )
    assert run.steps == 2
    again, _ = published.run(
        data, models.load_published("resnet8", teacher, 5), "resnet8", "kd", epochs=1, device="cpu"
    )
    weights = zip(again.parameters(), by_hand.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


def test_without_a_checkpoint_the_teacher_is_trained_first(published, files, tmp_path):
    command = f"--data {files} --pair resnet8:resnet8 --method hint --epochs 1 --device cpu"
    row = published.main([*command.split(), "--out", str(tmp_path)])
    assert row["teacher"] == "resnet8" and "teacher_test_accuracy" in row
    assert {path.suffix for path in tmp_path.iterdir()} >= {".json", ".run"}


def test_every_method_reads_layers_that_the_pairs_have(published):
    for pair in (("wrn_16_1", "shufflenetv1"), ("vgg8", "mobilenetv2")):
        teacher, student = (models.build(name, 5, seed=0) for name in pair)
        stages = published.stages_of(student, teacher)
        assert len(stages) == (4 if pair[0] == "vgg8" else 3)
        for name, make in published.METHODS.items():
            method = make(stages)
            if method is not None:
                for model, taps in (
                    (student, method.student_taps),
                    (teacher, method.teacher_taps),
                ):
                    models.Taps(model, taps).close()
            assert (method is None) == (name == "none")


def test_an_unknown_method_and_a_missing_teacher_are_refused(published, files):
    data = published.read_cifar100(files)
    with says("unknown method 'kdd' (did you mean 'kd'"):
        published.run(data, None, "resnet8", "kdd")
    with says("teacher: "):
        published.run(data, None, "resnet8", "kd", epochs=1, device="cpu")
    assert isinstance(models.build("ShuffleV1", 5), nn.Module)
