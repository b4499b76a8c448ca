"""A checkpoint and a cache take any state that a model may have, and say what they cannot take."""

import copy

import pytest
import torch
from tiny import distance, interrupt_at, make_cnn, make_data, make_mlp, same, stopping_is_expected
from torch import nn

from kdlab.training import TeacherOutputs, fit
from kdlab.training.checkpoint import load_checkpoint
from kdlab.training.identity import describe, fingerprint

DATA = make_data()
SHORT = {"epochs": 2, "batch_size": 32, "lr": 0.05}
old_quantization = pytest.mark.filterwarnings("ignore:.*quanti", "ignore:.*script_method")


def train(path, model, callbacks=(), **options):
    return fit(model, DATA, checkpoint=path, callbacks=callbacks, **SHORT | options)


def stopped(path, model, **options):
    with stopping_is_expected():
        assert train(path, model, [interrupt_at(1, 1)], **options).interrupted


class Holding(nn.Module):
    """A model with a buffer, or an extra state, of any kind."""

    def __init__(self, held=None, seed=0, extra=None):
        super().__init__()
        self.inner = make_mlp(DATA, seed)
        self.register_buffer("held", held)
        self._extra = [extra]

    def forward(self, x):
        return self.inner(x)

    def get_extra_state(self):
        return self._extra[0]

    def set_extra_state(self, state):
        self._extra = [state]


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


def quantized(seed):
    return torch.quantize_per_tensor(values(seed), 0.1, 0, torch.qint8)


def nested(seed):
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3) + seed])


# --- teachers of every kind -----------------------------------------------------------------------


BUFFERS = {
    "sparse": lambda seed: values(seed).relu().to_sparse(),
    "csr": lambda seed: values(seed).relu().to_sparse_csr(),
    "bsc": lambda seed: values(seed).relu().to_sparse_bsc((2, 2)),
    "nested": nested,
    "quantized": quantized,
    "mkldnn": lambda seed: values(seed).to_mkldnn(),
    "complex": lambda seed: torch.complex(values(seed), values(seed)),
    "conjugate": lambda seed: torch.complex(values(seed), values(seed)).conj(),
    "bf16": lambda seed: values(seed).bfloat16(),
    "a column": lambda seed: values(seed)[:, 0],
    "empty": lambda seed: torch.zeros(seed, 0),
}
EXTRAS = {
    "tensor": values,
    "dict": lambda seed: {"a": [values(0), {"b": seed}], "c": b"x"},
    "bytes": lambda seed: bytes([seed]) * 400,
    "object": Plain,
    "dtype": (torch.float16, torch.float32).__getitem__,
}
TEACHERS = {
    "dynamically quantized": dynamic,
    "quantized LSTM": dynamic_lstm,
    "torchao": torchao,
    "none": lambda seed: Holding(None, seed),
    **{kind: lambda seed, make=make: Holding(make(seed)) for kind, make in BUFFERS.items()},
    **{
        f"extra {k}": lambda seed, make=make: Holding(None, 0, make(seed))
        for k, make in EXTRAS.items()
    },
}


@old_quantization
@pytest.mark.parametrize("kind", TEACHERS)
def test_teachers_with_any_state(kind):
    first, again, other = (TEACHERS[kind](seed) for seed in (0, 0, 1))
    assert fingerprint(first) == fingerprint(again) != fingerprint(other)
    kept = TeacherOutputs.build(first, DATA)
    kept.check(again, DATA, None, 1)
    with pytest.raises(ValueError, match="another teacher"):
        kept.check(other, DATA, None, 1)


# --- students of every kind -----------------------------------------------------------------------


class Tied(nn.Module):
    """Encoder and decoder share one weight."""

    def __init__(self, seed=0):
        super().__init__()
        self.first, self.second = (seeded(seed, nn.Linear, 64, 64) for _ in range(2))
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


class Counting(Holding):
    """Extra state that moves, and has to come back."""

    def __init__(self, seed):
        super().__init__(None, seed, {"batches": 0, "mean": torch.zeros(()), "raw": b"x"})

    def forward(self, x):
        if self.training:
            self._extra[0]["batches"] += 1
            self._extra[0]["mean"] += x.mean()
        return self.inner(x) + self._extra[0]["mean"]


def partly_quantized(seed):
    return nn.Sequential(*dynamic(3)[:2], nn.ReLU(), seeded(seed, nn.Linear, 32, 4))


STUDENTS = {
    "tied": Tied,
    "buffers left out of state_dict": Unsaved,
    "extra state": Counting,
    "partly quantized": partly_quantized,
    "partly torchao": lambda seed: nn.Sequential(torchao(3), seeded(seed, nn.Linear, 4, 4)),
    "sparse": lambda seed: Holding(values(0).relu().to_sparse(), seed),
    "quantized tensor": lambda seed: Holding(quantized(0), seed),
    "float8": lambda seed: Holding(values(0).to(torch.float8_e4m3fn), seed),
    "conjugate": lambda seed: Holding(torch.complex(values(0), values(1)).conj(), seed),
}


@old_quantization
@pytest.mark.parametrize("kind", STUDENTS)
def test_students_with_any_state_resume_bit_for_bit(tmp_path, kind):
    whole = STUDENTS[kind](0)
    train(None, whole)
    stopped(tmp_path / "a.pt", STUDENTS[kind](0))
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


@pytest.mark.parametrize("make", [Unsaved, Counting])
def test_a_diverged_run_leaves_the_state_of_the_last_good_epoch(make):
    model = make(0)
    before = describe([model.state_dict(), dict(model.named_buffers())])
    with pytest.raises(ValueError, match="lr: got 1e"):
        train(None, model, lr=1e18)
    assert describe([model.state_dict(), dict(model.named_buffers())]) == before


UNSTORABLE = {
    "a Plain as '_extra_state'": lambda: Holding(extra=Plain(3)),
    "a ScriptObject as '0.lstm.*param'": lambda: nn.Sequential(dynamic_lstm(3), nn.Linear(4, 4)),
    "a Tensor of layout torch._mkldnn as 'held'": lambda: Holding(torch.ones(3, 3).to_mkldnn()),
    "a Tensor of layout torch.strided as 'held'": lambda: Holding(nested(0)),
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


def plain(seed=0):
    return nn.Sequential(make_cnn(DATA, seed), nn.Identity())


def compiled(seed=0):
    return torch.compile(plain(seed), backend="eager")


def partly_compiled(seed=0):
    net = plain(seed)
    net[0] = torch.compile(net[0], backend="eager")
    return net


@pytest.mark.parametrize(
    ("first", "then"), [(compiled, plain), (plain, partly_compiled), (partly_compiled, compiled)]
)
def test_a_compiled_model_has_the_checkpoint_of_the_model(tmp_path, first, then):
    whole, resumed = plain(), then(5)
    train(None, whole)
    stopped(tmp_path / "a.pt", first())
    stored = torch.load(tmp_path / "a.pt", weights_only=True)
    assert stored["modules"]["model"].keys() == whole.state_dict().keys()
    assert train(tmp_path / "a.pt", resumed).steps == 2
    assert distance(resumed, whole) < 1e-5


@pytest.mark.parametrize("first", [True, False])
def test_a_learning_rate_in_a_tensor_is_no_other_checkpoint(tmp_path, monkeypatch, first):
    """``compile=True`` keeps the learning rate in a tensor; either run goes on with the other."""
    monkeypatch.setattr(torch, "compile", lambda model, *a, **k: model)
    whole, resumed = plain(), plain(5)
    train(None, whole)
    stopped(tmp_path / "a.pt", plain(), compile=first)
    train(tmp_path / "a.pt", resumed, compile=not first)
    stored = torch.load(tmp_path / "a.pt", weights_only=True)
    assert isinstance(stored["optimizer"]["param_groups"][0]["lr"], float) is first
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
def test_freezing_or_unfreezing_is_refused_by_name(tmp_path, then, now, said):
    train(tmp_path / "a.pt", frozen(*then))
    assert train(tmp_path / "a.pt", frozen(*then)).steps == 0
    model = frozen(*now)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        ValueError, match=rf"^checkpoint: a.pt .*\(model's frozen parameters: {said}"
    ):
        train(tmp_path / "a.pt", model)
    assert same(model.state_dict(), before)


def test_another_width_is_said_by_layer(tmp_path):
    train(tmp_path / "a.pt", make_mlp(DATA, hidden=(12,)))
    with pytest.raises(
        ValueError, match=r"layers.\d.weight: float32 \[12, 64\] stored, .*\[9, 64\] n"
    ):
        train(tmp_path / "a.pt", make_mlp(DATA, hidden=(9,)))


@pytest.mark.parametrize("version", [None, 2, 99])
def test_the_checkpoint_of_another_version(tmp_path, version):
    path = tmp_path / "a.pt"
    state = {"identity": {"model": "MLP [...]", "lr": 0.05}, "format": version}
    torch.save({key: value for key, value in state.items() if value is not None}, path)
    before = path.read_bytes()
    message = r"^checkpoint: a.pt was written by another version of kdl"
    with pytest.raises(ValueError, match=message):
        train(path, make_mlp(DATA))
    with pytest.raises(ValueError, match=message):
        load_checkpoint(path, {})
    assert path.read_bytes() == before
