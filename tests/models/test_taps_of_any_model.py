"""Taps of models that are compiled, traced, exported, checkpointed, or return anything."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from kdlab.models import Taps, paths
from kdlab.models.modes import uncompiled
from kdlab.models.taps import last_outputs, untappable, without_graph

X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x):
        print(end="")  # a graph break, so that what follows is compiled by itself
        return self.layer(x).relu()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), Inner(), nn.Linear(16, 4)).eval()


def in_place(model):
    model.compile(backend="eager")
    return model


def in_part(model):
    model[2] = torch.compile(model[2], backend="eager")
    return model


WAYS = {
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "compile in place": in_place,
    "a part": in_part,
}
PATHS = ["1", "2.layer", "2.layer:input"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("taken_off", [False, True])
def test_a_compiled_model_is_read_whatever_ran_before(way, taken_off):
    plain = net()
    with Taps(plain, PATHS) as taps:
        plain(X)
        expected = {path: taps[path] for path in PATHS}
    model = WAYS[way](net())
    model(X)  # compiled without hooks
    if taken_off:
        with Taps(model, ["3"]) as taps:  # compiled with others
            model(X)
            assert taps["3"].shape == (4, 4)
    with Taps(model, PATHS) as taps:
        for batch in (X, X):
            model(batch)
            for path in PATHS:
                torch.testing.assert_close(taps[path], expected[path])


@pytest.mark.parametrize("way", WAYS)
def test_paths_of_a_compiled_model_are_those_it_was_written_with(way):
    model = WAYS[way](net())
    assert [p.path for p in paths(model)] == [p.path for p in paths(net())]
    assert {p.path: p.shape for p in paths(model, X)}["2.layer"] == (4, 16)
    with Taps(model, ["_orig_mod.2._orig_mod.layer"]) as taps:  # both forms are understood
        model(X)
        assert taps["_orig_mod.2._orig_mod.layer"].shape == (4, 16)


def test_a_dry_run_compiles_nothing():
    made = []

    def backend(graph, inputs):
        made.append(graph)
        return graph.forward

    model = torch.compile(net(), backend=backend)
    assert last_outputs(model, ["2.layer"], X)["2.layer"].shape == (4, 16)
    assert made == []
    model(X)
    count = len(made)
    with uncompiled(), Taps(model, ["2.layer"]) as taps:
        model(X)
        assert taps["2.layer"].shape == (4, 16)
    model(X)
    assert len(made) == count > 0  # what was compiled is still there


def traced():
    return torch.jit.trace(net(), X)


def scripted():
    return torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU()))


def exported():
    return torch.export.export(net(), (X,)).module()


@pytest.mark.parametrize("make", [traced, scripted, exported])
def test_what_runs_without_its_layers_is_refused_by_name(make):
    model = make()
    with pytest.raises(ValueError, match=r"^paths: '1' cannot be read, .*SoftTargets.* as it is"):
        Taps(model, ["1"])
    around = nn.Sequential(model)  # and so is one inside another
    with pytest.raises(ValueError, match=r"^paths: '0\.1' cannot be read"):
        Taps(around, ["0.1"])
    assert {p.path: p.shape for p in paths(around, X)}.get("0.1") is None


def test_a_graph_with_its_layers_can_be_read():
    model = torch.fx.symbolic_trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 16)))
    assert untappable(model, "1") == ""
    with Taps(model, ["1"]) as taps:
        model(X)
        assert taps["1"].shape == (4, 16)


def test_data_parallel_on_several_devices_is_refused():
    model = nn.DataParallel(net())
    with Taps(model, ["module.1"]) as taps:
        model(X)
        assert taps["module.1"].shape == (4, 16)
    model.device_ids = [0, 1]
    with pytest.raises(ValueError, match=r"module\.1' cannot be read, DataParallel.*\.module"):
        Taps(model, ["module.1"])


@dataclass
class Answer:
    loss: torch.Tensor | None
    logits: torch.Tensor


class Plain:
    def __init__(self, **parts):
        vars(self).update(parts)


Y = torch.arange(6.0).view(2, 3)
OUTPUTS = {
    "pair": (Y, None),
    "none first": (None, Y),
    "nested": ((None, (Y, Y + 1)), Y + 2),
    "mapping": {"loss": Y.sum(), "logits": Y},
    "hidden state": {"pooled": Y + 1, "last_hidden_state": Y},
    "dataclass": Answer(Y.sum(), Y),
    "object": Plain(name="x", logits=Y, other=Y + 1),
    "object without names": Plain(name="x", features=Y),
}


class Gives(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output


@pytest.mark.parametrize("form", OUTPUTS)
def test_the_tensor_in_any_output(form):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = Gives(OUTPUTS[form])

        def forward(self, x):
            self.part(x)
            return x

    with Taps(Model(), ["part"]) as taps:
        taps._model(X)
        assert torch.equal(taps["part"], Y)


@pytest.mark.parametrize("output", [None, (None, None), "text", {}, Plain(name="x"), [[]]])
def test_an_output_without_a_tensor_is_said(output):
    model = nn.Sequential(Gives(output))
    with Taps(model, ["0"]) as taps:
        model(X)
        with pytest.raises(ValueError, match=r"taps\['0'\]: the layer's output holds no tensor"):
            taps["0"]


def test_a_packed_sequence_is_no_batch():
    packed = nn.utils.rnn.pack_sequence([torch.randn(3, 2), torch.randn(2, 2)])
    model = nn.Sequential(nn.LSTM(2, 4))
    with Taps(model, ["0"]) as taps:
        model(packed)
        with pytest.raises(ValueError, match="holds no tensor"):
            taps["0"]


def test_what_is_overwritten_under_inference_mode_is_rightly_read():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(2), nn.ReLU(inplace=True))
    with Taps(model, ["0", "1", "2:input"]) as taps, torch.inference_mode():
        model(X)
        right = model[0](X)
        assert torch.equal(taps["0"], right)
        assert torch.equal(taps["1"], right.flatten(2))
        assert torch.equal(taps["2:input"], right.flatten(2))


# ---- taps without a graph -------------------------------------------------------------------


class Lossy(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.stem, self.part = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 3, 3, padding=1)
        self.pool, self.head = nn.Flatten(), nn.Linear(108, 4)
        self.relu = nn.ReLU(inplace=True)
        self.how = how

    def forward(self, x):
        x = self.stem(x)
        if self.how == "reentrant":
            x = checkpoint(lambda x: 2 * self.part(x), x, use_reentrant=True)
        elif self.how == "checkpoint":
            x = checkpoint(lambda x: 2 * self.part(x), x, use_reentrant=False)
        elif self.how == "no_grad":
            with torch.no_grad():
                x = x + self.part(x)
        elif self.how == "inference":
            with torch.inference_mode():
                y = self.part(x)
            x = x + y.clone()
        elif self.how == "detached":
            x = self.part(x.detach()).detach()
        elif self.how == "overwritten":
            x = self.part(x)
            self.relu(x.view(4, 3, -1))
        else:
            x = self.part(x)
        return self.head(self.pool(x))


CAUSES = {
    "reentrant": "use_reentrant=True",
    "no_grad": "no_grad",
    "inference": "inference_mode",
    "overwritten": "overwritten in place",
}


@pytest.mark.parametrize("how", ["plain", "checkpoint", *CAUSES])
def test_taps_without_a_graph_are_found_with_their_cause(how):
    model = Lossy(how)
    with Taps(model, ["stem", "part", "head"]) as taps:
        model(X)
        lost = without_graph(taps)
    assert list(lost) == (["part"] if how in CAUSES else [])
    assert CAUSES.get(how, "") in lost.get("part", "")


def test_a_detached_tensor_is_found_below_and_after():
    model = Lossy("detached")
    with Taps(model, ["part:input", "pool:input", "pool"]) as taps:
        model(X)
        lost = without_graph(taps)
    assert set(lost) == {"part:input", "pool:input", "pool"}
    assert all("detaches" in cause for cause in lost.values())


def test_what_is_frozen_has_no_graph_by_intent():
    model = Lossy("plain")
    model.stem.requires_grad_(False)
    model.part.requires_grad_(False)
    with Taps(model, ["stem", "part", "pool", "head:input", "head"]) as taps:
        model(X)
        assert without_graph(taps) == {}


def test_a_copy_of_a_compiled_model_is_not_tapped():
    model = torch.compile(net(), backend="eager")
    with Taps(model, ["1"]) as taps:
        model(X)
        before = taps["1"]
        copy.deepcopy(model)(X + 1)
        assert taps["1"] is before
