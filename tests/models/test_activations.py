"""Activations: found in any model, swapped in all of ours, numbers otherwise as they were."""

import pytest
import torch
from torch import nn

from kdlab import models
from kdlab.models import Taps, before_activation, build, build_for, paths
from kdlab.models.activations import ACTIVATIONS, KINDS, swap_activations

# texts: test_text_models.py; ResNet-50 is large, and built as the smaller ones
IMAGES = [name for name in models.available((3, 16, 16)) if name != "resnet50"]


def images(size=16, batch=2):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def activations(model):
    return [module for module in model.modules() if isinstance(module, KINDS)]


class Reused(nn.Module):
    """One ReLU, defined first and used twice, the second time last, as in many public models."""

    def __init__(self, inplace=False):
        super().__init__()
        self.relu = nn.ReLU(inplace)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.relu(self.second(self.relu(self.first(x))) + x)


class Branches(nn.Module):
    """The activation runs last, but another branch is added after it."""

    def __init__(self):
        super().__init__()
        self.linear, self.act = nn.Linear(4, 4), nn.ReLU()

    def forward(self, x):
        return self.linear(x) + self.act(x)


class Late(nn.Module):
    """The activation is defined last and runs first; one part never runs."""

    def __init__(self):
        super().__init__()
        self.linear, self.act, self.unused = nn.Linear(4, 4), nn.ReLU(), nn.ReLU()
        self.part = Reused()

    def forward(self, x):
        return self.linear(self.act(x))


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("activation", [None, "silu"])
def test_every_part_before_its_activation(name, activation):
    """Definition gives the same path as a run, and the activation of what it reads is the part."""
    model = build_for(name, (3, 16, 16), 5, seed=0, activation=activation).eval()
    parts = [row.path for row in paths(model, images()) if row.shape is not None]
    if len(parts) > 40:
        parts = [part for part in parts if part.count(".") < 2]
    before = {part: before_activation(model, part) for part in parts}
    with Taps(model, [*parts, *before.values()]) as taps, torch.no_grad():
        model(images())
    for part, path in before.items():
        leaf = path.removesuffix(":input")
        if path == part:
            inside = [p for p in parts if p == part or p.startswith(f"{part}.")]
            assert not any(taps[part] is taps[p] for p in inside if _is_activation(model, p)), part
        else:
            assert leaf == part or leaf.startswith(f"{part}.")
            assert torch.equal(model.get_submodule(leaf)(taps[path]), taps[part])
    for part in ("stem", "stage2", "stage1.0", "activation"):
        if part in parts:
            assert before_activation(model, part, images()) == before[part]


def _is_activation(model, path):
    return isinstance(model.get_submodule(path), KINDS)


@pytest.mark.parametrize(
    ("name", "part", "expected"),
    [
        ("cnn_tiny", "stage2", "stage2.3:input"),
        ("cnn_tiny", "stage2.3", "stage2.3:input"),
        ("cnn_tiny", "stage2.1", "stage2.1"),
        ("resnet20", "stage3", "stage3.2.act2:input"),
        ("vgg13", "stage1", "stage1.6:input"),
        ("wrn_16_1", "stage2", "stage2"),
        ("wrn_16_1", "norm", "norm.1:input"),
        ("mobilenetv2", "stage2", "stage2"),
        ("mobilenetv2", "mix", "mix.2:input"),
        ("mlp", "layers.0", "layers.0"),
        ("mlp", "activation", "activation:input"),
        ("resnet20", "pool", "pool"),
    ],
)
def test_paths_before_the_activation(name, part, expected):
    assert before_activation(build(name, 5), part) == expected


def test_a_model_of_your_own_needs_a_run():
    x = torch.randn(3, 4)
    model = nn.Sequential(Reused(), Branches(), Late())
    assert before_activation(model, "0", x) == "0.relu:input"
    assert before_activation(model, "0") == "0"  # by definition, `second` is the last one
    assert before_activation(model, "1", x) == "1"
    assert before_activation(model, "2", x) == "2"
    with Taps(model, ["0", "0.relu:input"]) as taps:
        model(x)
        assert torch.equal(taps["0.relu:input"].relu(), taps["0"])
    inplace = nn.Sequential(Reused(inplace=True))
    assert before_activation(inplace, "0", x) == "0.relu:input"


def test_the_run_leaves_the_model_as_it_was():
    model = build("resnet8", 5, seed=0)
    model.stage1.eval()
    modes = [module.training for module in model.modules()]
    means = model.stem[1].running_mean.clone()
    before_activation(model, "stage1", images())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model.stem[1].running_mean, means)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("example", [None, torch.zeros(1, 3, 16, 16)])
@pytest.mark.parametrize("wrong", ["stage4", "stage2:input", ""])
def test_an_unknown_part(wrong, example):
    with pytest.raises(ValueError, match=r"no layer .*; its parts: stem, stage1") as caught:
        before_activation(build("resnet8", 5), wrong, example)
    assert ("did you mean 'stage" in str(caught.value)) == bool(wrong)


def test_a_part_that_does_not_run():
    with pytest.raises(ValueError, match=r"path: no forward of '0.part' when"):
        before_activation(nn.Sequential(Late()), "0.part", torch.randn(3, 4))


@pytest.mark.parametrize("name", IMAGES)
def test_every_activation_is_swapped_and_nothing_else_changes(name):
    plain = build_for(name, (3, 16, 16), 5, seed=0)
    smooth = build_for(name, (3, 16, 16), 5, seed=0, activation="softplus")
    assert len(activations(plain)) == len(activations(smooth)) > 0
    published = nn.GELU if name == "vit" else nn.ReLU
    assert all(type(module) is published for module in activations(plain))
    assert all(type(module) is nn.Softplus for module in activations(smooth))
    assert plain.state_dict().keys() == smooth.state_dict().keys()
    assert all(map(torch.equal, plain.state_dict().values(), smooth.state_dict().values()))
    with torch.no_grad():
        assert not torch.allclose(plain(images()), smooth(images()))
    names = {type(module).__name__ for module in smooth.modules()}
    assert published.__name__ not in names


@pytest.mark.parametrize("name", ["mlp", "cnn_tiny", "resnet8", "wrn_16_1", "vgg8", "mobilenetv2"])
def test_relu_again_is_the_published_model(name):
    model = build_for(name, (3, 16, 16), 5, seed=0)
    again = build_for(name, (3, 16, 16), 5, seed=0, activation="relu")
    assert torch.equal(model(images()), again(images()))
    swap_activations(model, "silu")
    assert not torch.equal(model(images()), again(images()))
    swap_activations(model, "relu")
    assert torch.equal(model(images()), again(images()))


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "cnn_tiny", "mlp"])
def test_no_hidden_relu_is_left(name):
    """With tanh everywhere a model is smooth: its second derivative is not zero."""
    model = build_for(name, (3, 8, 8), 5, seed=0, activation="tanh").double().eval()
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(model(x)[0, 0], x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.square().sum(), x)
    assert curvature.abs().max() > 0
    calls = []
    original = torch.relu
    torch.relu = lambda *a: calls.append(a) or original(*a)
    try:
        model(x)
    finally:
        torch.relu = original
    assert not calls


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_mlp_takes_the_same_names(activation):
    kind = ACTIVATIONS[activation]
    assert type(models.MLP(3, activation=activation).activation) is kind
    assert type(build("mlp", 3, activation=activation).activation) is kind
    assert type(build("cnn_tiny", 3, activation=activation).stem[2]) is kind


def test_relu6_and_shared_modules_are_replaced():
    shared = nn.ReLU6()
    model = nn.Sequential(shared, nn.Linear(2, 2), nn.Sequential(shared), nn.PReLU()).eval()
    swap_activations(model, "silu")
    assert type(model[0]) is nn.SiLU and model[0] is model[2][0]
    assert type(model[3]) is nn.SiLU and model[3] is not model[0]
    assert not model[0].training
    with pytest.raises(ValueError, match="unknown activation 'swish'; known: relu"):
        swap_activations(model, "swish")
