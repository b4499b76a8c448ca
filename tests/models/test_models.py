"""Models: published sizes, shapes, start of the weights, errors."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from kdlab import models
from kdlab.models import build, build_for, count_parameters

# With 100 classes and 3 channels. As printed in the tables of the CIFAR-100 distillation
# literature (CRD, SimKD and their successors).
PUBLISHED = {
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet50": 23_705_252,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg13": 9_462_180,
    "mobilenetv2": 812_836,
    "shufflenetv1": 949_258,
    "shufflenetv2": 1_355_528,
}
IMAGES = models.available((3, 32, 32))  # texts: test_text_models.py
VISION = [name for name in IMAGES if name not in ("mlp", "vit")]  # vit: test_vit.py
LIGHT = [
    name for name in VISION if name not in ("resnet50", "resnet110", "vgg13", "vgg16", "vgg19")
]


def images(channels=3, size=32, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, size, size, generator=generator)


def conv_size(before, after, size=3):
    return before * after * size**2


def resnet_size(depth, widths, classes=100):
    """Parameters of a residual network, counted from its published description alone."""
    total = conv_size(3, widths[0]) + 2 * widths[0]
    for before, width in pairwise(widths):
        convs = conv_size(before, width) + (2 * (depth - 2) // 6 - 1) * conv_size(width, width)
        norms = 2 * width * 2 * (depth - 2) // 6
        changes = before != width
        total += convs + norms + changes * (conv_size(before, width, 1) + 2 * width)
    return total + (widths[-1] + 1) * classes


def vgg_size(depths, classes=100):
    total, before = 0, 3
    for width, depth in zip((64, 128, 256, 512, 512), depths, strict=True):
        for _ in range(depth):
            total += conv_size(before, width) + width + 2 * width
            before = width
    return total + (512 + 1) * classes


@pytest.mark.parametrize(("alias", "name"), models.registry.ALIASES.items())
def test_the_repositories_names(alias, name):
    assert count_parameters(build(alias, 100)) == PUBLISHED[name]
    assert build_for(alias, (1, 8, 8), 5).stem[0].in_channels == 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_count(name):
    assert count_parameters(build(name, 100)) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet8", resnet_size(8, (16, 16, 32, 64))),
        ("resnet14", resnet_size(14, (16, 16, 32, 64))),
        ("resnet20", resnet_size(20, (16, 16, 32, 64))),
        ("resnet32x4", resnet_size(32, (32, 64, 128, 256))),
        ("vgg8", vgg_size((1, 1, 1, 1, 1))),
        ("vgg11", vgg_size((1, 1, 2, 2, 2))),
        ("vgg16", vgg_size((2, 2, 3, 3, 3))),
        ("vgg19", vgg_size((2, 2, 4, 4, 4))),
    ],
)
def test_parameter_count_from_the_description(name, expected):
    assert count_parameters(build(name, 100)) == expected


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("cnn_tiny", 5_500, 6_600), ("cnn_small", 17_000, 23_000), ("cnn_large", 80_000, 95_000)],
)
def test_lesson_models_have_their_size(name, low, high):
    assert low <= count_parameters(build(name, 36, 1)) <= high


def test_count_parameters_counts_frozen_ones_and_shared_ones_once():
    layer = nn.Linear(3, 3)
    layer.weight.requires_grad_(False)
    assert count_parameters(nn.Sequential(layer, layer, nn.BatchNorm1d(3))) == 12 + 6


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (1, 8)])
@pytest.mark.parametrize("name", VISION)
def test_logits_have_the_right_shape(name, channels, size):
    model = build(name, 7, channels).eval()
    with torch.no_grad():
        assert model(images(channels, size)).shape == (2, 7)


@pytest.mark.parametrize("name", IMAGES)
def test_build_for_fits_the_data(name):
    model = build_for(name, (1, 28, 28), 5).eval()
    with torch.no_grad():
        assert model(images(1, 28)).shape == (2, 5)


@pytest.mark.parametrize("name", IMAGES)
def test_every_parameter_gets_a_finite_gradient(name):
    model = build_for(name, (3, 16, 16), 5, seed=0)
    loss = nn.functional.cross_entropy(model(images(size=16, batch=4)), torch.arange(4))
    loss.backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        assert torch.isfinite(parameter.grad).all(), path


@pytest.mark.parametrize("name", VISION)
def test_parts_are_named_alike(name):
    parts = [part for part, _ in build(name, 5).named_children()]
    stages = [part for part in parts if part.startswith("stage")]
    assert parts[0] == "stem"
    assert parts[-2:] == ["pool", "head"]
    assert stages == [f"stage{number}" for number in range(1, len(stages) + 1)]
    assert len(stages) >= (1 if name.startswith("cnn") else 3)


@pytest.mark.parametrize("name", ["cnn_tiny", "resnet8x4", "wrn_16_2", "vgg8", "mobilenetv2"])
def test_eval_mode_is_deterministic_and_leaves_the_buffers(name):
    model = build(name, 5, seed=0).eval()
    before = copy.deepcopy(model.state_dict())
    first, second = model(images()), model(images())
    assert torch.equal(first, second)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    one_by_one = torch.cat([model(image[None]) for image in images()])
    torch.testing.assert_close(first, one_by_one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LIGHT)
def test_channels_last_gives_the_same_logits(name):
    model = build(name, 5, seed=0).double().eval()
    x = images().double()
    with torch.no_grad():
        plain = model(x)
        model.to(memory_format=torch.channels_last)
        last = model(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(plain, last, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["mlp", "cnn_tiny", "resnet8", "vgg8", "mobilenetv2"])
def test_seed_decides_the_weights_and_nothing_else(name):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build(name, 5, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second, other = build(name, 5, seed=3), build(name, 5, seed=4)
    weights = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    assert any(
        not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True)
    )


def test_without_a_seed_the_global_state_decides():
    torch.manual_seed(7)
    first = build("cnn_tiny", 5)
    second = build("cnn_tiny", 5)
    torch.manual_seed(7)
    third = build("cnn_tiny", 5)
    assert torch.equal(first.head.weight, third.head.weight)
    assert not torch.equal(first.head.weight, second.head.weight)


def test_start_of_the_weights():
    model = build("vgg8", 100, seed=0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            expected = (2 / (module.out_channels * 9)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05)
            assert not module.bias.any()
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()
    assert model.head.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not model.head.bias.any()


def test_the_classifier_of_a_wide_resnet_starts_without_a_bias():
    """As in the benchmark, which leaves PyTorch's own to the residual networks and ShuffleNets."""
    assert not build("wrn_16_2", 100, seed=0).head.bias.any()
    for name, width in (("resnet20", 64), ("shufflenetv1", 960), ("resnet50", 2048)):
        bias = build(name, 100, seed=0).head.bias
        assert 0.8 * width**-0.5 < float(bias.abs().max().detach()) <= width**-0.5
    shuffled = build("shufflenetv1", 100, seed=0).stage1[0].conv3.weight  # fan-in 18
    assert float(shuffled.abs().max().detach()) <= 18**-0.5


def test_mlp_equals_its_formula():
    model = build("mlp", 3, in_features=8, hidden=(6, 4), activation="tanh", seed=0).double()
    x = torch.randn(5, 2, 2, 2, dtype=torch.float64)
    out = x.numpy().reshape(5, 8)
    weights = [
        (layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in model.layers
    ]
    for index, (weight, bias) in enumerate(weights):
        out = out @ weight.T + bias
        if index < 2:
            out = np.tanh(out)
    torch.testing.assert_close(model(x), torch.from_numpy(out))
    assert isinstance(model.layers, nn.ModuleList)
    assert [tuple(layer.weight.shape) for layer in model.layers] == [(6, 8), (4, 6), (3, 4)]


def test_mlp_without_hidden_layers_is_linear():
    assert len(build("mlp", 3, hidden=()).layers) == 1


def test_cnn_options():
    model = build("cnn", 5, 1, widths=(4, 8), depth=2)
    assert [part for part, _ in model.named_children()] == [
        "stem",
        "stage1",
        "stage2",
        "pool",
        "head",
    ]
    convs = [m for m in model.stage2.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convs] == [(4, 8), (8, 8)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("resnet21", 5), "unknown model 'resnet21' .did you mean 'resnet"),
        (
            lambda: build("mlp", 5, hiden=(3,)),
            "unknown option 'hiden' of 'mlp' .did you mean 'hidden'",
        ),
        (
            lambda: build("resnet20", 5, depth=8),
            "unknown option 'depth' of 'resnet20'; known: activation",
        ),
        (lambda: build("cnn_tiny", 5, widths=(1,)), "unknown option 'widths' of 'cnn_tiny'"),
        (lambda: build("mlp", 1), "num_classes: .*at least 2, got 1"),
        (lambda: build("mlp", 2.0), "num_classes: .*got 2.0"),
        (lambda: build("resnet20", 5, 0), "in_channels: .*got 0"),
        (lambda: build("mlp", 5, hidden=(0,)), r"hidden: .*\(0,\)"),
        (lambda: build("mlp", 5, activation="rellu"), "activation 'rellu' .did you mean 'relu'"),
        (lambda: build("vgg8", 5, activation="sofplus"), "activation 'sofplus' .*'softplus'"),
        (lambda: build("cnn", 5, widths=()), "widths: "),
        (lambda: build("cnn", 5, widths=(4, 4, 4, 4)), "widths: "),
        (lambda: build("cnn", 5, depth=0), "depth: "),
        (lambda: build("mobilenetv2", 5, width=0.01), "width"),
        (lambda: build_for("resnet20", (3, 32), 5), "data_shape: .*got"),
        (
            lambda: build("resnet20", 5)(images(1)),
            r"\[B, 3, h, w\], got \[2, 1, 32, 32\]",
        ),
        (lambda: build("resnet20", 5)(images()[0]), r"images: .*got \[3, 32, 32\]"),
        (lambda: build("vgg8", 5)(images(size=7)), "images: .*at least 8x8 pixels, got 7x7"),
        (lambda: build("mlp", 5)(images()), "x: expected 64 values per sample, got 3072"),
    ],
)
def test_errors_say_what_came_and_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
