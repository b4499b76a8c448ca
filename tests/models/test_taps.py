"""Taps: right tensors, gradients, no trace left behind."""

import copy
import io
from itertools import pairwise

import pytest
import torch
from torch import nn

from kdlab import models
from kdlab.models import Taps, build, paths

VISION = ["cnn_small", "resnet14", "wrn_16_2", "vgg8", "mobilenetv2"]


class Odd(nn.Module):
    """Layers whose outputs need care: a tuple, a dict, none, a layer used twice, one unused."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Linear(2, 2)
        self.pair = Pack(lambda x: (None, x * 2, x * 3))
        self.mapping = Pack(lambda x: {"name": "x", "value": x * 4})
        self.empty = Pack(lambda x: "nothing")
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = self.twice(self.twice(x))
        self.empty(x)
        return self.pair(x)[1] + self.mapping(x)["value"]


class Pack(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *values):
        return self.function(*values)


def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def hooks(model):
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", VISION)
def test_every_inner_layer_equals_a_manual_forward(name, training):
    model = build(name, 5, seed=0).train(training)
    parts = [part for part, _ in model.named_children()]
    inner = [path.path for path in paths(model)]
    with Taps(model, inner) as taps:
        logits = model(images())
    x = images()
    for part in parts:
        x = model.get_submodule(part)(x)
        torch.testing.assert_close(taps[part], x)
    torch.testing.assert_close(logits, taps["head"])
    # A layer's output must be what its own module makes of its input: nothing was overwritten.
    for path in inner:
        before, _, index = path.rpartition(".")
        previous = f"{before}.{int(index) - 1}" if index.isdigit() and index != "0" else None
        if previous is not None and not training:
            torch.testing.assert_close(model.get_submodule(path)(taps[previous]), taps[path])


@pytest.mark.parametrize("name", VISION)
def test_gradients_flow_through_taps(name):
    model = build(name, 5, seed=0)
    with Taps(model, ["stage2"]) as taps:
        model(images())
        taps["stage2"].square().mean().backward()
    got = {path for path, parameter in model.named_parameters() if parameter.grad is not None}
    below = {
        path
        for path, _ in model.named_parameters()
        if path.split(".")[0] in ("stem", "stage1", "stage2")
    }
    assert got == below


def test_taps_do_not_change_the_forward():
    model = build("resnet8", 5, seed=0).eval()
    plain = model(images())
    with Taps(model, [path.path for path in paths(model)]):
        assert torch.equal(model(images()), plain)


def test_each_forward_replaces_the_last():
    model = build("resnet8", 5, seed=0).eval()
    with Taps(model, ["pool"]) as taps:
        model(images())
        first = taps["pool"]
        model(images() * 2)
        assert not torch.equal(taps["pool"], first)


def test_close_removes_the_hooks_and_keeps_what_was_read():
    model = build("resnet8", 5, seed=0)
    taps = Taps(model, ["stage1", "head"])
    assert hooks(model) == 2
    logits = model(images())
    taps.close()
    taps.close()
    assert hooks(model) == 0
    model(images() * 2)
    assert torch.equal(taps["head"], logits)


def test_hooks_are_removed_after_an_error():
    model = build("resnet8", 5)
    with pytest.raises(RuntimeError), Taps(model, ["head"]):
        raise RuntimeError
    assert hooks(model) == 0


def test_a_mapping_of_what_was_asked_for():
    model = build("resnet8", 5)
    with Taps(model, ["stage2", "head", "stage2"]) as taps:
        model(images())
        assert list(taps.keys()) == ["stage2", "head"]
        assert len(taps) == 2
        assert "head" in taps
        assert "stem" not in taps
        assert {path: value.shape for path, value in taps.items()} == {
            "stage2": (2, 32, 16, 16),
            "head": (2, 5),
        }
        with pytest.raises(KeyError, match="not tapped; tapped: stage2, head"):
            taps["stem"]
    with Taps(model, "head") as one:
        assert list(one) == ["head"]


def test_a_copy_or_a_pickle_of_a_tapped_model_is_not_tapped():
    model = build("resnet8", 5, seed=0).eval()
    with Taps(model, ["head"]) as taps:
        logits = model(images())
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
            torch.testing.assert_close(twin(images()), logits)
            twin(images() * 2)
            assert torch.equal(taps["head"], logits)
        assert model.state_dict().keys() == build("resnet8", 5).state_dict().keys()


def test_two_taps_on_one_layer_are_independent():
    model = build("resnet8", 5)
    first, second = Taps(model, ["head"]), Taps(model, ["head"])
    model(images())
    kept = first["head"]
    first.close()
    model(images() * 2)
    assert first["head"] is kept
    assert not torch.equal(second["head"], kept)


def test_outputs_that_are_not_one_tensor():
    model = Odd()
    x = torch.randn(3, 2)
    with Taps(model, ["twice", "pair", "mapping", "empty", "unused"]) as taps:
        model(x)
        last = model.twice(model.twice(x))
        model(x)
        torch.testing.assert_close(taps["twice"], last)
        torch.testing.assert_close(taps["pair"], last * 2)
        torch.testing.assert_close(taps["mapping"], last * 4)
        with pytest.raises(ValueError, match="holds no tensor"):
            taps["empty"]
        with pytest.raises(ValueError, match="nothing to read yet"):
            taps["unused"]


def test_reading_before_a_forward():
    with pytest.raises(ValueError, match=r"taps\['head'\]: nothing to read yet; run a forward"):
        Taps(build("resnet8", 5), ["head"])["head"]


def test_an_output_overwritten_in_place_is_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True))
    with Taps(model, ["0", "1"]) as taps:
        out = model(torch.randn(3, 2))
        assert taps["1"] is out
        with pytest.raises(ValueError, match="this output has been overwritten in place"):
            taps["0"]


def test_inference_mode():
    model = build("resnet8", 5).eval()
    with Taps(model, ["head"]) as taps, torch.inference_mode():
        assert torch.equal(model(images()), taps["head"])


@pytest.mark.parametrize("name", VISION)
def test_an_input_is_what_the_layer_before_gave(name):
    model = build(name, 5, seed=0)
    parts = [part for part, _ in model.named_children()]
    with Taps(model, [*parts, *(f"{part}:input" for part in parts)]) as taps:
        assert hooks(model) == 2 * len(parts)
        model(images())
    assert hooks(model) == 0
    assert torch.equal(taps[f"{parts[0]}:input"], images())
    for part, following in pairwise(parts):
        assert taps[f"{following}:input"] is taps[part]
    assert len(taps) == 2 * len(parts) and "head:input" in taps


def test_an_input_is_part_of_the_graph():
    model = build("resnet8", 5, seed=0)
    with Taps(model, ["stage2.0.act2:input"]) as taps:
        model(images())
        assert (taps["stage2.0.act2:input"] < 0).any()
        taps["stage2.0.act2:input"].square().mean().backward()
    got = {path.split(".")[0] for path, p in model.named_parameters() if p.grad is not None}
    assert got == {"stem", "stage1", "stage2"}


class Arguments(nn.Module):
    """A layer that takes no tensor first, a tensor by name, and nothing at all."""

    def __init__(self):
        super().__init__()
        self.scale = Pack(lambda by, x: x * by)
        self.named = nn.Linear(2, 2)
        self.empty = Pack(lambda x: None)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        self.empty("nothing")
        return self.named(input=self.scale(3, x))


def test_the_first_input_that_is_a_tensor():
    model, x = Arguments(), torch.randn(3, 2)
    with Taps(model, ["scale:input", "named:input", "empty:input", "unused:input"]) as taps:
        model(x)
        assert taps["scale:input"] is x
        assert torch.equal(taps["named:input"], 3 * x)
        with pytest.raises(ValueError, match="the layer's input holds no tensor"):
            taps["empty:input"]
        with pytest.raises(ValueError, match="nothing to read yet"):
            taps["unused:input"]


def test_an_input_overwritten_in_place_is_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True))
    with Taps(model, ["1:input", "1", "0:input"]) as taps:
        model(torch.randn(3, 2))
        assert taps["1"].min() == 0
        assert taps["0:input"].min() < 0
        with pytest.raises(ValueError, match="this input has been overwritten in place"):
            taps["1:input"]


def test_a_copy_is_not_tapped_at_its_inputs_either():
    model = build("resnet8", 5, seed=0).eval()
    with Taps(model, ["head:input"]) as taps:
        model(images())
        kept = taps["head:input"]
        copy.deepcopy(model)(images() * 2)
        assert taps["head:input"] is kept


@pytest.mark.parametrize(
    "wrong",
    ["stage4", "stage1.5", "layer1", "", "stage1.0.conv3", "stage4:input", ":input", "stem:output"],
)
def test_unknown_path_names_the_nearest(wrong):
    model = build("resnet8", 5)
    with pytest.raises(ValueError, match=r"no layer .*; its parts: stem, stage1") as caught:
        Taps(model, ["stem", wrong])
    assert ("did you mean 'stage" in str(caught.value)) == wrong.startswith("stage")
    assert hooks(model) == 0


def test_paths_lists_layers_classes_and_shapes():
    model = build("resnet8", 5)
    model.stage1.eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    table = {row.path: row for row in paths(model, images())}
    assert table["stage2"] == ("stage2", "Sequential", (2, 32, 16, 16))
    assert table["stage1.0.bn2"] == ("stage1.0.bn2", "BatchNorm2d", (2, 16, 32, 32))
    assert table["head"].shape == (2, 5)
    assert "" not in table
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert hooks(model) == 0
    assert all(row.shape is None for row in paths(model))
    mlp = models.build("mlp", 5, in_features=3072)
    assert {row.path: row.shape for row in paths(mlp, images())} == {
        "layers": None,
        "layers.0": (2, 32),
        "layers.1": (2, 5),
        "activation": (2, 32),
    }
