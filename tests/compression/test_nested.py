"""Nested networks against networks cut by hand, formulas, and statistics of NumPy."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from small import make_data, make_model
from torch import nn

from kdlab.compression import Nested, Sandwich, compare_widths, pick
from kdlab.distillers import Labels, Outputs, SoftTargets
from kdlab.metrics import cost
from kdlab.models import build_for, count_parameters
from kdlab.training import fit, predict

DATA = make_data()
X = DATA.test.x[:8]
NAMES = ("mlp", "cnn_tiny", "resnet8", "wrn_16_1", "vgg8", "mobilenetv2")


def nest(name: str, **options) -> Nested:
    return Nested(make_model(name, DATA, **options), X[:2]).eval()


@pytest.mark.parametrize("name", NAMES)
def test_a_subnetwork_is_the_first_channels_in_a_model_of_its_own(name):
    nested = nest(name)
    sizes = []
    for width in nested.widths:
        alone = nested.subnetwork(width)
        with torch.no_grad():
            torch.testing.assert_close(nested.at(width, X), alone(X), rtol=1e-4, atol=1e-4)
        for (path, whole), (_, part) in zip(
            nested.model.named_parameters(), alone.named_parameters(), strict=True
        ):
            corner = whole[tuple(slice(n) for n in part.shape)]
            assert torch.equal(part, corner), path
        sizes.append(count_parameters(alone))
    assert sizes == sorted(set(sizes)) and sizes[-1] == count_parameters(nested.model)
    quarter = nested.subnetwork(0.25)
    hidden = [m for m in nested.model.modules() if isinstance(m, nn.Conv2d)][1:2]
    for layer in hidden:
        (narrow,) = [m for m in quarter.modules() if isinstance(m, nn.Conv2d)][1:2]
        assert narrow.out_channels == -(-layer.out_channels // 4)
    assert cost(quarter, X, runs=3).flops <= 0.25 * cost(nested.model, X, runs=3).flops


def test_a_quarter_by_hand():
    """A network of two layers, in NumPy, from corners of the weights."""
    nested = Nested(build_for("mlp", DATA.shape, 4, hidden=(10,), seed=0), X)
    (w1, b1), (w2, b2) = (
        (layer.weight.detach().numpy(), layer.bias.detach().numpy())
        for layer in nested.model.layers
    )
    x = X.flatten(1).numpy()
    for width, n in ((0.25, 3), (0.5, 5), (0.75, 8), (1.0, 10)):
        want = np.maximum(x @ w1[:n].T + b1[:n], 0) @ w2[:, :n].T + b2
        np.testing.assert_allclose(nested.at(width, X).detach().numpy(), want, atol=1e-5)
        nested.width = width
        np.testing.assert_allclose(nested(X).detach().numpy(), want, atol=1e-5)


def test_gradients_of_a_narrow_network_reach_the_shared_weights_alone():
    nested = nest("cnn_tiny")
    nested.at(0.5, X).square().sum().backward()
    gradient = nested.model.stage1[0].weight.grad
    assert (gradient[:4, :4] != 0).any()
    assert (gradient[4:] == 0).all() and (gradient[:, 4:] == 0).all()


def test_each_width_has_statistics_of_its_own():
    nested = nest("cnn_tiny").train()
    before = copy.deepcopy(nested.state_dict())
    nested.at(0.25, X)
    changed = {n for n, t in nested.state_dict().items() if not torch.equal(before[n], t)}
    assert changed and all("_at_0.25".replace(".", "_") in name for name in changed)


def test_depthwise_groups_are_put_back():
    nested = nest("mobilenetv2")
    groups = [m.groups for m in nested.modules() if isinstance(m, nn.Conv2d)]
    nested.at(0.25, X)
    with pytest.raises(ValueError, match="images: expected shape"):
        nested.at(0.5, X[:, :, 0])
    assert groups == [m.groups for m in nested.modules() if isinstance(m, nn.Conv2d)]


def test_recalibrated_statistics_are_means_over_the_images():
    nested = nest("cnn_tiny").train()
    images = DATA.train.x[:64]
    for width in nested.widths:  # statistics that training has left
        nested.at(width, 5 * X)
    nested.recalibrate(images, batch_size=32)
    assert nested.training and nested.model.stem[1].momentum == 0.1
    for width, n in ((0.25, 2), (1.0, 8)):
        norm = nested.subnetwork(width).stem[1]
        with torch.no_grad():
            maps = nested.model.stem[0](images)[:, :n].double().numpy()
        halves = maps.reshape(2, 32, n, -1).transpose(0, 2, 1, 3).reshape(2, n, -1)
        np.testing.assert_allclose(norm.running_mean, halves.mean(2).mean(0), atol=1e-5)
        np.testing.assert_allclose(norm.running_var, halves.var(2, ddof=1).mean(0), rtol=1e-4)
    with pytest.raises(ValueError, match="images: none came"):
        nested.recalibrate(images[:0])


def test_the_sandwich_is_labels_on_top_and_the_widest_below():
    nested = nest("cnn_tiny")
    method = Sandwich(between=5)
    method.prepare(nested, None, DATA.train)
    logits = nested(X)
    targets = DATA.test.y[:8]
    terms = method(Outputs(logits, {}, X), None, targets)
    values = {name: float(term.detach()) for name, term in terms.items()}
    p = F.softmax(logits.detach().double(), 1)

    def divergence(width):
        log_q = F.log_softmax(nested.at(width, X).detach().double(), 1)
        return float((p * (p.log() - log_q)).sum(1).mean())

    assert terms.keys() == {"hard", "narrowest", "between"}
    assert values["hard"] == pytest.approx(float(F.cross_entropy(logits.detach(), targets)))
    assert values["narrowest"] == pytest.approx(divergence(0.25), rel=1e-4)
    both = divergence(0.5) + divergence(0.75)
    assert values["between"] == pytest.approx(both, rel=1e-4)
    (gradient,) = torch.autograd.grad(terms["narrowest"], logits, allow_unused=True)
    assert gradient is None  # the widest is not moved towards the narrow ones


def test_widths_between_are_drawn():
    method = Sandwich(between=1)
    torch.manual_seed(0)
    drawn = {tuple(method._drawn((0.25, 0.5, 0.75))) for _ in range(20)}
    assert drawn == {(0.25, 0.5), (0.25, 0.75)}
    assert Sandwich(between=0)._drawn((0.25, 0.5)) == [0.25]
    assert Sandwich()._drawn((0.5,)) == [0.5]


def test_all_widths_learn_together_and_one_is_picked():
    nested = Nested(build_for("cnn_small", DATA.shape, 4, seed=0), X[:2])
    run = fit(nested, DATA, Sandwich(), epochs=8, batch_size=64, lr=0.1, device="cpu")
    assert {"hard", "narrowest", "between"} <= run.history.last.keys()
    nested.recalibrate(DATA.train.x)
    table = compare_widths(nested, DATA, X[:1], runs=3)
    assert table.width.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert table.val_accuracy.min() > 0.7 and table.test_accuracy.max() > 0.9
    assert table.flops.is_monotonic_increasing and table.bytes.is_monotonic_increasing
    nested.width = 0.25
    right = (predict(nested, DATA.val.x).argmax(1) == DATA.val.y).float().mean()
    assert float(right) == pytest.approx(table.val_accuracy[0])
    budget = (table.flops[1] + table.flops[2]) / 2
    assert pick(table, flops=budget).width in (0.25, 0.5)


def test_a_teacher_may_stand_above_the_widest():
    teacher = make_model("cnn_tiny", DATA)
    nested = Nested(make_model("cnn_tiny", DATA, seed=1), X[:2], widths=(0.5, 1))
    run = fit(nested, DATA, Sandwich(SoftTargets()), teacher=teacher, epochs=1, batch_size=64)
    assert {"hard", "soft", "narrowest"} <= run.history.last.keys()
    assert "between" not in run.history.last
    assert Sandwich(Labels()).needs_teacher is False


def test_the_best_within_a_budget():
    table = pd.DataFrame(
        {"val_accuracy": [0.7, 0.9, 0.8], "bytes": [1, 5, 3], "latency_ms": [1.0, 2.0, 9.0]}
    )
    assert pick(table)["bytes"] == 5
    assert pick(table, bytes=4)["val_accuracy"] == 0.8
    assert pick(table, bytes=4, latency_ms=2)["val_accuracy"] == 0.7
    with pytest.raises(ValueError, match=r"bytes: nothing .* at most 0\.5; the least of all is 1"):
        pick(table, bytes=0.5)
    with pytest.raises(ValueError, match="unknown column 'byte'"):
        pick(table, byte=3)


def test_what_cannot_be_nested_is_said():
    model = make_model("cnn_tiny", DATA)
    for widths in ((1.0,), (0.5, 0.75), (0, 1), (0.5, 1.5)):
        with pytest.raises(ValueError, match="widths: "):
            Nested(model, X, widths)
    with pytest.raises(ValueError, match=r"unknown width '0\.3'"):
        Nested(model, X).at(0.3, X)
    with pytest.raises(ValueError, match="no channel of it can be left out"):
        Nested(nn.Sequential(nn.Flatten(), nn.Linear(144, 4)), X)
    with pytest.raises(ValueError, match="student: a Staged came, expected Nested"):
        Sandwich().prepare(model, None, DATA.train)
    with pytest.raises(ValueError, match="between: -1 came"):
        Sandwich(between=-1)


def test_a_checkpoint_can_tell_how_many_widths_are_drawn():
    assert repr(Sandwich(between=1)) != repr(Sandwich(between=2))
