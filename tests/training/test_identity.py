"""What a checkpoint or a cache is told apart by: no address, and no two things for one."""

import copy
import functools
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import Readable, interrupt_at, make_cnn, make_data, make_mlp, same, stopping_is_expected
from torch import nn

from kdlab.compression import Deployed
from kdlab.distillers import Distiller, SoftTargets
from kdlab.models import WithOutput
from kdlab.training import TeacherOutputs, fit, stored_teacher_outputs
from kdlab.training.identity import check_trainable, describe, describe_trained, fingerprint, moving

DATA = make_data()
SHORT = {"epochs": 2, "batch_size": 32, "lr": 0.05}
STRENGTH = 0.1
SEEN: list[int] = []


def shifted(images, index, view):
    SEEN.append(view)
    return images + STRENGTH * view


def by(strength):
    def brighter(images, index, view):
        return images + strength * view

    return brighter


@torch.no_grad()
def decorated(images, index, view):
    return images.flip(-1)


@dataclass
class Noise:
    strength: float
    shape: torch.Tensor

    def __call__(self, images, index, view):
        return images + self.strength * self.shape


class Named:
    def __init__(self, strength):
        self.strength = strength

    def __call__(self, images, index, view):
        return images * self.strength

    def __repr__(self):
        return f"Named({self.strength})"


class Anonymous:
    def __init__(self, strength):
        self.strength = strength

    def __call__(self, images, index, view):
        return images * self.strength

    def shown(self, images, index, view):
        return images * self.strength


class Mixed(Distiller):
    """Labels, and whatever options a reader may hand to a method of his own."""

    needs_teacher = False

    def __init__(self, option=None) -> None:
        super().__init__()
        self.option = option

    def forward(self, student, teacher, targets):
        return {"hard": nn.functional.cross_entropy(student.logits, targets)}


NAMED = {
    "function": (shifted, decorated),
    "closure": (by(0.1), by(0.2)),
    "partial": (functools.partial(shifted, view=1), functools.partial(shifted, view=2)),
    "dataclass": (Noise(0.1, torch.ones(1, 8, 8)), Noise(0.1, torch.eye(8)[None])),
    "class": (Named(1.0), Named(2.0)),
    "method": (Named(1.0).__call__, Named(2.0).__call__),
    "module": (nn.Flatten(0, 1), nn.Flatten(0, 2)),
    "set": ({"a", "b", "c", "d"}, {"a", "b", "c", "e"}),
    "long array": (np.zeros(5000), (np.arange(5000) == 2000) * 1.0),
    "long tensor": (torch.zeros(5000), (torch.arange(5000) == 2000).float()),
    "torch": (torch.relu, torch.sigmoid),
    "class itself": (nn.ReLU, nn.GELU),
    "settings": (type("S", (), {"a": 1})(), type("S", (), {"a": 2})()),
    "library": (nn.functional.relu, nn.functional.gelu),
}
UNNAMED = {
    "lambda": lambda *batch: batch[0],
    "lambda in a closure": by(lambda *batch: batch[0]),
    "partial of a lambda": functools.partial(lambda strength, *batch: batch[0], 2),
    "object": Anonymous(1),
    "its method": Anonymous(1).shown,
    "a repr with an address in it": Named(lambda: 0),
    "a list with one": [1, {"two": lambda: 2}],
    "random generator": torch.Generator(),
    "NumPy's generator": np.random.default_rng(0),
}


@pytest.mark.parametrize("kind", NAMED)
def test_equal_things_are_described_alike_and_others_not(kind):
    first, second = NAMED[kind]
    text = describe(first)
    assert "0x" not in text and describe(second) != text
    if not isinstance(first, type) and kind not in ("torch", "library", "function"):
        assert describe(copy.deepcopy(first)) == text


@pytest.mark.parametrize("kind", UNNAMED)
def test_what_has_no_stable_name_is_refused_with_advice(kind):
    with pytest.raises(ValueError, match=r"^augment.*: got .*expected .*stable name.*; use a func"):
        describe(UNNAMED[kind], "augment")
    unnamed: list = []
    assert "0x" not in describe(UNNAMED[kind], "augment", unnamed) and len(unnamed) == 1


def test_a_function_is_known_by_its_code_and_by_what_it_reads(monkeypatch):
    text = describe(shifted)
    shifted(torch.zeros(1), None, 3)  # what it adds to SEEN is no part of what it is
    assert describe(shifted) == text
    monkeypatch.setitem(globals(), "STRENGTH", 0.2)
    assert describe(shifted) != text
    scopes = [{}, {}]
    for scope, body in zip(scopes, ("x + 1", "x + 2"), strict=True):
        exec(f"def f(x, k=1): return {body}", scope)
    assert describe(scopes[0]["f"]) != describe(scopes[1]["f"])
    before = describe(scopes[0]["f"])
    scopes[0]["f"].__defaults__ = (2,)
    assert describe(scopes[0]["f"]) != before


def test_what_code_changes_is_told_from_what_it_reads():
    def forward(self, x, out):
        global STRENGTH
        out[:, self.offset] = self.scale * x
        self.memory[self.where(x)] = x if x is None else self.other
        self.count += 1
        STRENGTH = self.strength
        SEEN[x] = self.a
        del self.kept["k"]
        self.names.add(self.name)
        self.running.mul_(self.momentum)

    changed = {"memory", "count", "STRENGTH", "SEEN", "kept", "names", "running"}
    assert moving(forward.__code__) - {"out"} == changed


# --- where identity is needed, and where not -----------------------------------------------------


def train(path=None, model=None, **options):
    model = model or make_mlp(DATA)
    return fit(model, DATA, checkpoint=path, **SHORT | options)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("augment", {"augment": lambda images, index, view: images}),
        ("augment", {"augment": Anonymous(1.0)}),
        ("distiller.option", {"distiller": Mixed(lambda: 0)}),
        ("distiller.option", {"distiller": Mixed([Anonymous(1)])}),
        ("model.output", {"model": WithOutput(make_mlp(DATA), lambda returned: returned)}),
        (
            "teacher.output",
            {
                "distiller": SoftTargets(),
                "teacher": WithOutput(make_mlp(DATA), lambda returned: returned),
            },
        ),
    ],
)
def test_a_run_with_a_lambda_trains_but_has_no_checkpoint(tmp_path, argument, options):
    train(**copy.deepcopy(options))
    model = options.pop("model", None) or make_mlp(DATA)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"^{argument}.*: got .*stable name"):
        train(tmp_path / "a.pt", model, **options)
    assert same(model.state_dict(), before) and not list(tmp_path.iterdir())


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


@pytest.mark.parametrize("kind", ["function", "closure", "partial", "dataclass", "class"])
def test_a_checkpoint_tells_two_augmentations_apart(tmp_path, kind):
    first, second = NAMED[kind]
    if kind == "partial":
        first, second = (functools.partial(by, 0.1)(), functools.partial(by, 0.3)())
    train(tmp_path / "a.pt", augment=first)
    assert train(tmp_path / "a.pt", augment=first).steps == 0
    with pytest.raises(ValueError, match=r"^checkpoint: a.pt belongs to another run \(augment"):
        train(tmp_path / "a.pt", augment=second)


@pytest.mark.parametrize("kind", NAMED)
def test_a_checkpoint_tells_two_options_of_a_method_apart(tmp_path, kind):
    first, second = NAMED[kind]
    train(tmp_path / "a.pt", distiller=Mixed(first))
    assert train(tmp_path / "a.pt", distiller=Mixed(first)).steps == 0
    with pytest.raises(ValueError, match=r"^checkpoint: a.pt belongs to another run \(distiller"):
        train(tmp_path / "a.pt", distiller=Mixed(second))


class Scaled(nn.Module):
    """Models of equal weights that differ in what no weight shows."""

    def __init__(self, scale=1.0, act=torch.relu, hidden=0.0):
        super().__init__()
        self.scale, self.act, self.calls = scale, act, 0
        self.register_buffer("hidden", torch.tensor(hidden), persistent=False)
        self.inner = make_mlp(DATA)

    def forward(self, x):
        self.calls += 1
        return self.inner(x) * self.scale + self.hidden


class Doubled(Scaled):
    def forward(self, x):
        return 2 * super().forward(x)


def test_models_of_equal_weights_are_told_apart(tmp_path):
    others = [Scaled(), Scaled(2.0), Scaled(act=torch.tanh), Scaled(hidden=1.0), Doubled()]
    hooked, recorded = Scaled(), Scaled()
    hooked.register_forward_hook(decorated)
    recorded.register_forward_hook(lambda module, inputs, output: SEEN.append(len(output)))
    assert len({*map(fingerprint, [*others, hooked, recorded])}) == 7
    asked = Scaled()
    asked(DATA.test.x)
    assert fingerprint(asked) == fingerprint(others[0])  # a count of calls is no setting
    train(tmp_path / "a.pt", Scaled())
    with pytest.raises(ValueError, match="belongs to another run"):
        train(tmp_path / "a.pt", Scaled(act=torch.tanh))


def test_a_compiled_model_is_the_model():
    model = make_cnn(DATA)
    part = nn.Sequential(model, nn.Identity())
    assert fingerprint(torch.compile(model)) == fingerprint(model)
    assert fingerprint(nn.Sequential(torch.compile(model), nn.Identity())) == fingerprint(part)
    assert describe_trained(torch.compile(model)) == describe_trained(model)


def test_files_and_functions_as_teachers(tmp_path):
    path = tmp_path / "t.onnx"

    def deployed(content):
        path.write_bytes(content)
        made = Deployed(path, ("a", "b"), (1, 8, 8), 3, 1, {}, lambda x: x)
        return fingerprint(made), fingerprint(WithOutput(made))

    assert deployed(b"one") == deployed(b"one") != deployed(b"two")
    assert fingerprint(WithOutput(by(1))) == fingerprint(WithOutput(by(1))) == fingerprint(by(1))
    assert fingerprint(WithOutput(by(1))) != fingerprint(WithOutput(by(2)))


def eightfold(images):
    return 8 * images.flatten(1)[:, :4]


def test_a_function_is_asked_once_and_its_cache_is_its_own(tmp_path):
    kept = TeacherOutputs.build(eightfold, DATA)
    torch.testing.assert_close(
        kept(torch.arange(5), 0), eightfold(DATA.train.x[:5]), atol=0.02, rtol=0
    )
    options = {"distiller": SoftTargets(), "teacher": eightfold, "teacher_outputs": kept}
    train(tmp_path / "a.pt", **options)
    assert train(tmp_path / "a.pt", **options).steps == 0
    with pytest.raises(ValueError, match="another teacher"):
        kept.check(torch.sigmoid, DATA, None, 1)
    stored_teacher_outputs(tmp_path, eightfold, DATA)
    stored_teacher_outputs(tmp_path, eightfold, DATA)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


# --- another process ------------------------------------------------------------------------------


def whole(path, callbacks=()):
    """A run with everything that used to be known by its address, or by an order of hashes."""
    option = [by(0.5), NAMED["set"][0], Noise(0.5, torch.ones(2)), nn.functional.relu]
    distiller = Mixed(option) + SoftTargets()
    teacher = WithOutput(make_cnn(DATA, 9), functools.partial(torch.mul, other=torch.tensor(2.0)))
    options = {"augment": by(0.1), "distiller": distiller, "teacher": teacher}
    return train(path, make_cnn(DATA), callbacks=callbacks, **options)


CHILD = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(int(sys.argv[4]))
import test_identity as here
run = here.whole(sys.argv[2])
print(run.steps, run.interrupted, here.describe(here.UNNAMED, "x", []))
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
    described = describe(UNNAMED, "x", [])
    assert said.stdout == f"{6 - first.steps} False {described}\n", said.stderr
    unbroken = whole(None).model.state_dict()
    assert same(torch.load(tmp_path / "b.pt", weights_only=True), unbroken)


# --- what can be trained at all -------------------------------------------------------------------


def inference_net():
    with torch.inference_mode():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


def inference_norm():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4))
    with torch.inference_mode():
        net[2].register_buffer("running_mean", torch.zeros(4))
    return net


UNTRAINABLE = {
    "without any parameter": nn.Flatten(),
    "got function, expected a torch.nn.Module": by(1),
    "'1.weight', which is complex": nn.Sequential(
        nn.Flatten(), nn.Linear(64, 4, dtype=torch.cfloat)
    ),
    "'1.weight', which is lazy": nn.Sequential(nn.Flatten(), nn.LazyLinear(4)),
    "'1.weight', which is on the meta": nn.Sequential(nn.Flatten(), nn.Linear(64, 4).to("meta")),
    "'1.weight', which was made in inf": inference_net(),
    "'2.running_mean', which was made in inf": inference_norm(),
    "frozen parameters alone": nn.Linear(2, 2).requires_grad_(False),
    "'0' with sparse=True": nn.Sequential(nn.Embedding(4, 4, sparse=True)),
}


@pytest.mark.parametrize("message", UNTRAINABLE)
def test_what_cannot_be_trained_is_said(message):
    with pytest.raises(ValueError, match=f"^student: .*{message}"):
        check_trainable(UNTRAINABLE[message], "student")


def test_an_exported_program_cannot_be_trained():
    net = nn.Sequential(nn.Linear(3, 2)).eval()
    program = torch.export.export(net, (torch.zeros(2, 3),)).module()
    with pytest.raises(ValueError, match=r"^model: got an exported program"):
        check_trainable(program)
    check_trainable(net)
    assert fingerprint(program) == fingerprint(program)


def test_what_can_be_trained_passes():
    frozen = make_cnn(DATA)
    frozen[0].requires_grad_(False)
    frozen.register_buffer("wave", torch.zeros(2, dtype=torch.cfloat))
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    for model in (frozen, torch.compile(make_mlp(DATA)), make_mlp(DATA).double(), normed):
        check_trainable(model)
