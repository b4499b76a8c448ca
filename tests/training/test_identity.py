"""What a checkpoint or a cache is told apart by: no address, and no two things for one."""

import contextlib
import copy
import functools
import os
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import Readable, interrupt_at, make_cnn, make_data, make_mlp, same, stopping_is_expected
from torch import nn

from kdlab.compression import Deployed
from kdlab.distillers import Distiller, Gated, SoftTargets
from kdlab.models import WithOutput
from kdlab.training import TeacherOutputs, fit, stored_teacher_outputs
from kdlab.training.identity import check_trainable, describe, describe_trained, fingerprint

DATA = make_data()
SHORT = {"epochs": 2, "batch_size": 32, "lr": 0.05}


def train(path=None, model=None, **options):
    return fit(model or make_mlp(DATA), DATA, checkpoint=path, **SHORT | options)


def shifted(images, index=0, view=0):
    return images + 0.1 * view


def by(strength):
    def brighter(images, index=0, view=0):
        return images + strength * view

    return brighter


@torch.no_grad()
def decorated(images, index=0, view=0):
    return images.flip(-1)


def made(body):
    """A function without source, as one that was made by ``exec``."""
    scope = {}
    exec(body, scope)
    return scope["f"]


def local_class(factor):
    class Local:
        @torch.no_grad()
        def forward(self, x):
            return factor * x

    return Local


@dataclass
class Noise:
    strength: float
    shape: torch.Tensor


@dataclass
class Settings:
    path: Path
    rate: float


class Anonymous:
    def __init__(self, strength):
        self.strength = strength

    def __call__(self, images, index=0, view=0):
        return images * self.strength


class Named(Anonymous):
    def __repr__(self):
        return f"Named({self.strength})"


ZEROS, PEAK = np.zeros(5000), (np.arange(5000) == 2000) * 1.0
NAMED = {
    "function": (shifted, decorated),
    "function without source": (made("def f(x): return x - 1"), made("def f(x): return x - 2")),
    "order of arguments": (made("def f(a, b): return a - b"), made("def f(b, a): return b - a")),
    "defaults": (made("def f(x, k=1): return x"), made("def f(x, k=2): return x")),
    "keyword defaults": (made("def f(*, k=1): return k"), made("def f(*, k=2): return k")),
    "closure": (by(0.1), by(0.2)),
    "closure over a function": (by(shifted), by(decorated)),
    "partial": (functools.partial(shifted, view=1), functools.partial(shifted, view=2)),
    "cached": (functools.cache(shifted), functools.cache(decorated)),
    "method": (Named(1.0).__call__, Named(2.0).__call__),
    "torch": (torch.relu, torch.sigmoid),
    "library": (nn.functional.relu, nn.functional.gelu),
    "class": (nn.ReLU, nn.GELU),
    "local class": (local_class(1), local_class(2)),
    "dataclass": (Noise(0.1, torch.ones(1, 8, 8)), Noise(0.1, torch.eye(8)[None])),
    "settings with a file": (Settings(Path(__file__), 1.0), Settings(Path(__file__), 2.0)),
    "repr": (Named(1.0), Named(2.0)),
    "shortened repr": (Named(ZEROS), Named(PEAK)),
    "attributes": (types.SimpleNamespace(a=shifted), types.SimpleNamespace(a=decorated)),
    "class attributes": (type("S", (), {"a": 1})(), type("S", (), {"a": 2})()),
    "layers of a class": (type("S", (), {"a": nn.ReLU}), type("S", (), {"a": nn.GELU})),
    "module": (nn.Flatten(0, 1), nn.Flatten(0, 2)),
    "set": ({"a", "b", "c", "d"}, {"a", "b", "c", "e"}),
    "long array": (ZEROS, PEAK),
    "long tensor": (torch.tensor(ZEROS), torch.tensor(PEAK)),
}
UNNAMED = {
    "lambda": lambda *batch: batch[0],
    "lambda in a closure": by(lambda *batch: batch[0]),
    "partial of a lambda": functools.partial(lambda strength, *batch: batch[0], 2),
    "default": made("def f(x, k=lambda: 1): return x"),
    "object": Anonymous(1),
    "its method": Anonymous(1).__call__,
    "a repr with an address in it": Named(lambda: 0),
    "a list with one": [1, {"two": lambda: 2}],
    "random generator": torch.Generator(),
    "NumPy's generator": np.random.default_rng(0),
    "iterator": iter([1]),
}


@pytest.mark.parametrize("kind", NAMED)
def test_equal_things_are_described_alike_and_others_not(kind):
    first, second = NAMED[kind]
    text = describe(first)
    assert "0x" not in text and describe(first) == text != describe(second)
    with contextlib.suppress(TypeError):  # a local class cannot be copied
        assert describe(copy.deepcopy(first)) == text


@pytest.mark.parametrize("kind", UNNAMED)
def test_what_has_no_stable_name_is_refused_with_advice(kind):
    with pytest.raises(ValueError, match=r"^augment.*: got .*expected .*stable name.*; use a func"):
        describe(UNNAMED[kind], "augment")
    unnamed: list = []
    assert "0x" not in describe(UNNAMED[kind], "augment", unnamed) and len(unnamed) == 1


def test_what_holds_itself_has_a_description():
    def called(x):
        return called(x - 1) if x else held

    held = [called]
    held.append(held)
    assert describe(held) == describe(held) and "0x" not in describe(held)


# --- where identity is needed, and where not -----------------------------------------------------


class Mixed(Distiller):
    """Labels, and whatever option a reader may hand to a method of his own."""

    needs_teacher = False

    def __init__(self, option=None) -> None:
        super().__init__()
        self.option = option
        self.prepared = 0

    def prepare(self, student, teacher, train):
        self.prepared += 1

    def forward(self, student, teacher, targets):
        return {"hard": nn.functional.cross_entropy(student.logits, targets)}


class Scaled(nn.Module):
    """Models of equal weights that differ in what no weight shows."""

    def __init__(self, scale=1.0, act=torch.relu, hidden=0.0):
        super().__init__()
        self.scale, self.act, self.calls = scale, act, 0
        self.register_buffer("hidden", torch.tensor(hidden), persistent=False)
        self.inner = make_mlp(DATA)

    def forward(self, x):
        self.calls, self.last = self.calls + 1, x
        return self.act(self.inner(x)) * self.scale + self.hidden


class Doubled(Scaled):
    def forward(self, x):
        return 2 * super().forward(x)


class Shown(Scaled):
    def __init__(self, heads):
        super().__init__()
        self.groups = heads

    def extra_repr(self):
        return f"heads={self.groups}"


def gated(function):
    def gate(student, teacher, targets):
        return function(torch.ones(len(student)))

    return gate if function.__name__ != "<lambda>" else lambda *batch: gate(*batch)


def with_function(what, function):
    """Options of a run with a function in one of the places that may have one."""
    return {
        "augment": {"augment": function},
        "output": {"output": function},
        "distiller": {"distiller": Mixed([function])},
        "gate": {"distiller": Gated(SoftTargets(), gated(function)), "teacher": Scaled()},
        "model": {"model": Scaled(act=function)},
        "teacher": {"distiller": SoftTargets(), "teacher": WithOutput(Scaled(), function)},
    }[what]


PLACES = ["augment", "output", "distiller", "gate", "model", "teacher"]


@pytest.mark.parametrize("what", PLACES)
def test_a_lambda_is_refused_before_any_work_where_a_checkpoint_is_wanted(tmp_path, what):
    options = {"model": make_mlp(DATA), "distiller": Mixed()}
    options |= with_function(what, lambda images, index=0, view=0: images)
    before = copy.deepcopy(options["model"].state_dict())
    with pytest.raises(
        ValueError, match=f"^{what.replace('gate', 'distiller')}.*: got .*stable name"
    ):
        train(tmp_path / "a.pt", **options)
    assert same(options["model"].state_dict(), before) and not list(tmp_path.iterdir())
    assert not getattr(options["distiller"], "prepared", 0)
    train(**options)


@pytest.mark.parametrize("what", PLACES)
def test_a_checkpoint_tells_two_functions_apart(tmp_path, what):
    train(tmp_path / "a.pt", **with_function(what, by(0.1)))
    assert train(tmp_path / "a.pt", **with_function(what, by(0.1))).steps == 0
    with pytest.raises(
        ValueError,
        match=rf"^checkpoint: a.pt belongs to another run \({what.replace('gate', 'distiller')}: ",
    ):
        train(tmp_path / "a.pt", **with_function(what, by(0.2)))


def test_the_teachers_outputs_are_kept_in_memory_under_a_lambda_and_for_no_other(tmp_path):
    teacher = Readable(DATA)
    augment = lambda images, index, view: images + view  # noqa: E731
    train(distiller=SoftTargets(), teacher=teacher, augment=augment, views=2, epochs=4)
    assert teacher.images < 3 * len(DATA.train)  # two views of each, and a rehearsal
    kept = TeacherOutputs.build(teacher, DATA, augment, 2)
    kept.to(torch.device("cpu")).check(teacher, DATA, augment, 2)
    with pytest.raises(ValueError, match="another function without a name"):
        kept.check(teacher, DATA, lambda images, index, view: images - view, 2)
    with pytest.raises(ValueError, match="another augmentation"):
        kept.check(teacher, DATA, shifted, 2)
    with pytest.raises(ValueError, match=r"^teacher_outputs: got a lambda"):
        kept.save(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"^augment: got a lambda"):
        stored_teacher_outputs(tmp_path, teacher, DATA, augment, 2)
    assert not list(tmp_path.iterdir())


def equal(first, second):
    second.load_state_dict(first.state_dict())
    return first, second


def test_models_of_equal_weights_are_told_apart():
    models = [Scaled(), Scaled(2.0), Scaled(act=torch.tanh), Doubled(), Shown(1), Shown(2)]
    models += equal(nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 4))
    models += equal(nn.LSTM(2, 2, 2, dropout=0.1), nn.LSTM(2, 2, 2, dropout=0.2))
    assert len({*map(fingerprint, [*models, Scaled(hidden=1.0)])}) == len(models) + 1
    assert len({describe_trained(model)["model"] for model in models}) == len(models)
    before = fingerprint(models[0])
    models[0](DATA.test.x)
    assert fingerprint(models[0]) == before  # what a forward counts and keeps is no setting


def test_a_compiled_model_is_the_model():
    model, compiled = make_cnn(DATA), torch.compile(make_cnn(DATA))
    parts = [nn.Sequential(each, nn.Identity()) for each in (compiled, model)]
    assert fingerprint(compiled) == fingerprint(model)
    assert fingerprint(parts[0]) == fingerprint(parts[1])
    assert describe_trained(compiled) == describe_trained(model)


def test_files_and_functions_as_teachers(tmp_path):
    path = tmp_path / "t.onnx"

    def deployed(content):
        path.write_bytes(content)
        return fingerprint(Deployed(path, ("a", "b"), (1, 8, 8), 3, 1, {}, lambda x: x))

    assert deployed(b"one") == deployed(b"one") != deployed(b"two")
    assert fingerprint(WithOutput(by(1))) == fingerprint(by(1)) != fingerprint(by(2))
    logits = functools.partial(torch.flatten, start_dim=1)
    options = {"distiller": SoftTargets(), "teacher": WithOutput(logits, output=first_four)}
    options["teacher_outputs"] = TeacherOutputs.build(options["teacher"], DATA)
    train(tmp_path / "a.pt", **options)
    assert train(tmp_path / "a.pt", **options).steps == 0
    with pytest.raises(ValueError, match="another teacher"):
        options["teacher_outputs"].check(logits, DATA, None, 1)


def first_four(returned):
    return returned[:, :4]


# --- another process ------------------------------------------------------------------------------


def whole(path, callbacks=()):
    """A run with everything that used to be known by its address, or by an order of hashes."""
    method = Mixed([by(0.5), NAMED["set"][0], Noise(0.5, torch.ones(2)), local_class])
    teacher = WithOutput(make_cnn(DATA, 9), functools.partial(torch.mul, other=torch.tensor(2.0)))
    options = {"augment": by(0.1), "distiller": method + SoftTargets(), "teacher": teacher}
    return train(path, make_cnn(DATA), callbacks=callbacks, **options)


def described():
    torch.jit.script(nn.Flatten())  # TorchScript numbers what it makes
    script = torch.jit.script(nn.Sequential(nn.Flatten()))
    return describe([NAMED, UNNAMED, script], "x", [])


CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(int(sys.argv[4]))
import test_identity as here
run = here.whole(sys.argv[2])
print(run.steps, run.interrupted, here.described())
torch.save(run.model.state_dict(), sys.argv[3])
"""


def test_another_process_goes_on_with_its_checkpoint(tmp_path):
    with stopping_is_expected():
        first = whole(tmp_path / "a.pt", [interrupt_at(0, 2)])
    arguments = [Path(__file__).parent, tmp_path / "a.pt", tmp_path / "b.pt"]
    said = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, arguments), str(torch.get_num_threads())],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert said.stdout == f"{6 - first.steps} False {described()}\n", said.stderr
    unbroken = whole(None).model.state_dict()
    assert same(torch.load(tmp_path / "b.pt", weights_only=True), unbroken)


# --- what can be trained at all -------------------------------------------------------------------


def inference_net():
    with torch.inference_mode():
        return nn.Linear(64, 4)


def inference_norm():
    net = nn.BatchNorm1d(4)
    with torch.inference_mode():
        net.register_buffer("running_mean", torch.zeros(4))
    return net


def sparse_net():
    net = nn.Linear(4, 4)
    net.weight = nn.Parameter(torch.eye(4).to_sparse())
    return net


UNTRAINABLE = {
    "without any parameter": nn.Flatten(),
    "got function, expected a torch.nn.Module": by(1),
    "'0.weight', which is complex": nn.Sequential(nn.Linear(64, 4, dtype=torch.cfloat)),
    "'0.weight', which is lazy": nn.Sequential(nn.LazyLinear(4)),
    "'0.weight', which is on the meta": nn.Sequential(nn.Linear(64, 4).to("meta")),
    "'weight', which is sparse": sparse_net(),
    "'weight', which was made in inf": inference_net(),
    "'running_mean', which was made in inf": inference_norm(),
    "frozen parameters alone": nn.Linear(2, 2).requires_grad_(False),
    "'0' with sparse=True": nn.Sequential(nn.Embedding(4, 4, sparse=True)),
}


@pytest.mark.parametrize("message", UNTRAINABLE)
def test_what_cannot_be_trained_is_said(message):
    with pytest.raises(ValueError, match=f"^student: .*{message}"):
        check_trainable(UNTRAINABLE[message], "student")


def test_an_exported_program_cannot_be_trained():
    net = nn.Sequential(nn.Linear(3, 2)).eval()
    programs = [torch.export.export(net, (torch.zeros(2, 3),)).module() for _ in range(2)]
    with pytest.raises(ValueError, match=r"^model: got an exported program"):
        check_trainable(programs[0])
    check_trainable(net)
    assert not net.training and fingerprint(programs[0]) == fingerprint(programs[1])


def test_what_can_be_trained_passes():
    frozen = make_cnn(DATA)
    frozen[0].requires_grad_(False)
    frozen.register_buffer("wave", torch.zeros(2, dtype=torch.cfloat))
    frozen.register_buffer("graph", torch.eye(2).to_sparse())
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    for model in (frozen, torch.compile(make_mlp(DATA)), make_mlp(DATA).double(), normed):
        check_trainable(model)
