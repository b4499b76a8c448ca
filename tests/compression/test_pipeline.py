"""The whole chain, from the teacher to a file that a fresh process answers from."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small import make_data, make_model
from torch import nn

from kdlab.compression import (
    compress,
    load,
    measure_file,
    prune_channels,
    quantize,
    recover,
)
from kdlab.distillers import SoftTargets
from kdlab.metrics import accuracy, agreement, negative_log_likelihood
from kdlab.models import build_for, count_parameters
from kdlab.training import fit, predict

DATA = make_data()
X = DATA.test.x
RAW = X * DATA.std[0] + DATA.mean[0]
QUICK = {"epochs": 6, "batch_size": 64, "lr": 0.05}


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    teacher = fit(make_model("mlp", DATA, hidden=(128,)), DATA, **QUICK).model
    student = build_for("mlp", DATA.shape, 4, seed=0, hidden=(64,))
    seen: dict[str, nn.Module] = {}

    def noted(name, model):
        seen[name] = model
        return model

    steps = {
        "distil": lambda m: noted(
            "distil", fit(m, DATA, SoftTargets(), teacher=teacher, **QUICK).model
        ),
        "prune": lambda m: noted("prune", prune_channels(m, X[:2], 0.5)),
        "recover": lambda m: recover(m, DATA, teacher, **QUICK) and None,
        "quantize": lambda m: noted("quantize", quantize(m, DATA)),
    }
    path = tmp_path_factory.mktemp("chain") / "student.onnx"
    deployed, report = compress(student, DATA, steps, path=path, teacher=teacher, runs=3)
    return teacher, seen, deployed, report.set_index("step")


def test_a_row_for_the_teacher_the_start_and_each_step(chain):
    teacher, _, _, report = chain
    assert list(report.index) == ["teacher", "start", "distil", "prune", "recover", "quantize"]
    assert report.parameters["teacher"] == count_parameters(teacher)
    assert report.parameters["prune"] == report.parameters["recover"]
    assert report.parameters["prune"] < 0.6 * report.parameters["distil"]
    assert report.flops["prune"] < 0.6 * report.flops["distil"]
    assert report.bytes["quantize"] < report.bytes["recover"] < report.bytes["distil"]
    assert (report.threads == 1).all() and (report.batch == 1).all()


def test_scores_are_those_of_the_test_images(chain):
    teacher, _, deployed, report = chain
    wanted = predict(teacher, X)
    assert report.accuracy["teacher"] == accuracy(wanted, DATA.test.y)
    assert report.agreement["teacher"] == 1
    last = deployed(RAW)
    assert report.nll["quantize"] == negative_log_likelihood(last, DATA.test.y)
    assert report.accuracy["quantize"] == accuracy(last, DATA.test.y) > 0.85
    assert report.agreement["quantize"] == agreement(last, wanted)
    on_val = deployed(DATA.val.x * DATA.std[0] + DATA.mean[0])
    assert report.val_accuracy["quantize"] == accuracy(on_val, DATA.val.y)
    assert report.accuracy["start"] < report.accuracy["distil"]


def test_times_are_those_of_one_thread_whatever_pytorch_has(chain):
    _, seen, deployed, _ = chain
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        row = measure_file(deployed.path, seen["quantize"], DATA, runs=3)
    finally:
        torch.set_num_threads(before)
    assert row["threads"] == 1


def test_the_file_is_the_last_step_and_a_fresh_process_answers_from_it(chain, tmp_path):
    _, seen, deployed, report = chain
    assert report.bytes["quantize"] == deployed.path.stat().st_size
    assert deployed.card == {"step": "quantize"}
    whole = predict(seen["quantize"], X)
    assert (deployed(RAW) - whole).abs().max() < 0.05 * whole.abs().max()
    np.save(tmp_path / "images.npy", RAW[:5].numpy())
    code = (
        "import sys, json, numpy, kdlab.compression as c;"
        "print(json.dumps(c.load(sys.argv[1]).predict(numpy.load(sys.argv[2]))))"
    )
    command = [sys.executable, "-c", code, deployed.path, tmp_path / "images.npy"]
    root = Path(__file__).parents[2]
    told = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True).stdout
    assert json.loads(told) == deployed.predict(RAW[:5])


def test_a_step_that_fails_is_named_and_leaves_the_last_whole_file(tmp_path):
    model = make_model("mlp", DATA)

    def fail(m):
        raise ValueError("no luck")

    with pytest.raises(ValueError, match="no luck") as caught:
        compress(model, DATA, {"try": fail}, path=tmp_path / "m.onnx", runs=3)
    assert caught.value.__notes__ == ["in the step 'try'"]
    left = load(tmp_path / "m.onnx")
    assert left.card == {"step": "start"}
    torch.testing.assert_close(left(RAW), predict(model, X), rtol=1e-4, atol=1e-4)


def test_what_is_no_chain_is_said(tmp_path):
    model = make_model("mlp", DATA)
    with pytest.raises(ValueError, match="steps: none came"):
        compress(model, DATA, {}, path=tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=r"path: 'm\.pt2' came"):
        compress(model, DATA, {"x": lambda m: m}, path=tmp_path / "m.pt2")


def test_a_step_may_return_a_model_without_a_length(monkeypatch, tmp_path):
    """It is false in an `if`, and a compiled model cannot even be asked."""

    class Empty(nn.Module):
        def __len__(self) -> int:
            return 0

    pipeline = importlib.import_module("kdlab.compression.pipeline")
    seen = []
    monkeypatch.setattr(pipeline, "export", lambda model, *args, **options: seen.append(model))
    monkeypatch.setattr(pipeline, "measure_file", lambda *args, **options: {})
    monkeypatch.setattr(pipeline, "load", lambda path: None)
    start, end = make_model("mlp", DATA), Empty()
    steps = {"nothing": lambda m: None, "empty": lambda m: end}
    compress(start, DATA, steps, path=tmp_path / "m.onnx")
    assert seen == [start, start, end]
