"""The claims of lesson 06: what does not compress, recover or ship must fail them."""

from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from kdlab import compression, metrics, models, plots, training
from kdlab.datasets import from_arrays
from kdlab.lab.session import ClaimError, Lab

LESSON = Path(__file__).parents[2] / "notebooks" / "06_compression.ipynb"


@pytest.fixture(scope="module")
def cells():
    return {cell["id"]: cell.source for cell in nbformat.read(LESSON, 4).cells}


@pytest.fixture(scope="module")
def small():
    """Four noisy patterns, and a network that tells them apart."""
    rng = np.random.default_rng(0)
    patterns = rng.random((4, 12, 12, 1))

    def draw(count):
        y = np.arange(count) % 4
        x = 0.6 * patterns[y] + 0.4 * rng.random((count, 12, 12, 1))
        return x.astype(np.float32), y

    x_val, y_val = draw(64)
    data = from_arrays(*draw(256), *draw(256), x_val=x_val, y_val=y_val)
    teacher = models.build_for("cnn_tiny", data.shape, 4, seed=0)
    training.fit(teacher, data, epochs=6, batch_size=32, validate=False, device="cpu")
    return data, teacher.eval()


@pytest.fixture
def world(small, tmp_path, monkeypatch):
    """What the lesson has defined before the cell that is tried."""
    monkeypatch.setenv("KDLAB_RECORDS", str(tmp_path / "records"))
    data, teacher = small
    names = {
        "data": data, "few": data, "teacher": teacher, "example": data.test.x[:1],
        "share": 0.5, "bits": 4, "lab": Lab("test", {}), "torch": torch, "pd": pd,
        "plots": plots, "metrics": metrics, "training": training, "folder": tmp_path,
    }  # fmt: skip
    names["accuracy"] = lambda m: metrics.accuracy(training.predict(m, data.test.x), data.test.y)
    names["cost"] = lambda m: metrics.cost(m, data.test.x[:1], runs=3, seconds=0.01)
    return names


def with_(**replaced):
    """The package with some of its functions replaced."""
    return SimpleNamespace(**vars(compression) | replaced)


def only_masks(model, example, share):
    return compression.prune_weights(model, share)


def test_pruning_that_shrinks_shapes_passes_and_a_mask_fails(cells, world, capsys):
    exec(cells["prune"], world | {"compression": compression})
    assert capsys.readouterr().out.count("✓") == 3
    with pytest.raises(ClaimError, match="without the channels"):
        exec(cells["prune"], world | {"compression": with_(prune_channels=only_masks)})


def test_weights_that_are_not_zero_or_are_counted_out_fail(cells, world):
    kept = with_(prune_weights=lambda model, share: model)
    with pytest.raises(ClaimError, match="is zero"):
        exec(cells["prune"], world | {"compression": kept})

    def honest(model):
        price = metrics.cost(model, world["example"], runs=3, seconds=0.01)
        nonzero = sum(int(w.count_nonzero()) for w in model.parameters())
        return SimpleNamespace(**vars(price) | {"parameters": nonzero})

    with pytest.raises(ClaimError, match="what it cost before"):
        exec(cells["prune"], world | {"compression": compression, "cost": honest})


WAYS = ("labels", "unpruned model", "the same, two steps")


@pytest.mark.parametrize(
    ("means", "missing"),
    [
        ((0.83, 0.86, 0.85), None),
        ((0.86, 0.86, 0.85), "more comes back"),
        ((0.83, 0.86, 0.89), "two steps"),
        ((0.30, 0.86, 0.85), "a few epochs"),
    ],
)
def test_recovery(cells, world, means, missing):
    rows = [
        {"recovered by": way, "seed": seed, "accuracy": mean + 0.001 * seed}
        for way, mean in zip(WAYS, means, strict=True)
        for seed in range(3)
    ]
    scores = {"whole": 0.94, "cut": 0.08}
    names = world | {"teacher": "whole", "pruned": {"channels": "cut"}, "rows": rows}
    names["accuracy"] = scores.__getitem__
    if missing is None:
        exec(cells["claim-recover"], names)
    else:
        with pytest.raises(ClaimError, match=missing):
            exec(cells["claim-recover"], names)


def test_rounding_by_hand_finds_a_package_that_rounds_otherwise(cells, world):
    world["lab"] = Lab("test", {"dataset": "mine"}, {"dataset": "glyphs"})  # laws alone are errors
    exec(cells["scratch"], world | {"compression": compression})

    def one_level_more(model, bits):
        return compression.round_weights(model, bits + 1)

    with pytest.raises(ClaimError, match="package's round_weights"):
        exec(cells["scratch"], world | {"compression": with_(round_weights=one_level_more)})


def test_whole_numbers_that_are_floats_fail(cells, world):
    names = world | {"TemporaryDirectory": lambda: SimpleNamespace(name=world["folder"])}
    names |= {"Path": Path, "compression": with_(quantize=lambda model, data: model)}
    with pytest.raises(ClaimError, match="shrinks"):
        exec(cells["int8"], names)


def test_a_fresh_process_answers_and_notices_wrong_preprocessing(cells, world, small, tmp_path):
    import json
    import subprocess
    import sys

    data, teacher = small
    path = compression.export(teacher, tmp_path / "m.onnx", data)
    report = pd.DataFrame({"accuracy": {"quantize": world["accuracy"](teacher)}})
    names = world | {"json": json, "subprocess": subprocess, "sys": sys, "report": report}
    names["deployed"] = compression.load(path)
    exec(cells["ship"], names)
    inverted = SimpleNamespace(test=data.test, mean=(1.0,), std=(-1.0,), classes=data.classes)
    with pytest.raises(ClaimError, match="as often right"):
        exec(cells["ship"], names | {"data": inverted})
