"""Everybody's models through every function of compression: right, or refused by name."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from foreign import CLASSES, MODELS, OPAQUE, Written, build_foreign, conv, head
from small import make_data
from torch import nn

from kdlab.compression import (
    Nested,
    export,
    factorize,
    load,
    prune_channels,
    prune_gradually,
    prune_weights,
    quantize,
    quantize_aware,
    report,
    round_weights,
    sparsity,
)
from kdlab.metrics import cost
from kdlab.models import count_parameters, logits_of

DATA = make_data(64)
X = DATA.train.x[:4]
RAW = X * DATA.std[0] + DATA.mean[0]
WEIGHTS = {
    "prune_weights": lambda m: prune_weights(m, 0.3),
    "round_weights": lambda m: round_weights(m, 8),
    "factorize": lambda m: factorize(m, 0.3),
}
FUNCTIONS = WEIGHTS | {
    "prune_channels": lambda m: prune_channels(m, X[:2], 0.5),
    "quantize": lambda m: quantize(m, DATA, samples=64),
    "nested": lambda m: Nested(m, X[:2]),
}
# all channels of these go through attention, of which none can be left out
WHOLE = {"attention", "encoder_layer"}


def answer(model: nn.Module, x: torch.Tensor = X, *, training: bool = False) -> torch.Tensor:
    """Logits of a copy, so that norms and spectral norms stay as they are."""
    if not any(isinstance(p, nn.Parameter) and not p.is_leaf for p in model.parameters()):
        weight = next((p for p in model.parameters() if p.is_floating_point()), None)
        x = x if weight is None else x.to(weight.dtype)
    modes = [(module, module.training) for module in model.modules()]
    kept = copy.deepcopy(model.state_dict())
    model.train(training)
    with torch.no_grad():
        found = logits_of(model(x)).float()
    model.load_state_dict(kept)
    for module, mode in modes:
        module.training = mode
    return found


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def snapshot(model: nn.Module) -> list[object]:
    """All that must stay: values, modes, momenta, and which tensors they are."""
    plain = (torch.Tensor, nn.Parameter)
    state = {n: v.clone() for n, v in model.state_dict().items() if type(v) in plain}
    modules = list(model.modules())
    rest = [(m.training, getattr(m, "momentum", None), type(m)) for m in modules]
    return [state, rest, [(id(p), p.requires_grad) for p in model.parameters()]]


def unchanged(model: nn.Module, before: list[object]) -> bool:
    after = snapshot(model)
    same = all(torch.equal(before[0][n], after[0][n]) for n in before[0])
    return same and before[0].keys() == after[0].keys() and before[1:] == after[1:]


def works(small: nn.Module) -> None:
    for training in (False, True):
        found = answer(small, training=training)
        assert found.shape == (len(X), CLASSES) and found.isfinite().all()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("function", WEIGHTS)
def test_weights_change_as_they_should_and_nothing_else(function, name):
    model = build_foreign(name)
    wanted, before = answer(model), snapshot(model)
    small = FUNCTIONS[function](model)
    assert unchanged(model, before) and torch.equal(answer(model), wanted)
    works(small)
    told = report(small)
    if function == "round_weights":
        limit = 0.06 if name in ("orthogonal", "spectral_norm", "bfloat16") else 0.02
        assert 0 < gap(answer(small), wanted) < limit and told.changed
    elif function == "prune_weights":
        assert told.changed and sparsity(small) >= 0.29
    else:
        assert (count_parameters(small) < count_parameters(model)) == bool(told.changed)
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    paths = {n.replace("_orig_mod.", "") for n in layers}
    assert paths <= told.changed.keys() | told.left.keys()


@pytest.mark.parametrize("name", MODELS)
def test_channels_are_cut_or_left_with_a_reason(name):
    model = build_foreign(name)
    wanted, before = answer(model), snapshot(model)
    if name in WHOLE:
        with pytest.raises(ValueError, match=r"model: got .* no channel can be cut \(embed: .*exp"):
            prune_channels(model, X[:2], 0.5)
    else:
        small = prune_channels(model, X[:2], 0.5)
        works(small)
        assert count_parameters(small) < 0.95 * count_parameters(model)
        assert report(small).changed and all(report(small).left.values())
        for before_, after in zip(model.parameters(), small.parameters(), strict=False):
            assert before_.requires_grad == after.requires_grad
    assert unchanged(model, before) and torch.equal(answer(model), wanted)


def silence(model: nn.Module) -> None:
    """Let every second channel be 0 wherever it is written, read or scaled."""
    for layer in model.modules():
        if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear):
            axes = (1, 0) if getattr(layer, "transposed", False) else (0, 1)
            for axis, fixed in zip(axes, (CLASSES, (1, 12, 144)), strict=True):
                size = layer.weight.shape[axis]
                if size != fixed and (fixed == CLASSES or size not in fixed):
                    dead = torch.arange(1, size - size % 2, 2)
                    layer.weight.data.index_fill_(axis, dead, 0)
                    if axis == axes[0] and layer.bias is not None:
                        layer.bias.data[dead] = 0
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.affine:
            layer.weight.data[1::2] = 0
            layer.bias.data[1::2] = 0


SILENT = [
    "linear_norm",
    "conv1d_norm",
    "conv_used_twice",
    "padding_same",
    "transposed_head",
    "conv1d_head",
    "grouped",
    "chunks_that_meet",
    "chunks_apart",
    "channel_shuffle",
    "auxiliary_head",
    "concat_with_input",
    "no_norm",
    "sync_norm",
    "tied",
    "conv3d",
    "u_net",
    "tuple",
    "float64",
    "frozen",
    "half_frozen",
    "hooked",
    "compiled",
    "prelu",
    "lstm",
    "hard_coded_view",
    "pixel_shuffle",
    "unused_layer",
    "extra_state",
]


@pytest.mark.parametrize("name", SILENT)
def test_the_channels_that_do_nothing_are_the_ones_that_go(name):
    """So what is left answers as before: no class, head, group or half was mixed up."""
    model = build_foreign(name)
    silence(model)
    if name == "chunks_that_meet":  # the sigmoid of 0 is no 0, but times 0 it is
        assert answer(model).std() > 0
    wanted = answer(model)
    small = prune_channels(model, X[:2], 0.5)
    assert count_parameters(small) < count_parameters(model)
    torch.testing.assert_close(answer(small), wanted, rtol=1e-4, atol=1e-5)
    aux = {"auxiliary_head"} & {name}
    if aux:
        with torch.no_grad():
            pairs = zip(small.train()(X), model.train()(X), strict=True)
        for got, want in pairs:
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_what_is_left_whole_says_why():
    reasons = {
        ("lstm", "embed"): "mkldnn_rnn_layer|lstm",
        ("layer_norm_of_maps", "0"): "layer_norm",
        ("pixel_shuffle", "0"): "pixel_shuffle",
        ("grouped_transposed", "2"): "4 groups",
        ("unused_layer", "unused"): "no forward reads it",
        ("standardised", "0"): "mean.* mixes them",
    }
    for (name, layer), why in reasons.items():
        left = report(prune_channels(build_foreign(name), X[:2], 0.5)).left
        assert re.search(why, left[layer]), (name, left)
    cut = prune_channels(build_foreign("hard_coded_view"), X[:2], 0.5)
    assert cut.a.out_channels == 4 and cut.b.out_channels == 8
    factorized = report(factorize(build_foreign("attention"), 0.3))
    assert "MultiheadAttention reads its weight" in factorized.left["attention.out_proj"]
    assert "head" in factorized.changed and "head: rank" in str(factorized)
    layer = report(factorize(build_foreign("encoder_layer"), 0.3)).left
    assert "TransformerEncoderLayer reads" in layer["layer.linear1"]
    assert "hooks" in report(factorize(build_foreign("hooked"), 0.3)).left["b"]
    assert "second place" in report(factorize(build_foreign("tied"), 0.3)).left["q"]
    assert "forward of its own" in report(factorize(build_foreign("standardised"), 0.3)).left["0"]
    with pytest.raises(ValueError, match="model: got a Sequential without a report"):
        report(build_foreign("no_norm"))


def test_attention_written_by_hand_loses_as_many_in_each_head():
    def forward(m, x):
        tokens = m.embed(x).flatten(2).transpose(1, 2)
        parts = [m.qkv(tokens).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)]
        q, k, v = parts[0].unbind(0)
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return m.head(F.relu(m.out(mixed.transpose(1, 2).flatten(2))).mean(1))

    torch.manual_seed(0)
    model = Written(
        forward,
        embed=nn.Conv2d(1, 16, 3, stride=3),
        qkv=nn.Linear(16, 48),
        out=nn.Linear(16, 16),
        head=nn.Linear(16, CLASSES),
    ).eval()
    dead = torch.arange(48).view(3, 2, 8)[:, :, 1::2].flatten()
    model.qkv.weight.data[dead], model.qkv.bias.data[dead] = 0, 0
    model.out.weight.data[:, torch.arange(16).view(2, 8)[:, 1::2].flatten()] = 0
    silence(model.embed)
    for layer, axis in ((model.qkv, 1), (model.out, 0), (model.head, 1)):
        layer.weight.data.index_fill_(axis, torch.arange(1, 16, 2), 0)
    model.out.bias.data[1::2] = 0
    small = prune_channels(model, X[:2], 0.5)
    assert (small.qkv.out_features, small.out.in_features) == (24, 8)
    torch.testing.assert_close(answer(small), answer(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_a_guard_around_the_call_changes_nothing(guard):
    for name in ("no_norm", "weight_norm_parametrized", "frozen", "sync_norm"):
        free = prune_channels(build_foreign(name), X[:2], 0.5)
        with guard():
            small = prune_channels(build_foreign(name), X[:2], 0.5)
            others = [call(build_foreign(name)) for call in WEIGHTS.values()]
        assert all(map(torch.equal, free.parameters(), small.parameters()))
        assert count_parameters(small) < 0.6 * count_parameters(build_foreign(name))
        for model in (small, *others):
            model.requires_grad_(True)
            logits_of(model.train()(X)).sum().backward()
            assert all(p.grad is not None for p in model.parameters())


def test_another_default_dtype_changes_nothing():
    try:
        torch.set_default_dtype(torch.float64)
        model = build_foreign("no_norm")
        small = [prune_channels(model, X[:2], 0.5), factorize(model, 0.3), round_weights(model, 4)]
        assert all(p.dtype == torch.float64 for m in small for p in m.parameters())
        for quantized in (
            quantize(model, DATA, samples=8),
            quantize_aware(model, DATA, epochs=1, batch_size=64, lr=1e-4),
        ):
            assert gap(quantized(X), answer(model)) < 0.1
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


QUANTIZED = sorted(
    MODELS.keys()
    - {"orthogonal", "spectral_norm", "norm_without_scale", "sync_norm", "dict", "frozen"}
    - {"masked", "dropout", "prelu", "unused_layer", "channel_shuffle", "chunks_apart"}
    - {"encoder_layer", "no_norm", "pixel_shuffle", "concat_with_input", "grouped"}
)


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_models_agree(name):
    model = build_foreign(name)
    wanted, before = answer(model), snapshot(model)
    small = quantize(model, DATA, samples=64)
    assert unchanged(model, before)
    with torch.no_grad():
        for n in (1, 4):
            found = small(X[:n])
            want = wanted[:n]
            if name == "batch_statistics":  # which depend on the batch
                want = answer(model, X[:n])
            assert found.shape == (n, CLASSES) and gap(found, want) < 0.03
    assert report(small).changed
    left = {"conv1d_head": "t", "conv3d": "1", "lstm": "lstm", "standardised": "0"}.get(name)
    assert left is None or left in report(small).left


@pytest.mark.parametrize("name", ["batch_statistics", "conv_used_twice", "tuple", "u_net"])
def test_training_with_rounding_takes_them_too(name):
    model = build_foreign(name)
    small = quantize_aware(model, DATA, epochs=1, batch_size=64, lr=1e-4)
    assert gap(answer(small), answer(model)) < 0.05 and report(small).changed


def test_a_fold_that_is_wrong_is_refused(monkeypatch):
    from kdlab.compression import quantization

    fold = quantization._fold_norms

    def wrong(program):
        fold(program)
        next(program.parameters()).data.mul_(2)

    monkeypatch.setattr(quantization, "_fold_norms", wrong)
    with pytest.raises(ValueError, match="answers otherwise than the model once its norms"):
        quantize(build_foreign("linear_norm"), DATA, samples=8)


@pytest.mark.parametrize("name", OPAQUE)
def test_what_cannot_be_changed_is_refused_before_any_work(name):
    _, why = OPAQUE[name]
    calls = dict(FUNCTIONS, quantize_aware=lambda m: quantize_aware(m, DATA, epochs=1))
    for function, call in calls.items():
        model = build_foreign(name)
        before = None if name == "lazy" else snapshot(model)
        reason = "no channel" if (function, name) == ("nested", "no_parameter") else why
        with pytest.raises(ValueError, match=rf"^model: got (?=.*({reason})).*expected "):
            call(model)
        assert name == "lazy" or unchanged(model, before) or name == "not_finite"


FILES = {
    "pt2": ["tuple", "float64", "bfloat16", "hooked", "compiled", "lstm", "batch_statistics"],
    "onnx": ["object", "standardised", "weight_norm_parametrized", "bfloat16"],
}


@pytest.mark.parametrize(("ending", "name"), [(e, n) for e in FILES for n in FILES[e]])
def test_files_hold_the_logits_of_all_of_them(ending, name, tmp_path):
    model = build_foreign(name).train()
    before = snapshot(model)
    deployed = load(export(model, tmp_path / f"m.{ending}", DATA))
    assert unchanged(model, before)
    found = deployed(RAW)
    assert found.dtype == torch.float32
    assert gap(found, answer(model)) < (0.01 if name == "bfloat16" else 1e-4)


@pytest.mark.parametrize(
    "name", ["dict", "float64", "bfloat16", "tied", "extra_state", "compiled", "weight_norm"]
)
def test_weights_come_back_into_a_model_of_the_same_kind(name, tmp_path):
    model = build_foreign(name)
    if name == "extra_state":
        model[1].scale = 3.0
    path = export(model, tmp_path / "m.safetensors", DATA)
    assert b"_orig_mod" not in path.read_bytes()
    other = build_foreign(name, seed=1)
    deployed = load(path, model=other)
    assert torch.equal(answer(other), answer(model))
    assert gap(deployed(RAW), answer(model)) < (0.01 if name == "bfloat16" else 1e-4)
    assert next(other.parameters()).dtype == next(model.parameters()).dtype
    if name == "tied":
        assert other.r.weight is other.q.weight
    if name == "compiled":
        load(path, model=build_foreign("tuple", seed=2))  # the same parts, not compiled


def test_a_random_file_is_refused(tmp_path):
    model = Written(
        lambda m, x: m.head(F.dropout(F.relu(m.a(x)))), a=conv(1, 8), head=head(8)
    ).eval()
    for ending in ("pt2", "safetensors"):
        with pytest.raises(ValueError, match=r"other logits in a second run.*training=self\.tr"):
            export(model, tmp_path / f"m.{ending}", DATA)
        assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="other logits in a second run"):
        quantize(model, DATA, samples=8)


def test_a_file_that_answers_otherwise_is_not_kept(tmp_path):
    """The number of the call becomes a constant in the file."""

    def forward(m, x):
        return m.head(F.relu(m.a(x))) * (1 if torch.compiler.is_exporting() else 2)

    model = Written(forward, a=conv(1, 8), head=head(8)).eval()
    with pytest.raises(ValueError, match="the file answers otherwise than the model"):
        export(model, tmp_path / "m.pt2", DATA)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["traced", "dynamically_quantized", "torchao", "lazy"])
@pytest.mark.parametrize("ending", ["pt2", "safetensors"])
def test_what_a_file_cannot_hold_is_refused(ending, name, tmp_path):
    model = build_foreign(name)
    with pytest.raises(ValueError, match=r"^model: got .*expected "):
        export(model, tmp_path / f"m.{ending}", DATA)
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_finite_is_not_exported(tmp_path):
    with pytest.raises(ValueError, match="not finite"):
        export(build_foreign("not_finite"), tmp_path / "m.pt2", DATA)


def test_widths_that_do_not_work_are_refused():
    for name in ("hard_coded_view", "weight_norm", "weight_norm_parametrized", "attention"):
        model = build_foreign(name)
        answer(model)
        before = snapshot(model)
        with pytest.raises(ValueError, match=r"^model: got .*expected "):
            Nested(model, X[:2])
        assert unchanged(model, before)
    for name in ("tuple", "float64", "auxiliary_head", "extra_state", "lstm"):
        nested = Nested(build_foreign(name), X[:2])
        nested.width = 0.25
        works(nested)
        works(nested.subnetwork(0.25))


def test_a_failed_recalibration_leaves_all_as_it_was():
    nested = Nested(build_foreign("sync_norm"), X[:2])
    before = snapshot(nested)
    with pytest.raises(RuntimeError):
        nested.recalibrate(torch.zeros(4, 3, 12, 12))
    assert unchanged(nested, before)


def test_little_by_little_reports_the_last_step():
    model = build_foreign("weight_norm")
    small = prune_gradually(
        model, 0.5, 2, lambda m, s: prune_channels(m, X[:2], s), recover=lambda m: None
    )
    works(small)
    assert report(small).changed


def hand_count(name: str) -> float:
    maps = 144
    two = 2 * maps * (8 * 9 + 8 * 8 * 9) + 2 * 8 * CLASSES
    tokens = 2 * 16 * 16 * 9  # the embedding
    attention = 2 * 16 * 16 * 48 + 2 * (2 * 16 * 16 * 16) + 2 * 16 * 16 * 16
    return {
        "attention": tokens + attention + 2 * 16 * CLASSES,
        "encoder_layer": tokens + attention + 2 * (2 * 16 * 16 * 32) + 2 * 16 * CLASSES,
    }.get(name, two)


@pytest.mark.parametrize(
    "name",
    [
        "attention",
        "encoder_layer",
        "no_norm",
        "weight_norm",
        "weight_norm_parametrized",
        "spectral_norm",
        "tuple",
        "float64",
        "bfloat16",
        "compiled",
        "extra_state",
        "hooked",
        "frozen",
        "masked",
        "dict",
    ],
)
def test_costs_are_those_of_the_model(name):
    model = build_foreign(name)
    before = snapshot(model)
    found = cost(model, X[:2], runs=3, seconds=1e-3)
    assert found.flops == hand_count(name) and found.parameters == count_parameters(model)
    tensors = [v for v in model.state_dict().values() if isinstance(v, torch.Tensor)]
    stored = sum(v.numel() * v.element_size() for v in tensors)
    assert stored < found.bytes < stored + 4000
    assert unchanged(model, before)
    with torch.inference_mode():
        assert cost(model, X[:2], runs=3, seconds=1e-3).flops == found.flops


def test_costs_that_cannot_be_had_are_none():
    for name, known in (
        ("dynamically_quantized", (None, None)),
        ("torchao", (144 * 16 + 16 + 16 * 4 + 4, ...)),
        ("complex", (144 * 16 + 16 + 16 * 4 + 4, ...)),
    ):
        found = cost(build_foreign(name), X[:2], runs=3, seconds=1e-3)
        assert found.flops is None and found.parameters == known[0]
        assert (found.bytes is None) == (known[1] is None)
    assert cost(build_foreign("no_parameter"), X[:2], runs=3).parameters == 0
    with pytest.raises(ValueError, match=r"^model: got 1\.weight without a shape"):
        cost(build_foreign("lazy"), X[:2], runs=3)
    with pytest.raises(ValueError, match=r"^model: got an example of shape \[2, 7\].*expected"):
        cost(build_foreign("linear_norm"), torch.zeros(2, 7), runs=3)


def test_an_example_that_does_not_fit_names_the_layer():
    with pytest.raises(ValueError, match=r"^model: got an example of shape \[2, 7\].*layer '1'"):
        prune_channels(build_foreign("linear_norm"), torch.zeros(2, 7), 0.5)
    for call in (prune_weights, factorize):
        with pytest.raises(ValueError, match=r"^model: got an example .*layer '1'"):
            call(build_foreign("linear_norm"), 0.5, example=torch.zeros(2, 7))


def test_channels_between_constant_bounds_stay():
    """Their numbers stand in the forward, and would mean other channels after a cut."""
    model = Written(
        lambda m, x: m.head(F.relu(m.b(torch.cat([m.a(x)[:, :2], m.a(x)[:, 2:] * 2], 1)))),
        a=conv(1, 8),
        b=conv(8, 8),
        head=head(8),
    ).eval()
    pruned = prune_channels(model, DATA.train.x[:2], 0.5)
    assert "a" in report(pruned).left and len(pruned.a.weight) == 8 and len(pruned.b.weight) == 4


def test_nobodys_inputs_are_written_into():
    model = Written(
        lambda m, x: m.head(F.relu(m.a(x.mul_(0.5)))), a=conv(1, 8), head=head(8)
    ).eval()
    before, example = DATA.train.x.clone(), DATA.train.x[:2].clone()
    quantize(model, DATA)
    prune_channels(model, example, 0.5)
    assert torch.equal(DATA.train.x, before) and torch.equal(example, before[:2])
