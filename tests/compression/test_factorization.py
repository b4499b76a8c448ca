"""Low rank against NumPy's best approximation, layer by layer and whole."""

import copy

import numpy as np
import pytest
import torch
from small import make_data, make_model
from torch import nn

from kdlab.compression import factorize, recover
from kdlab.metrics import cost, evaluate
from kdlab.models import Taps, build, count_parameters
from kdlab.training import predict

DATA = make_data()
X = DATA.test.x


def low_rank(rows: int, columns: int, rank: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))).float()


def product(halves: nn.Module) -> np.ndarray:
    first, second = (half.weight.detach().flatten(1).double().numpy() for half in halves)
    return second @ first


@pytest.mark.parametrize("energy", [0.5, 0.8, 0.95])
def test_a_linear_layer_becomes_the_nearest_of_the_least_rank(energy):
    layer = nn.Linear(60, 50)
    layer.weight.data.mul_(torch.linspace(0.02, 2, 60).square())  # some directions matter more
    halves = factorize(nn.Sequential(layer), energy)[0]
    weight = layer.weight.detach().double().numpy()
    sigma = np.linalg.svd(weight, compute_uv=False)
    shares = np.cumsum(sigma**2) / np.sum(sigma**2)
    rank = 1 + np.flatnonzero(shares >= energy)[0]
    assert len(halves[0].weight) == rank
    error = np.linalg.norm(product(halves) - weight)
    assert error == pytest.approx(np.sqrt(np.sum(sigma[rank:] ** 2)), rel=1e-4)
    assert torch.equal(halves[1].bias, layer.bias) and halves[0].bias is None
    sizes = [float(half.weight.detach().norm()) for half in halves]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 5), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
        {"kernel_size": 1, "bias": False},
        {"kernel_size": 3, "padding": "same", "padding_mode": "reflect"},
    ],
)
def test_a_convolution_of_low_rank_is_split_without_a_difference(options):
    layer = nn.Conv2d(6, 12, **options)
    columns = layer.weight[0].numel()
    layer.weight.data.copy_(low_rank(12, columns, 3).view_as(layer.weight))
    halves = factorize(nn.Sequential(layer), 1.0)[0]
    assert halves[0].weight.shape == (3, *layer.weight.shape[1:])
    x = torch.randn(2, 6, 14, 14, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(halves(x), layer(x), rtol=1e-4, atol=1e-3)
    assert factorize(layer, 1.0)(x).shape == layer(x).shape  # the layer is the whole model


def test_only_what_saves_is_split():
    full = nn.Linear(20, 20)
    nn.init.orthogonal_(full.weight)
    depthwise = nn.Conv2d(8, 8, 3, groups=8)
    model = nn.ModuleList([full, depthwise, nn.Linear(3, 1)])
    assert [type(m) for m in factorize(model, 0.9)] == [nn.Linear, nn.Conv2d, nn.Linear]
    half = nn.Linear(20, 20)  # rank 10 takes 10 · 40 = 20 · 20 parameters: nothing is saved
    half.weight.data.copy_(low_rank(20, 20, 10))
    assert isinstance(factorize(nn.Sequential(half), 1.0)[0], nn.Linear)
    half.weight.data.copy_(low_rank(20, 20, 9))
    assert isinstance(factorize(nn.Sequential(half), 1.0)[0], nn.Sequential)


@pytest.mark.parametrize("name", ["cnn_small", "resnet8", "vgg8", "mobilenetv2", "mlp"])
def test_models_get_smaller_and_cheaper_and_go_on_working(name):
    model = make_model(name, DATA)
    before = copy.deepcopy(model.state_dict())
    small = factorize(model, 0.5)
    whole, cheap = cost(model, X[:1], runs=3), cost(small, X[:1], runs=3)
    assert cheap.parameters < 0.95 * whole.parameters and cheap.flops < whole.flops
    assert cheap.bytes < whole.bytes
    assert small(X).shape == (len(X), 4) and not small.training
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_a_transformer_keeps_its_taps():
    model = build("transformer", 3, vocabulary=60, width=16, depth=1, seed=0).eval()
    small = factorize(model, 0.5)
    assert count_parameters(small) < count_parameters(model)
    with Taps(small, ["blocks.0.attention.query"]) as taps:
        small(torch.ones(2, 5, dtype=torch.int64))
        assert taps["blocks.0.attention.query"].shape == (2, 5, 16)


def test_what_was_lost_comes_back():
    model = make_model("cnn_small", DATA)
    options = {"epochs": 6, "batch_size": 64, "lr": 0.1}
    recover(model, DATA, **options)
    small = factorize(model, 0.6)
    lost = evaluate(predict(small, X), DATA.test.y)["accuracy"]
    recover(small, DATA, model, **options)
    assert lost < 0.9 < evaluate(predict(small, X), DATA.test.y)["accuracy"]


@pytest.mark.parametrize("energy", [0, 1.1, float("nan"), "all"])
def test_impossible_energies_are_named(energy):
    with pytest.raises(ValueError, match="energy: "):
        factorize(nn.Linear(4, 4), energy)
