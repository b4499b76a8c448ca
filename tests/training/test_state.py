"""A checkpoint and a cache take any state that a model may have, and say what they cannot take."""

import copy

import pytest
import torch
from tiny import distance, interrupt_at, make_cnn, make_data, make_mlp, same, stopping_is_expected
from torch import nn

from kdlab.distillers import SoftTargets
from kdlab.training import TeacherOutputs, fit
from kdlab.training.checkpoint import load_checkpoint
from kdlab.training.identity import describe, fingerprint

DATA = make_data()
SHORT = {"epochs": 2, "batch_size": 32, "lr": 0.05}
old_quantization = pytest.mark.filterwarnings("ignore:.*quanti", "ignore:.*script_method")


def train(path, model, callbacks=(), **options):
    return fit(model, DATA, checkpoint=path, callbacks=callbacks, **SHORT | options)


def stored(path) -> dict:
    return torch.load(path, weights_only=True)


# --- teachers of every kind -----------------------------------------------------------------------


class Extra(nn.Module):
    """A model with state that is no tensor."""

    def __init__(self, extra=None, seed=0):
        super().__init__()
        self.inner = make_mlp(DATA, seed)
        self.put(extra)

    def put(self, extra):
        self._extra = [extra]

    def forward(self, x):
        return self.inner(x)

    def get_extra_state(self):
        return self._extra[0]

    def set_extra_state(self, state):
        self.put(state)


class Holding(nn.Module):
    """A model with a buffer of any kind."""

    def __init__(self, held, seed=0):
        super().__init__()
        self.inner = make_mlp(DATA, seed)
        self.register_buffer("held", held)

    def forward(self, x):
        return self.inner(x)


class Plain:
    def __init__(self, number):
        self.number = number


def seeded(seed, make, *arguments):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(*arguments)


def mixed_net(seed):
    linear = seeded(seed, nn.Linear, 64, 32)
    return nn.Sequential(nn.Flatten(), linear, nn.ReLU(), seeded(seed + 1, nn.Linear, 32, 4))


def dynamic(seed):
    return torch.ao.quantization.quantize_dynamic(mixed_net(seed), {nn.Linear})


def torchao(seed):
    quantization = pytest.importorskip("torchao.quantization")
    net = mixed_net(seed)
    quantization.quantize_(net, quantization.Int8WeightOnlyConfig())
    return net


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 4, batch_first=True)

    def forward(self, x):
        return self.lstm(x.flatten(1, 2))[0][:, -1]


def dynamic_lstm(seed):
    return torch.ao.quantization.quantize_dynamic(seeded(seed, Recurrent), {nn.LSTM})


def values(seed):
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))


TEACHERS = {
    "dynamically quantized": dynamic,
    "quantized LSTM": dynamic_lstm,
    "torchao": torchao,
    "extra tensor": lambda seed: Extra(values(seed)),
    "extra dict": lambda seed: Extra({"a": [values(0), {"b": seed}], "c": b"x"}),
    "extra bytes": lambda seed: Extra(bytes([seed]) * 400),
    "extra object": lambda seed: Extra(Plain(seed)),
    "extra dtype": lambda seed: Extra((torch.float16, torch.float32)[seed]),
    "sparse": lambda seed: Holding(values(seed).relu().to_sparse()),
    "csr": lambda seed: Holding(values(seed).relu().to_sparse_csr()),
    "quantized tensor": lambda seed: Holding(
        torch.quantize_per_tensor(values(seed), 0.1, 0, torch.qint8)
    ),
    "complex": lambda seed: Holding(torch.complex(values(seed), values(seed))),
    "bf16": lambda seed: Holding(values(seed).bfloat16()),
    "none": lambda seed: Holding(None, seed),
    "hidden layers": lambda seed: (
        lambda net: setattr(net, "layers_in_a_list", [make_mlp(DATA, seed)]) or net
    )(make_mlp(DATA)),
}


@old_quantization
@pytest.mark.parametrize("kind", TEACHERS)
def test_teachers_with_any_state(tmp_path, kind):
    first, again, other = (TEACHERS[kind](seed) for seed in (0, 0, 1))
    assert fingerprint(first) == fingerprint(again) != fingerprint(other)
    kept = TeacherOutputs.build(first, DATA)
    kept.check(again, DATA, None, 1)
    with pytest.raises(ValueError, match="another teacher"):
        kept.check(other, DATA, None, 1)
    train(tmp_path / "a.pt", make_mlp(DATA), distiller=SoftTargets(), teacher=first)
    with pytest.raises(ValueError, match=r"another run \(teacher: "):
        train(tmp_path / "a.pt", make_mlp(DATA), distiller=SoftTargets(), teacher=other)


# --- students of every kind -----------------------------------------------------------------------


class Tied(nn.Module):
    """Encoder and decoder share one weight."""

    def __init__(self, seed=0):
        super().__init__()
        self.first = seeded(seed, nn.Linear, 64, 64)
        self.second = seeded(seed, nn.Linear, 64, 64)
        self.second.weight = self.first.weight
        self.head = seeded(seed, nn.Linear, 64, 4)

    def forward(self, x):
        return self.head(self.second(self.first(x.flatten(1)).relu()))


class Unsaved(nn.Module):
    """A running statistic that state_dict leaves out, and one that appears with the first batch."""

    def __init__(self, seed=0):
        super().__init__()
        self.inner = make_mlp(DATA, seed)
        self.register_buffer("mean", torch.zeros(()), persistent=False)
        self.register_buffer("late", None, persistent=False)

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + x.mean()
            self.late = x[0].detach().clone()
        return self.inner(x - self.mean)


class Counting(Extra):
    """Extra state that moves, and has to come back."""

    def forward(self, x):
        if self.training:
            self._extra[0]["batches"] += 1
            self._extra[0]["mean"] += x.mean()
        return self.inner(x) + self._extra[0]["mean"]


def counting(seed):
    return Counting({"batches": 0, "mean": torch.zeros(()), "kind": "a", "raw": b"x"}, seed)


def partly_quantized(seed):
    frozen = dynamic(3)[:2]
    return nn.Sequential(*frozen, nn.ReLU(), seeded(seed, nn.Linear, 32, 4))


def partly_torchao(seed):
    return nn.Sequential(torchao(3), seeded(seed, nn.Linear, 4, 4))


STUDENTS = {
    "tied": Tied,
    "buffers left out of state_dict": Unsaved,
    "extra state": counting,
    "partly quantized": partly_quantized,
    "partly torchao": partly_torchao,
    "double": lambda seed: make_mlp(DATA, seed),
    "sparse": lambda seed: Holding(values(0).relu().to_sparse(), seed),
    "quantized tensor": lambda seed: Holding(
        torch.quantize_per_tensor(values(0), 0.1, 0, torch.qint8), seed
    ),
    "float8": lambda seed: Holding(values(0).to(torch.float8_e4m3fn), seed),
    "conjugate": lambda seed: Holding(torch.complex(values(0), values(1)).conj(), seed),
}


@old_quantization
@pytest.mark.parametrize("kind", STUDENTS)
def test_students_with_any_state_resume_bit_for_bit(tmp_path, kind):
    whole = STUDENTS[kind](0)
    train(None, whole)
    with stopping_is_expected():
        assert train(tmp_path / "a.pt", STUDENTS[kind](0), [interrupt_at(1, 1)]).interrupted
    resumed = STUDENTS[kind](5)  # in another process it may begin with other weights
    assert train(tmp_path / "a.pt", resumed).steps == 2
    assert describe(resumed.state_dict()) == describe(whole.state_dict())
    assert describe(dict(resumed.named_buffers())) == describe(dict(whole.named_buffers()))
    if kind == "tied":
        assert resumed.first.weight is resumed.second.weight
        loose = Tied()
        loose.second.weight = nn.Parameter(loose.first.weight.detach().clone())
        with pytest.raises(ValueError, match=r"second.weight: None stored, float32 \[64, 64\] now"):
            train(tmp_path / "a.pt", loose)


@pytest.mark.parametrize("make", [Unsaved, counting])
def test_a_diverged_run_leaves_the_state_of_the_last_good_epoch(make):
    model = make(0)
    before = describe([model.state_dict(), dict(model.named_buffers())])
    with pytest.raises(ValueError, match="lr: got 1e"):
        train(None, model, lr=1e18)
    assert describe([model.state_dict(), dict(model.named_buffers())]) == before


UNSTORABLE = {
    "a Plain as '_extra_state'": lambda: Extra(Plain(3)),
    "a ScriptObject as '0.lstm.*param'": lambda: nn.Sequential(dynamic_lstm(3), nn.Linear(4, 4)),
    "a Tensor of layout torch._mkldnn as 'held'": lambda: Holding(torch.ones(3, 3).to_mkldnn()),
    "a Tensor of layout torch.strided as 'held'": lambda: Holding(
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    ),
}


@old_quantization
@pytest.mark.parametrize("kind", UNSTORABLE)
def test_state_that_no_file_gives_back_is_refused_before_training(tmp_path, kind):
    model, moments = UNSTORABLE[kind](), []
    message = rf"^checkpoint: got {kind} in the state of the model, expected tens"
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "a.pt", model, [moments.append])
    assert not moments and not (tmp_path / "a.pt").exists()
    train(None, model)


def eagerly(model):
    return torch.compile(model, backend="eager")


def nested(model):
    return nn.Sequential(eagerly(model), nn.Identity())


@pytest.mark.parametrize(
    ("first", "then"), [(eagerly, lambda m: m), (lambda m: m, eagerly), (eagerly, eagerly)]
)
def test_a_compiled_model_has_the_checkpoint_of_the_model(tmp_path, first, then):
    whole = make_cnn(DATA)
    train(None, whole)
    with stopping_is_expected():
        train(tmp_path / "a.pt", first(make_cnn(DATA)), [interrupt_at(1, 1)])
    assert not any("_orig_mod" in key for key in stored(tmp_path / "a.pt")["modules"]["model"])
    resumed = make_cnn(DATA, 5)
    assert train(tmp_path / "a.pt", then(resumed)).steps == 2
    assert distance(resumed, whole) < 1e-5


def test_a_compiled_part_has_the_checkpoint_of_the_part(tmp_path):
    with stopping_is_expected():
        train(tmp_path / "a.pt", nested(make_cnn(DATA)), [interrupt_at(1, 1)])
    plain = nn.Sequential(make_cnn(DATA, 5), nn.Identity())
    assert train(tmp_path / "a.pt", plain).steps == 2


def test_a_learning_rate_in_a_tensor_is_no_other_checkpoint(tmp_path, monkeypatch):
    """``compile=True`` keeps the learning rate in a tensor; either run goes on with the other."""
    monkeypatch.setattr(torch, "compile", lambda model, *a, **k: model)
    whole = make_cnn(DATA)
    train(None, whole)
    for first in (True, False):
        path = tmp_path / f"{first}.pt"
        with stopping_is_expected():
            train(path, make_cnn(DATA), [interrupt_at(1, 1)], compile=first)
        resumed = make_cnn(DATA, 5)
        train(path, resumed, compile=not first)
        assert isinstance(stored(path)["optimizer"]["param_groups"][0]["lr"], float) is first
        assert distance(resumed, whole) < 1e-5


# --- another run ----------------------------------------------------------------------------------


def frozen(*names):
    model = make_cnn(DATA)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in names)
    return model


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ((), ("0.weight", "0.bias"), "0.weight was trained and is frozen now, 0.bias was trained"),
        (("0.weight", "0.bias"), ("0.bias",), "0.weight was frozen and is trained now"),
        (("0.bias",), ("6.bias",), "0.bias was frozen and is trained now, 6.bias was trained"),
    ],
)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_freezing_or_unfreezing_is_refused_by_name(tmp_path, then, now, said, optimizer):
    train(tmp_path / "a.pt", frozen(*then), optimizer=optimizer)
    assert train(tmp_path / "a.pt", frozen(*then), optimizer=optimizer).steps == 0
    model = frozen(*now)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        ValueError, match=rf"^checkpoint: a.pt .*\(model's frozen parameters: {said}"
    ):
        train(tmp_path / "a.pt", model, optimizer=optimizer)
    assert same(model.state_dict(), before)


def test_another_width_is_said_by_layer(tmp_path):
    train(tmp_path / "a.pt", make_mlp(DATA, hidden=(12,)))
    with pytest.raises(
        ValueError, match=r"layers.\d.weight: float32 \[12, 64\] stored, .*\[9, 64\] n"
    ):
        train(tmp_path / "a.pt", make_mlp(DATA, hidden=(9,)))


@pytest.mark.parametrize("version", [None, 1, 99])
def test_the_checkpoint_of_another_version(tmp_path, version):
    path = tmp_path / "a.pt"
    train(path, make_mlp(DATA))
    state = stored(path)
    state.pop("format")
    state["identity"] = {"model": "MLP [...]", "lr": 0.05}
    torch.save(state | ({} if version is None else {"format": version}), path)
    before = path.read_bytes()
    with pytest.raises(
        ValueError, match=r"^checkpoint: a.pt was written by another version of kdl"
    ):
        train(path, make_mlp(DATA))
    with pytest.raises(ValueError, match="another version"):
        load_checkpoint(path, {})
    assert path.read_bytes() == before
