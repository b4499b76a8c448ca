"""A setting of pruning and rounding, tried without training."""

import copy
from dataclasses import replace

import pytest
import torch
from small import make_data, make_model

from kdlab.compression import (
    compressed_accuracy,
    prune_and_round,
    prune_channels,
    prune_weights,
    round_weights,
    sparsity,
)
from kdlab.datasets import Split
from kdlab.metrics import accuracy
from kdlab.models import count_parameters
from kdlab.training import fit, predict

DATA = make_data()


@pytest.fixture(scope="module")
def model():
    start = make_model("mlp", DATA, hidden=(64, 32))
    return fit(start, DATA, epochs=8, batch_size=64, lr=0.05).model.eval()


def same(a, b):
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def test_weights_are_pruned_and_then_rounded(model):
    small = prune_and_round(model, DATA, kind="weights", share=0.5, bits=3)
    assert same(small, round_weights(prune_weights(model, 0.5), 3))
    assert sparsity(small) >= 0.5


def test_channels_are_cut_and_then_rounded(model):
    small = prune_and_round(model, DATA, kind="channels", share=0.5, bits=4)
    assert same(small, round_weights(prune_channels(model, DATA.train.x[:2], 0.5), 4))
    assert count_parameters(small) < 0.6 * count_parameters(model)


def test_nothing_pruned_and_32_bits_leave_a_copy(model):
    small = prune_and_round(model, DATA, kind="weights", share=0.0, bits=32)
    assert same(small, model) and small is not model


def test_the_model_stays_as_it_was(model):
    before = copy.deepcopy(model)
    for kind in ("weights", "channels"):
        compressed_accuracy(model, DATA, kind=kind, share=0.7, bits=2)
    assert same(before, model) and not model.training


def test_accuracy_is_that_of_the_first_test_images(model):
    setting = {"kind": "weights", "share": 0.6, "bits": 3}
    logits = predict(prune_and_round(model, DATA, **setting), DATA.test.x)
    for images in (10, 40):
        found = compressed_accuracy(model, DATA, **setting, images=images)
        assert found == accuracy(logits[:images], DATA.test.y[:images])
    mislabelled = replace(DATA, val=Split(DATA.val.x, (DATA.val.y + 1) % 4))
    found = compressed_accuracy(model, mislabelled, **setting)
    assert found == accuracy(logits, DATA.test.y) > 0.5


def test_less_is_left_of_a_model_that_is_cut_and_rounded_hard(model):
    gentle = compressed_accuracy(model, DATA, kind="channels", share=0.0, bits=8)
    harsh = compressed_accuracy(model, DATA, kind="channels", share=0.9, bits=2)
    assert gentle > 0.8 > harsh


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kind": "weight"}, "unknown kind 'weight' .did you mean 'weights'"),
        ({"share": 1.0}, "share: 1.0 came"),
        ({"bits": 17}, "bits: 17 came"),
        ({"images": 0}, "images: 0 came, expected at least 1"),
    ],
)
def test_refuses(model, change, match):
    setting = {"kind": "weights", "share": 0.5, "bits": 4} | change
    with pytest.raises(ValueError, match=match):
        compressed_accuracy(model, DATA, **setting)
