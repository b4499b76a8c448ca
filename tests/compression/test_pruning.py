"""Pruning against NumPy, against a second way to follow channels, and through files."""

import copy

import numpy as np
import pytest
import torch
from small import make_data, make_model
from torch import nn

from kdlab.compression import (
    export,
    load,
    prune_channels,
    prune_gradually,
    prune_weights,
    recover,
    sparsity,
)
from kdlab.metrics import cost
from kdlab.models import available, build, count_parameters
from kdlab.models.channels import Channels
from kdlab.training import predict

DATA = make_data()
X = DATA.test.x[:4]
HUGE = (
    "resnet50",
    "shufflenetv1",
    "shufflenetv2",
    "resnet110",
    "vgg16",
    "vgg19",
    "resnet56",
    "resnet44",
    "resnet32x4",
    "wrn_40_2",
)
NAMES = [n for n in available(DATA.shape) if n not in (*HUGE, "vgg11", "vgg13", "wrn_40_1")]
CHAINS = ("cnn_tiny", "resnet8", "resnet8x4", "wrn_16_1", "vgg8", "mobilenetv2", "mlp")


def weights_of(model: nn.Module) -> list[np.ndarray]:
    layers = (m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    return [layer.weight.detach().numpy().copy() for layer in layers]


def test_the_smallest_weights_of_all_layers_together_become_0():
    model = make_model("cnn_tiny", DATA)
    before = weights_of(model)
    pruned = prune_weights(model, 0.7)
    every = np.sort(np.abs(np.concatenate([w.ravel() for w in before])))
    limit = every[round(0.7 * len(every)) - 1]
    for old, new in zip(before, weights_of(pruned), strict=True):
        np.testing.assert_array_equal(new, np.where(np.abs(old) <= limit, 0, old))
    assert sparsity(pruned) == pytest.approx(0.7, abs=1e-3) and sparsity(model) == 0
    assert pruned.state_dict().keys() == model.state_dict().keys()  # no masks are left over
    assert all((a == b).all() for a, b in zip(before, weights_of(model), strict=True))


def test_a_second_pruning_counts_from_what_is_left():
    twice = prune_weights(prune_weights(make_model("mlp", DATA), 0.5), 0.5)
    assert sparsity(twice) == pytest.approx(0.75, abs=1e-3)


def test_zeros_save_nothing_and_fewer_channels_do():
    model = make_model("cnn_small", DATA)
    whole, zeros, cut = (
        cost(m, X, runs=3)
        for m in (model, prune_weights(model, 0.9), prune_channels(model, X, 0.5))
    )
    assert (zeros.parameters, zeros.bytes, zeros.flops) == (
        whole.parameters,
        whole.bytes,
        whole.flops,
    )
    assert cut.parameters < 0.3 * whole.parameters
    assert cut.flops < 0.35 * whole.flops and cut.bytes < 0.4 * whole.bytes


@pytest.mark.parametrize("name", NAMES)
def test_shapes_really_shrink_and_the_file_loads_again(name, tmp_path):
    model = make_model(name, DATA)
    pruned = prune_channels(model, X, 0.5)
    assert 0.15 < count_parameters(pruned) / count_parameters(model) < 0.55
    with torch.no_grad():
        wanted = pruned(X)
    assert wanted.shape == (4, 4) and wanted.isfinite().all()
    path = export(pruned, tmp_path / "pruned.safetensors", DATA)
    empty = make_model(name, DATA, seed=1)
    deployed = load(path, model=empty)
    raw = X * torch.tensor(DATA.std).view(1, -1, 1, 1) + torch.tensor(DATA.mean).view(1, -1, 1, 1)
    torch.testing.assert_close(deployed(raw), wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max())
    for old, new in zip(pruned.modules(), empty.modules(), strict=True):
        assert old.extra_repr() == new.extra_repr()  # sizes that layers note of themselves


def silence(model: nn.Module, share: float, seed: int = 0) -> nn.Module:
    """Make a share of each group's channels 0, wherever `Channels` says that they flow."""
    model = copy.deepcopy(model)
    channels = Channels(model, X)
    alive = torch.ones(channels.count)
    generator = torch.Generator().manual_seed(seed)
    for number, group in enumerate(channels.groups):
        if number not in channels.fixed:
            count = round(share * len(group))
            dead = torch.randperm(len(group), generator=generator)[:count]
            alive[group.start + dead] = 0
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            for axis in range(tensor.dim()):
                line = alive[channels.along(name, axis)]
                tensor.mul_(line.view([-1 if a == axis else 1 for a in range(tensor.dim())]))
    return model


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("importance", ["l1", "l2"])
def test_channels_that_do_nothing_are_the_ones_that_go(name, importance):
    """All groups that the course's own tracer finds, cut by Torch-Pruning's."""
    model = silence(make_model(name, DATA), 0.5)
    pruned = prune_channels(model, X, 0.5, importance=importance)
    assert count_parameters(pruned) < 0.55 * count_parameters(model)
    with torch.no_grad():
        wanted, got = model(X), pruned(X)
    assert wanted.std() > 0
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max())


def test_batch_norms_scale_and_chance_choose_otherwise():
    model = make_model("cnn_tiny", DATA)
    scale = model.stage1[1].weight.data
    scale.copy_(torch.tensor([0.1, 3.0, 0.2, 3.1, 3.2, 0.3, 3.3, 0.4]))
    model.stage1[0].weight.data[scale < 1] *= 1000  # large filters, of which little is left
    chosen = prune_channels(model, X, 0.5, importance="batch_norm").stage1[1].weight
    assert chosen.tolist() == pytest.approx([3.0, 3.1, 3.2, 3.3])
    torch.manual_seed(0)
    drawn = {
        tuple(prune_channels(model, X, 0.5, importance="random").stage1[1].weight.tolist())
        for _ in range(4)
    }
    assert len(drawn) > 1


def test_attention_keeps_the_same_channels_of_query_and_key_in_each_head():
    model = build("vit", 4, 1, width=16, heads=4, depth=1, seed=0).eval()
    attention = model.blocks[0].attention
    for layer in (attention.query, attention.key):
        layer.bias.data.copy_(torch.arange(16))
    pruned = prune_channels(model, torch.randn(2, 1, 12, 12), 0.25).blocks[0].attention
    kept = pruned.query.bias.tolist()
    assert kept == pruned.key.bias.tolist() and len(kept) == 12
    assert [sum(4 * h <= c < 4 * h + 4 for c in kept) for h in range(4)] == [3, 3, 3, 3]


@pytest.mark.parametrize("name", ["cnn_tiny", "resnet8", "wrn_16_1", "mobilenetv2", "mlp"])
def test_torch_pruning_cuts_the_same_channels(name):
    """Another library's dependency graph and measure of importance, on models that it can cut."""
    torch_pruning = pytest.importorskip("torch_pruning")
    model = make_model(name, DATA)
    theirs = copy.deepcopy(model)
    last = [m for m in theirs.modules() if isinstance(m, nn.Conv2d | nn.Linear)][-1]
    torch_pruning.pruner.BasePruner(
        theirs,
        X,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.3,
        ignored_layers=[last],
        in_channel_groups={},
        out_channel_groups={},
    ).step()
    ours = prune_channels(model, X, 0.3, importance="l2").state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize("name", ["cnn_small", "resnet8"])
def test_channels_in_multiples(name):
    model = make_model(name, DATA)
    pruned = prune_channels(model, X, 0.4, multiple_of=8)
    pairs = zip(model.modules(), pruned.modules(), strict=True)
    widths = [(a.out_channels, b.out_channels) for a, b in pairs if isinstance(a, nn.Conv2d)]
    assert all(new % 8 == 0 and new <= old for old, new in widths)
    assert any(new < old for old, new in widths)
    too_few = prune_channels(model, X, 0.9, multiple_of=8)
    assert [p.shape for p in too_few.parameters()] == [p.shape for p in model.parameters()]


def test_each_layer_keeps_a_channel():
    pruned = prune_channels(make_model("cnn_tiny", DATA), X, 0.99)
    assert all(0 not in p.shape for p in pruned.parameters())
    assert pruned(X).shape == (4, 4)


def test_the_model_and_its_mode_stay():
    model = make_model("resnet8", DATA).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        pruned = prune_channels(model, X, 0.25)
    assert count_parameters(pruned) < 0.8 * count_parameters(model)
    assert model.training and pruned.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in pruned.parameters())


def test_recovery_holds_the_zeros_and_moves_the_rest():
    pruned = prune_weights(make_model("cnn_tiny", DATA), 0.8)
    before = weights_of(pruned)
    seen = []
    run = recover(pruned, DATA, epochs=2, batch_size=64, lr=0.05, callbacks=[seen.append])
    assert run.model is pruned and len(seen) == 8
    for old, new in zip(before, weights_of(pruned), strict=True):
        assert (new[old == 0] == 0).all() and (new[old != 0] != old[old != 0]).any()


def test_recovery_is_distillation_with_a_teacher_and_labels_without():
    teacher = make_model("cnn_tiny", DATA)
    terms = []
    for guide in (teacher, None):
        moments = []
        recover(
            prune_channels(teacher, X, 0.5),
            DATA,
            guide,
            epochs=1,
            batch_size=64,
            lr=0.01,
            callbacks=[moments.append],
        )
        terms.append(set(moments[0].terms))
    assert "soft" in terms[0] and "soft" not in terms[1]


def test_pruning_and_recovery_keep_what_was_learned():
    """The whole way: train, cut half of all channels, recover; right answers are counted."""
    model = make_model("cnn_tiny", DATA)
    options = {"epochs": 6, "batch_size": 64, "lr": 0.1}
    recover(model, DATA, **options)

    def right(m):
        return float((predict(m, DATA.test.x).argmax(1) == DATA.test.y).float().mean())

    assert right(model) > 0.95
    pruned = prune_channels(model, X, 0.5)
    at_once = right(pruned)
    recover(pruned, DATA, model, **options)
    assert right(pruned) > 0.9 and right(pruned) >= at_once


def test_little_by_little_ends_at_the_same_share():
    model, shares = make_model("mlp", DATA), []
    before = weights_of(model)
    pruned = prune_gradually(
        model, 0.9, 3, prune_weights, recover=lambda m: shares.append(sparsity(m))
    )
    left = 0.1 ** (1 / 3)
    assert shares == pytest.approx([1 - left, 1 - left**2, 0.9], abs=2e-3)
    assert sparsity(pruned) == pytest.approx(0.9, abs=2e-3)
    assert all((a == b).all() for a, b in zip(before, weights_of(model), strict=True))
    cut = prune_gradually(
        make_model("cnn_small", DATA), 0.75, 2, lambda m, s: prune_channels(m, X, s), lambda m: None
    )
    assert cut.stem[0].weight.shape[0] == 4  # of 16


def test_what_cannot_be_pruned_is_said():
    model = make_model("mlp", DATA)
    for share in (1.0, -0.1, float("nan"), "half"):
        with pytest.raises(ValueError, match="share: "):
            prune_weights(model, share)
        with pytest.raises(ValueError, match="share: "):
            prune_channels(model, X, share)
        with pytest.raises(ValueError, match="share: "):
            prune_gradually(model, share, 2, prune_weights, print)
    with pytest.raises(ValueError, match="steps: 0 came"):
        prune_gradually(model, 0.5, 0, prune_weights, print)
    with pytest.raises(ValueError, match="multiple_of: 0 came"):
        prune_channels(model, X, 0.5, multiple_of=0)
    with pytest.raises(ValueError, match="unknown importance 'l3'"):
        prune_channels(model, X, 0.5, importance="l3")
    with pytest.raises(ValueError, match=r"example: dtype torch\.int64, expected images"):
        prune_channels(build("gru", 3), torch.ones(2, 5, dtype=torch.int64), 0.5)
    for call in (lambda m: prune_weights(m, 0.5), lambda m: prune_channels(m, X, 0.5), sparsity):
        with pytest.raises(ValueError, match="no convolution and no Linear layer"):
            call(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(144)))
