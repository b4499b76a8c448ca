"""The exercises of lesson 06: right answers pass, the usual mistakes are told apart."""

import pytest
import torch
from torch import nn

from kdlab.compression import prune_channels, prune_weights, round_weights
from kdlab.exercises import compression as module
from kdlab.exercises import find
from kdlab.metrics import cost
from kdlab.models import build


def verdict(name, answer):
    return find(name).judge(answer)


def scale_of(x, bits):
    return (x.max() - x.min()) / (2**bits - 1)


def codes(x, bits):
    s = scale_of(x, bits)
    return (x / s).round() + (-x.min() / s).round()


def by_torch(x, bits):
    """PyTorch's own rounding, and back to the whole numbers."""
    s = scale_of(x, bits).item()
    z, top = round(-x.min().item() / s), 2**bits - 1
    return torch.fake_quantize_per_tensor_affine(x, s, z, 0, top) / s + z


def number_by_number(x, bits):
    low, high = min(x.flatten().tolist()), max(x.flatten().tolist())
    s = (high - low) / (2**bits - 1)
    q = [round(value / s) + round(-low / s) for value in x.flatten().tolist()]
    return torch.tensor(q).view(x.shape)


@pytest.mark.parametrize("answer", [codes, by_torch, number_by_number])
def test_right_whole_numbers_pass_with_or_without_gradients(answer):
    assert verdict("quantize by hand", answer).status == "right"


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (lambda x, b: scale_of(x, b) * (x / scale_of(x, b)).round(), "wrong", "floats again"),
        (lambda x, b: (x / scale_of(x, b)).round(), "wrong", "add the zero point"),
        (lambda x, b: ((x - x.min()) / scale_of(x, b)).round(), "wrong", "round z by itself"),
        (lambda x, b: x / scale_of(x, b) + (-x.min() / scale_of(x, b)).round(), "wrong", "x / s"),
        (lambda x, b: (x / scale_of(x, b)).round() - x.min() / scale_of(x, b), "wrong", "round z"),
        (
            lambda x, b: (x / scale_of(x, b)).floor() + (-x.min() / scale_of(x, b)).round(),
            "wrong",
            "x / s goes to the nearest",
        ),
        (
            lambda x, b: (x / scale_of(x, b)).floor() + (-x.min() / scale_of(x, b)).floor(),
            "wrong",
            "round to the nearest",
        ),
        (
            lambda x, b: (x / scale_of(x, b)).round() + (x.min() / scale_of(x, b)).round(),
            "wrong",
            "wrong sign",
        ),
        (lambda x, b: codes(x, b) * 0, "wrong", "differs"),
        (lambda x, b: codes(x, b).flatten(), "wrong", "shape"),
        (lambda x, b: ..., "not yet", "not yet"),
        (3, "wrong", "expected a function"),
    ],
)
def test_mistaken_whole_numbers_are_told_what_they_are(answer, status, said):
    given = verdict("quantize by hand", answer)
    assert given.status == status and said in given.message


def test_levels_off_by_one_and_symmetric_ranges_are_told():
    def one_more(x, bits):
        s = (x.max() - x.min()) / 2**bits
        return (x / s).round() + (-x.min() / s).round()

    def symmetric(x, bits):
        return (x / (x.abs().max() / (2 ** (bits - 1) - 1))).round()

    assert "steps between them" in verdict("quantize by hand", one_more).message
    assert "from min to max" in verdict("quantize by hand", symmetric).message


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (6672, "right", ""),
        (6480, "wrong", "the scales are missing"),
        (51840, "wrong", "in bits, and without the scales"),
        (53376, "wrong", "this is in bits"),
        (41472, "wrong", "bytes before"),
        (6484, "wrong", "a scale of its own"),
        (6576, "wrong", "not an input"),
        (912, "wrong", "nine weights"),
        (6700, "close", "a little too large"),
        (100, "wrong", "too small"),
    ],
)
def test_bytes_of_a_rounded_layer(answer, status, said):
    given = verdict("bytes of a rounded layer", answer)
    assert given.status == status and said in given.message


def test_a_rounded_layer_really_has_so_many_levels_and_scales():
    conv = nn.Conv2d(module.FEWER, module.MORE, 3, bias=False)
    rounded = round_weights(conv, module.BITS).weight.flatten(1)
    assert max(len(row.unique()) for row in rounded) <= 2**module.BITS
    scales = len(rounded.abs().amax(1).unique())
    wanted = rounded.numel() * module.BITS // 8 + 4 * scales
    assert verdict("bytes of a rounded layer", wanted).status == "right"


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (9 * 64 / 73, "right", ""),
        (7.9, "right", ""),
        (9, "wrong", "not free"),
        (64, "wrong", "costs as well"),
        (73 / 576, "wrong", "other way round"),
        (8.2, "close", "a little too large"),
        (1, "wrong", "too small"),
    ],
)
def test_a_separable_convolution(answer, status, said):
    given = verdict("a separable convolution", answer)
    assert given.status == status and said in given.message


def test_the_counter_says_the_same_of_a_separable_convolution():
    c, image = module.CHANNELS, torch.zeros(1, module.CHANNELS, 7, 7)
    plain = nn.Conv2d(c, c, 3, padding=1)
    separable = nn.Sequential(nn.Conv2d(c, c, 3, padding=1, groups=c), nn.Conv2d(c, c, 1))
    flops = [cost(m, image, runs=3, seconds=1e-3).flops for m in (plain, separable)]
    assert verdict("a separable convolution", flops[0] / flops[1]).status == "right"


SMALLER = {"cut out half of all channels", "show it images of half the width and height"}


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (SMALLER, "right"),
        ({"cut out half of all channels"}, "close"),
        (SMALLER | {"set nine of ten weights to 0"}, "wrong"),
        ({"train it under a better teacher"}, "wrong"),
        ({"buy a computer"}, "wrong"),
    ],
)
def test_what_leaves_less_to_compute(answer, status):
    assert verdict("what leaves less to compute", answer).status == status


def test_the_counter_says_the_same_of_the_changes():
    model = build("cnn_tiny", 10, 1, seed=0)
    images = torch.zeros(2, 1, 16, 16)
    after = {
        module.CHANGES[0]: (prune_weights(model, 0.9), images),
        module.CHANGES[1]: (prune_channels(model, images, 0.5), images),
        module.CHANGES[2]: (round_weights(model, 4), images),
        module.CHANGES[4]: (model, images[..., ::2, ::2]),
    }
    flops = {k: cost(*pair, runs=3, seconds=1e-3).flops for k, pair in after.items()}
    before = cost(model, images, runs=3, seconds=1e-3).flops
    assert {change for change, count in flops.items() if count < before} == SMALLER
