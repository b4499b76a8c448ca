"""8 bits: against NumPy's rounding, in the file, and in the other runtime."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small import make_data, make_model
from torch import nn

from kdlab.compression import (
    export,
    load,
    quantize,
    quantize_aware,
    quantize_file,
    round_weights,
)
from kdlab.datasets import Data, Split
from kdlab.metrics import cost
from kdlab.models import build_for, count_parameters
from kdlab.training import fit, predict

DATA = make_data()
X = DATA.test.x
RAW = X * DATA.std[0] + DATA.mean[0]
ROOT = str(Path(__file__).parents[2])


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    model = make_model("cnn_small", DATA)
    fit(model, DATA, epochs=5, batch_size=64, lr=0.1)
    return model


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, as a share of the largest logit."""
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_rounded_weights_are_numpys(bits):
    model = make_model("cnn_tiny", DATA)
    model.stem[0].weight.data[0] = 0  # a filter that has no scale
    rounded = round_weights(model, bits)
    for old, new in zip(model.parameters(), rounded.parameters(), strict=True):
        want = old.detach().double().numpy()
        if old.dim() > 1:
            rows = want.reshape(len(want), -1)
            most = np.abs(rows).max(1, keepdims=True)
            scale = np.where(most == 0, 1, most) / (2 ** (bits - 1) - 1)
            want = (scale * np.round(rows / scale)).reshape(want.shape)
        np.testing.assert_allclose(new.detach().numpy(), want, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="bits: 1 came"):
        round_weights(model, 1)


@pytest.mark.parametrize("name", ["mlp", "cnn_tiny", "resnet8", "mobilenetv2", "wrn_16_1"])
def test_weights_are_whole_numbers_and_nothing_else_is_stored(name):
    model = make_model(name, DATA)
    before = copy.deepcopy(model.state_dict())
    quantized = quantize(model, DATA, samples=64)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    whole = [t for t in quantized.state_dict().values() if t.dtype == torch.int8]
    assert sorted(t.shape for t in whole) == sorted(m.weight.shape for m in layers)
    assert all(int(t.min()) >= -64 and int(t.max()) <= 63 for t in whole)  # 7 bits: see quantize
    assert not {m.weight.shape for m in layers} & {t.shape for t in quantized.parameters()}
    assert gap(predict(quantized, X), predict(model, X)) < 0.15
    assert count_parameters(quantized) <= count_parameters(model) + sum(
        len(m.weight) for m in layers
    )  # batch norms became biases
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_a_linear_layer_by_hand():
    """Logits are s_x (q_x - o) · s_w q_w + b, computed in NumPy from ranges seen in training."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 4))
    quantized = quantize(model, DATA, samples=256)
    state = {
        n.removeprefix("graph."): t.double().numpy() for n, t in quantized.state_dict().items()
    }
    whole = next(t for t in quantized.state_dict().values() if t.dtype == torch.int8)
    weight, bias = (p.detach().double().numpy() for p in model[1].parameters())
    scale = np.abs(weight).max(1, keepdims=True) / 63.5
    q = np.clip(np.round(weight / scale), -64, 63)
    assert np.abs(whole.numpy() - q).max() <= 1 and (whole.numpy() == q).mean() > 0.99  # ties
    assert any(np.allclose(t, scale[:, 0]) for n, t in state.items() if "scale" in n)
    x = X.flatten(1).double().numpy()
    low, high = DATA.train.x.min().item(), DATA.train.x.max().item()
    step = (high - low) / 255
    rounded = np.clip(np.round(x / step) + round(-low / step), 0, 255) - round(-low / step)
    want = step * rounded @ (scale * q).T + bias
    np.testing.assert_allclose(predict(quantized, X).numpy(), want, atol=0.03)


def test_after_training_little_is_lost_and_the_file_is_smaller(trained, tmp_path):
    quantized = quantize(trained, DATA)
    assert gap(predict(quantized, X), predict(trained, X)) < 0.1
    float_file = export(trained, tmp_path / "float.onnx", DATA)
    file = export(quantized, tmp_path / "whole.onnx", DATA, card={"bits": 8})
    assert file.stat().st_size < 0.5 * float_file.stat().st_size
    deployed = load(file)
    assert deployed.card == {"bits": 8}
    assert deployed.parameters == cost(quantized, X[:2], runs=3).parameters
    stored = {t.data_type for t in onnx.load(file).graph.initializer if np.prod(t.dims) > 48}
    assert stored == {onnx.TensorProto.INT8}
    for n in (1, len(X)):  # the other runtime multiplies whole numbers; it may round otherwise
        assert gap(deployed(RAW[:n]), predict(quantized, X[:n])) < 0.03


def test_full_ranges_do_not_overflow(tmp_path):
    """Sums of pairs of 16 bits overflow where weights have 8 bits and inputs are large."""
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(800, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    bright = DATA.train.x.amax() * torch.ones(2, 1, 12, 12)
    quantized = quantize(model, replace(DATA, train=Split(bright, DATA.train.y[:2])))
    deployed = load(export(quantized, tmp_path / "bright.onnx", DATA))
    assert gap(deployed(bright * DATA.std[0] + DATA.mean[0]), model(bright).detach()) < 0.02


def test_no_file_knows_this_machine(trained, tmp_path):
    for name, model in (("a.onnx", trained), ("b.onnx", quantize(trained, DATA, samples=8))):
        assert ROOT.encode() not in export(model, tmp_path / name, DATA).read_bytes()


def test_ranges_come_from_the_training_samples_that_are_asked_for(trained):
    wide = replace(DATA, train=Split(DATA.train.x.clone(), DATA.train.y))
    wide.train.x[8:] *= 100
    few, many = quantize(trained, wide, samples=8), quantize(trained, wide, samples=256)
    wanted = predict(trained, X)
    assert gap(predict(few, X), wanted) < 0.3 < gap(predict(many, X), wanted)
    with pytest.raises(ValueError, match="samples: 0 came"):
        quantize(trained, DATA, samples=0)


def test_training_with_rounding_learns_under_a_teacher(trained, tmp_path):
    blind = copy.deepcopy(trained)
    blind.head.reset_parameters()  # sees, but has no words
    moments = []
    options = {"epochs": 4, "batch_size": 64, "lr": 0.05}
    student = quantize_aware(blind, DATA, trained, callbacks=[moments.append], **options)
    assert "soft" in moments[0].terms and not student.training
    agree = (predict(student, X).argmax(1) == predict(trained, X).argmax(1)).float().mean()
    before = (predict(blind, X).argmax(1) == predict(trained, X).argmax(1)).float().mean()
    assert agree > 0.8 > before
    assert any(t.dtype == torch.int8 for t in student.state_dict().values())
    deployed = load(export(student, tmp_path / "student.onnx", DATA))
    assert gap(deployed(RAW), predict(student, X)) < 0.05
    moments.clear()
    quantize_aware(trained, DATA, epochs=1, batch_size=128, lr=0.01, callbacks=[moments.append])
    assert "soft" not in moments[0].terms


def test_ranges_are_learned_in_training_only(trained, monkeypatch):
    seen = []

    def look(moment):
        student = moment.model
        before = copy.deepcopy(student.state_dict())
        predict(student, 100 * X)
        after = student.state_dict()
        ranges = [name for name in before if "val" in name or name.endswith("scale")]
        seen.append(ranges != [] and all(torch.equal(before[n], after[n]) for n in ranges))
        student.train()

    quantize_aware(trained, DATA, epochs=1, batch_size=128, lr=0.01, callbacks=[look])
    assert seen == [True, True]


def test_a_norm_that_is_not_alone_after_its_convolution_stays_apart():
    """The convolution's own values are needed too; its norm must not be folded into it."""

    class Branched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            before = self.conv(x)
            return self.head((self.norm(before).relu() + before).mean((2, 3)))

    torch.manual_seed(0)
    model = Branched().eval()
    model.norm.running_var.fill_(0.01)
    model.norm.running_mean.fill_(0.3)
    assert gap(predict(quantize(model, DATA), X), predict(model, X)) < 0.1


def texts() -> Data:
    x = torch.randint(1, 400, (6, 10), generator=torch.Generator().manual_seed(3))
    split = Split(x, torch.arange(6) % 3)
    return Data("texts", split, split, split, ("a", "b", "c"), (), (), {})


def test_a_file_of_a_transformer_is_quantized_dynamically(tmp_path):
    data = texts()
    model = build_for("transformer", (10,), 3, seed=0, vocabulary=400, depth=1).eval()
    path = export(model, tmp_path / "float.onnx", data, card={"by": "Ada"})
    small = quantize_file(path, tmp_path / "small.onnx")
    assert small.stat().st_size < 0.4 * path.stat().st_size
    deployed = load(small)
    assert deployed.card == {"by": "Ada"} and deployed.parameters == count_parameters(model)
    assert 0 < gap(deployed(data.test.x), predict(model, data.test.x)) < 0.1
    graph = onnx.load(small).graph
    assert "MatMulInteger" in {node.op_type for node in graph.node}
    stored = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    products = [n.input[1] for n in graph.node if n.op_type == "MatMulInteger"]
    weights = [stored[name] for name in products if name in stored]
    assert {w.dtype.name for w in weights} == {"int8"} and max(
        np.abs(w).max() for w in weights
    ) <= 64
    scales = [stored[n.removesuffix("_quantized") + "_scale"] for n in products if n in stored]
    assert [scale.shape for scale in scales] == [w.shape[1:] for w in weights]
    assert quantize_file(path, path) == path and path.read_bytes() == small.read_bytes()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"float\.onnx is damaged"):
        quantize_file(path, tmp_path / "other.onnx")
    convolutions = nn.Sequential(nn.Conv2d(1, 4, 12), nn.Flatten()).eval()
    alone = export(convolutions, tmp_path / "conv.onnx", DATA)
    with pytest.raises(ValueError, match=r"source: got conv\.onnx without weights of matrix"):
        quantize_file(alone, tmp_path / "none.onnx")
    assert not (tmp_path / "none.onnx").exists()
    with pytest.raises(ValueError, match=r"float\.pt2 and small\.onnx came, expected \.onnx"):
        quantize_file(tmp_path / "float.pt2", small)
