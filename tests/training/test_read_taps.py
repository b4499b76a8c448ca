"""`read_taps`: what inner layers say, and a model that comes back as it was."""

import pytest
import torch
from tiny import make_cnn, make_data, same
from torch import nn

from kdlab.models import Taps
from kdlab.training import read_taps

DATA = make_data()
X = DATA.test.x


@pytest.mark.parametrize("batch_size", [1, 7, 96, 1000])
def test_taps_equal_one_plain_forward_whatever_the_batch(batch_size):
    model = make_cnn(DATA, dropout=0.5)
    with torch.no_grad(), Taps(model.eval(), ["0", "4"]) as taps:
        model(X)
    model.train()
    read = read_taps(model, X, ["4", "0", "4"], batch_size)
    assert list(read) == ["4", "0"]
    for path, values in read.items():
        torch.testing.assert_close(values, taps[path], atol=1e-5, rtol=1e-5)
        assert values.dtype == torch.float32 and values.device.type == "cpu"


@pytest.mark.parametrize("path", ["0", "nowhere", "flat"])
def test_the_model_comes_back_as_it_was_even_after_an_error(path):
    model = make_cnn(DATA, dropout=0.5).train()
    model.append(nn.Identity())
    model.flat = nn.Flatten(0)
    model[1].eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        values = read_taps(model, X, path)[path]
        assert not values.requires_grad
    except ValueError:
        assert path != "0"
    assert [module.training for module in model.modules()] == modes
    assert same(model.state_dict(), before), "batch norm has learned from looking"
    assert not any(module._forward_hooks for module in model.modules())


def test_no_batch_is_larger_than_asked_for():
    sizes = []
    model = nn.Sequential(nn.Identity())
    model.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    read_taps(model, X[:50], "0", batch_size=20)
    assert sizes == [20, 20, 10]


def test_half_precision_comes_as_float32():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).bfloat16()
    assert read_taps(model, X.bfloat16(), "1")["1"].dtype == torch.float32


def test_what_is_read_does_not_change_with_the_images():
    images = X.clone()
    read = read_taps(nn.Sequential(nn.Identity(), nn.Flatten()), images, "0")["0"]
    images.zero_()
    assert torch.equal(read, X)


@pytest.mark.parametrize(
    ("images", "paths", "match"),
    [
        (X[:0], ["0"], "images: none came, expected at least one"),
        (X, [], "paths: none came, expected at least one"),
        (X, ["00"], "no layer '00'.*did you mean '0'"),
        (X, ["1"], r"paths: '1' gives \[6144\] for 96 images; expected one entry per image"),
        (X, ["2"], r"paths: '2' gives \[\] for 96 images"),
    ],
)
def test_refuses(images, paths, match):
    class Total(nn.Module):
        def forward(self, x):
            return x.sum()

    model = nn.Sequential(nn.Identity(), nn.Flatten(0), Total())
    with pytest.raises(ValueError, match=match):
        read_taps(model, images, paths)


def test_refuses_an_unknown_device():
    with pytest.raises(ValueError, match="device"):
        read_taps(make_cnn(DATA), X, "0", device="abacus")
