"""Published checkpoints: each name loads and answers as an independent network, or is refused."""

import argparse
import pickle
import re

import benchmark_models
import numpy as np
import pytest
import torch

from kdlab.datasets import Split
from kdlab.distillers import ActivationBoundary, Overhaul, Review
from kdlab.losses import batch_norm_margin
from kdlab.models import Taps, build, load_published, paths, preactivation
from kdlab.models.published import PUBLISHED

FAMILIES = ("resnet8", "resnet50", "wrn_16_1", "vgg8")
FAMILIES = (*FAMILIES, "mobilenetv2", "shufflenetv1", "shufflenetv2")
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def made(name, classes=100):
    """Logits of the independent network on IMAGES, its maps, and a state dict with its names."""
    with torch.no_grad():
        return benchmark_models.forward(name, IMAGES, classes)


def saved(tmp_path, content, name="ckpt_epoch_240.pth"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def refuses(*parts):
    return pytest.raises(ValueError, match="^" + ".*".join(map(re.escape, parts)))


def test_all_published_names_are_known():
    assert set(PUBLISHED) == set(benchmark_models.NAMES)
    assert len(PUBLISHED) == 22  # RepDistiller's 23, but for mobile_full, which is an option


@pytest.mark.parametrize("name", benchmark_models.NAMES)
def test_names_and_shapes_agree(name, tmp_path):
    """A checkpoint of each architecture fits; the logits are compared for each family."""
    logits, _, weights = made(name)
    path = saved(tmp_path, {"epoch": 240, "model": weights, "accuracy": torch.tensor(73.0)})
    model = load_published(name, path)
    assert not model.training
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), logits, rtol=2e-3, atol=2e-3 * logits.std())


@pytest.mark.parametrize("alias", ["ShuffleV2", "mobile_half"])
def test_the_repositories_own_names_and_another_number_of_classes(alias, tmp_path):
    name = {"ShuffleV2": "shufflenetv2", "mobile_half": "mobilenetv2"}[alias]
    logits, _, weights = made(name, 7)
    with torch.no_grad():
        found = load_published(alias, saved(tmp_path, weights), num_classes=7)(IMAGES)
    torch.testing.assert_close(found, logits, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda weights: weights,
        lambda weights: {"state_dict": weights},
        lambda weights: {"module." + name: weight for name, weight in weights.items()},
        lambda weights: {"model": dict(reversed(weights.items()))},
        lambda weights: {k: v for k, v in weights.items() if "num_batches" not in k},
        lambda weights: {
            "model": {f"module.student.{k}": v for k, v in weights.items()}
            | {f"module.teacher.{k}": v + 1 for k, v in weights.items()},
            "optimizer": {"lr": 0.1},
        },
        lambda weights: {"model": {k: v.double() for k, v in weights.items()}},
    ],
    ids=["plain", "state_dict", "DataParallel", "reversed", "old PyTorch", "mdistiller", "double"],
)
def test_all_forms_of_a_file(wrapped, tmp_path):
    logits, _, weights = made("resnet8")
    model = load_published("resnet8", saved(tmp_path, wrapped(weights)))
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), logits, rtol=1e-3, atol=1e-3)


def test_its_own_file_is_read_too_and_an_old_one(tmp_path):
    model = build("wrn_16_1", 100, seed=0)
    again = load_published("wrn_16_1", saved(tmp_path, model.state_dict()))
    assert torch.equal(again.head.weight, model.head.weight)
    logits, _, weights = made("wrn_16_1")
    torch.save({"model": weights}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with torch.no_grad():
        found = load_published("wrn_16_1", tmp_path / "old.pth")(IMAGES)
    torch.testing.assert_close(found, logits, rtol=1e-3, atol=1e-3)


class Evil:
    ran = False

    def __reduce__(self):
        return setattr, (Evil, "ran", True)


def test_what_is_no_checkpoint_of_this_model_is_refused_by_name(tmp_path):
    _, _, weights = made("resnet8")
    path = saved(tmp_path, weights)
    with refuses("num_classes: got 10, expected 100", "give num_classes=100"):
        load_published("resnet8", path, num_classes=10)
    with refuses("path: got", "not those of 'resnet14'", "missing (stage1.1.conv1.weight"):
        load_published("resnet14", path)
    with refuses("path: got", "not those of 'resnet20'"):
        load_published("resnet20", saved(tmp_path, made("vgg8")[2]))
    with refuses("path: got", "other shapes than 'mobilenetv2' has", "instead of"):
        load_published("mobile_half", saved(tmp_path, made("mobilenetv2")[2]), width=1.0)
    with refuses("name: got 'cnn_tiny', expected a model with published weights: resnet8"):
        load_published("cnn_tiny", path)
    with refuses("unknown model 'resnet57'"):
        load_published("resnet57", path)
    with refuses("path: got", "no such file"):
        load_published("resnet8", tmp_path / "nothing.pth")
    whole = saved(tmp_path, weights).read_bytes()
    for number, content in enumerate((whole[:1000], whole[: len(whole) // 2], b"", b"no file")):
        (tmp_path / f"{number}.pth").write_bytes(content)
        with refuses("path: got", "cannot be read as plain tensors"):
            load_published("resnet8", tmp_path / f"{number}.pth")
    with refuses("path: got", "cannot be read as plain tensors"):
        load_published(
            "resnet8", saved(tmp_path, {"model": weights, "opt": argparse.Namespace(lr=0.1)})
        )
    with (tmp_path / "evil.pth").open("wb") as file:
        pickle.dump(Evil(), file, protocol=2)
    with refuses("path: got", "cannot be read as plain tensors"):
        load_published("resnet8", tmp_path / "evil.pth")
    with refuses("path: got", "cannot be read as plain tensors"):
        load_published("resnet8", saved(tmp_path, build("resnet8", 100)))
    assert not Evil.ran
    for content in ([1, 2], {"model": 3}, {}, {"model": {}}, torch.zeros(3), {1: torch.zeros(2)}):
        with refuses("path: got", "expected a"):
            load_published("resnet8", saved(tmp_path, content))
    weights["layer1.0.conv1.weight"][:] = torch.nan
    with refuses("path: got", "NaN or infinite logits"):
        load_published("resnet8", saved(tmp_path, weights))


# ---- positions before the activation: one table for every family ------------------------------

TRAIN = Split(IMAGES[..., ::2, ::2], torch.zeros(2, dtype=torch.int64))
STAGES = ("stage1", "stage2", "stage3")


def model_and_maps(name, tmp_path):
    _, maps, weights = made(name)
    return load_published(name, saved(tmp_path, weights)), maps


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_are_read_where_published_code_reads_them(name, tmp_path):
    """AB and OFD on both sides, and Review's teacher, in values; `paths` shows the same places."""
    model, maps = model_and_maps(name, tmp_path)
    student = build("resnet8", 100, seed=0).eval()
    stages = [f"stage{number}" for number in range(1, len(maps) + 1)]
    rows = {row.path: row for row in paths(model, IMAGES)}
    places = [rows[stage].preactivation for stage in stages]
    assert places == [preactivation(model, stage, IMAGES) for stage in stages]
    with Taps(model, places) as taps, torch.no_grad():
        model(IMAGES)
        for place, expected in zip(places, maps, strict=True):
            torch.testing.assert_close(taps[place], expected, rtol=1e-3, atol=1e-3)
    if name == "resnet50":
        return  # large, and as resnet8
    for method in (ActivationBoundary(), Overhaul(), Review()):
        with torch.no_grad():
            method.prepare(student, model, TRAIN)
        assert list(method.teacher_taps) == places[:3], type(method).__name__
    for method in (ActivationBoundary(), Overhaul(), Review()):
        with torch.no_grad():
            method.prepare(model, student, TRAIN)
        expected = places[:3] if not isinstance(method, Review) else list(STAGES)
        assert list(method.student_taps) == expected, type(method).__name__


POSITIONS = {
    "resnet20": ("stage1.2.act2:input", "stage2.2.act2:input", "stage3.2.act2:input"),
    "wrn_16_2": ("stage2.0.act1:input", "stage3.0.act1:input", "norm.1:input"),
    "wrn_40_1": ("stage2.0.act1:input", "stage3.0.act1:input", "norm.1:input"),
    "vgg8": ("stage1.3:input", "stage2.3:input", "stage3.3:input"),
    "mobilenetv2": STAGES,
    "cnn_tiny": ("stage1.2:input", "stage2.3:input", "stage3.3:input"),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_the_paths_of_these_positions(name):
    model = build(name, 5, seed=0)
    assert tuple(preactivation(model, stage, IMAGES) for stage in STAGES) == POSITIONS[name]


def test_positions_in_models_of_ones_own():
    """A dense block, any norm, an activation in place, a norm that no activation follows."""

    class Dense(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.part = torch.nn.Conv2d(3, 4, 1)
            self.late = torch.nn.Sequential(torch.nn.ReLU(inplace=True), torch.nn.Conv2d(7, 5, 1))
            self.norm = torch.nn.BatchNorm2d(7)  # defined after what runs after it

        def forward(self, x):
            return self.late(self.norm(torch.cat([x, self.part(x)], 1)))

    dense = Dense()
    assert preactivation(dense, "part", IMAGES) == "part"
    row = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), dense.norm, torch.nn.ReLU(inplace=True))
    row[1] = torch.nn.GroupNorm(2, 4)
    assert [preactivation(row, path, IMAGES) for path in "012"] == ["2:input", "1", "2:input"]
    tokens = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1), torch.nn.LayerNorm(32), torch.nn.Linear(32, 8), torch.nn.GELU()
    )
    assert [preactivation(tokens, path, IMAGES) for path in "0123"] == ["0", "1", "2", "3:input"]
    for wrong in ("stage9", "0:input"):
        with refuses("paths: the model has no layer"):
            preactivation(row, wrong, IMAGES)
    vit = build("vit", 5, patch=8)
    assert preactivation(vit, "blocks.1", IMAGES) == "blocks.1"


def test_the_margin_of_a_wide_resnet_is_that_of_the_norm_it_reads(tmp_path):
    teacher, _ = model_and_maps("wrn_16_1", tmp_path)
    method = Overhaul()
    with torch.no_grad():
        method.prepare(build("cnn_tiny", 100).eval(), teacher, TRAIN)
    norms = (teacher.stage2[0].bn1, teacher.stage3[0].bn1, teacher.norm[0])
    for number, norm in enumerate(norms):
        expected = batch_norm_margin(norm)
        torch.testing.assert_close(method.get_buffer(f"margin{number}"), expected)


def test_what_paths_prints():
    rows = {row.path: row for row in paths(build("wrn_16_1", 5), IMAGES)}
    assert repr(rows["stage1"]) == (
        "TapPath('stage1', 'Sequential', (2, 16, 32, 32), preactivation='stage2.0.act1:input')"
    )
    assert rows["stage1"] == ("stage1", "Sequential", (2, 16, 32, 32))
    plain = {row.path: row for row in paths(build("wrn_16_1", 5))}
    assert plain["stage1"].preactivation is None and "preactivation" not in repr(plain["stage1"])
    assert np.prod(rows["head"].shape) == 10
