"""Costs against files, clocks, meters and counts by hand."""

import importlib
import math
import sys
import time
import types

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

from kdlab.datasets import Split
from kdlab.metrics import cost
from kdlab.metrics import energy as meters
from kdlab.models import build, with_exits

QUICK = {"runs": 3}


def network() -> nn.Sequential:
    """A convolution 3×3 from 2 to 4 channels on 8×8 pixels, then a Linear to 5 classes."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)
    )


class Sleeper(nn.Module):
    """Sleeps so many seconds, one of the given after the other."""

    def __init__(self, *naps: float) -> None:
        super().__init__()
        self.naps = naps
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.naps[self.calls % len(self.naps)])
        self.calls += 1
        return x


def test_parameters_and_bytes_are_those_of_the_file(tmp_path):
    model = network()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    found = cost(model, torch.zeros(1, 2, 8, 8), **QUICK)
    assert found.parameters == 4 * 2 * 9 + 4 + 2 * 4 + 256 * 5 + 5
    assert found.bytes == (tmp_path / "model.safetensors").stat().st_size
    (tmp_path / "shipped").write_bytes(b"x" * 77)
    assert cost(model, torch.zeros(1, 2, 8, 8), file=tmp_path / "shipped", **QUICK).bytes == 77
    with pytest.raises(OSError, match="nowhere"):
        cost(model, torch.zeros(1, 2, 8, 8), file=tmp_path / "nowhere", **QUICK)


def test_a_weight_that_is_used_twice_is_stored_once():
    twice = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    alone = cost(twice, torch.zeros(1, 64), **QUICK)
    twice[1].weight = twice[0].weight
    tied = cost(twice, torch.zeros(1, 64), **QUICK)
    assert alone.bytes - tied.bytes == pytest.approx(4 * 64 * 64, abs=200)  # the header is shorter
    assert alone.parameters - tied.parameters == 64 * 64


def test_zeros_of_a_mask_save_nothing():
    model = network()
    whole = cost(model, torch.zeros(1, 2, 8, 8), **QUICK)
    prune.l1_unstructured(model[4], "weight", amount=0.9)
    masked = cost(model, torch.zeros(1, 2, 8, 8), **QUICK)
    assert (masked.parameters, masked.flops) == (whole.parameters, whole.flops)
    assert masked.bytes > whole.bytes + 4 * 256 * 5 - 200  # the mask is stored as well
    prune.remove(model[4], "weight")
    baked = cost(model, torch.zeros(1, 2, 8, 8), **QUICK)
    assert (model[4].weight == 0).float().mean() > 0.89
    assert (baked.parameters, baked.bytes, baked.flops) == (
        whole.parameters,
        whole.bytes,
        whole.flops,
    )


def test_integer_weights_count_though_they_are_buffers():
    model = nn.Linear(8, 4)
    model.register_buffer("whole", torch.zeros(4, 8, dtype=torch.int8))
    model.register_buffer("steps", torch.zeros((), dtype=torch.int64))
    assert cost(model, torch.zeros(1, 8), **QUICK).parameters == 8 * 4 + 4 + 4 * 8


@pytest.mark.parametrize("batch", [1, 3])
def test_flops_of_a_sample_are_those_counted_by_hand(batch):
    found = cost(network(), torch.zeros(batch, 2, 8, 8), **QUICK)
    assert found.flops == 2 * (8 * 8 * 4 * 2 * 9 + 256 * 5)
    assert found.batch == batch


def test_flops_of_an_lstm_are_counted_too():
    """Four gates of width 8 read a token and the last state, six times; then the head."""
    model = build("lstm", 4, vocabulary=50, width=8, depth=1)
    tokens = torch.ones(2, 6, dtype=torch.int64)
    by_hand = 2 * (6 * 4 * (8 * 8 + 8 * 8) + 8 * 4)
    assert cost(model, tokens, **QUICK).flops == by_hand
    assert torch.backends.mkldnn.enabled == torch.backends.mkldnn.is_available()
    early = with_exits(model, {"embed": nn.Identity()})
    early.heads[0] = _Mean()
    assert early.costs(tokens)[-1] == by_hand


class _Mean(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return x.mean(1)[:, :4]


def test_latency_is_the_clocks():
    found = cost(Sleeper(0.02), torch.zeros(4, 1), runs=5)
    assert 20 <= found.latency_low_ms <= found.latency_ms <= found.latency_high_ms < 2000
    assert (found.runs, found.batch, found.device) == (5, 4, "cpu")


def test_latency_is_a_median_with_quartiles_after_the_warm_up(monkeypatch):
    times = iter([0, 1, 10, 12, 20, 23, 30, 34, 40, 45])  # forwards of 1, 2, 3, 4, 5 seconds
    clock = types.SimpleNamespace(perf_counter=lambda: next(times))
    monkeypatch.setattr(importlib.import_module("kdlab.metrics.cost"), "time", clock)
    model = Sleeper(0.0)
    found = cost(model, torch.zeros(1, 1), runs=5, seconds=100)
    assert (found.latency_low_ms, found.latency_ms, found.latency_high_ms) == (2e3, 3e3, 4e3)
    assert model.calls == 5 + 5 + 2  # warm-up, timed, and one each for FLOPs and memory


def test_a_slow_model_is_timed_less_often():
    assert cost(Sleeper(0.02), torch.zeros(1, 1), runs=50, seconds=0.07).runs in (3, 4)
    assert cost(Sleeper(0.02), torch.zeros(1, 1), runs=50, seconds=0.001).runs == 3


def test_threads_are_set_for_a_while():
    seen = []

    def model(x):
        seen.append(torch.get_num_threads())

    before = torch.get_num_threads()
    assert cost(model, torch.zeros(1, 1), threads=before + 1, **QUICK).threads == before + 1
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_memory_is_what_lives_at_once():
    """The input lives throughout; a ReLU's input and output do so together; the rest is gone."""
    sizes = [(10, 1000), (1000, 20), (20, 1000)]
    model = nn.Sequential(*(nn.Linear(*size) for size in sizes), nn.ReLU(), nn.Linear(1000, 3))
    model.register_buffer("table", torch.zeros(50))
    weights = sum(a * b + b for a, b in (*sizes, (1000, 3))) + 50
    found = cost(model, torch.zeros(7, 10), **QUICK)
    assert found.memory_bytes == 4 * (weights + 7 * (10 + 1000 + 1000))


def test_views_and_values_in_place_take_no_memory():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 64), nn.ReLU(inplace=True), nn.Flatten())
    found = cost(model, torch.zeros(2, 4, 4), **QUICK)
    assert found.memory_bytes == 4 * (16 * 64 + 64 + 2 * (16 + 64))


def test_a_slice_of_many_inputs_weighs_as_much_as_itself():
    many = torch.zeros(1000, 16)
    model = nn.Linear(16, 2)
    assert (
        cost(model, many[:3], **QUICK).memory_bytes
        == cost(model, torch.zeros(3, 16), **QUICK).memory_bytes
    )


def test_what_is_no_module_is_timed_and_says_the_rest_itself():
    class Session:
        parameters, threads = 123, 7

        def __call__(self, x):
            return x

    found = cost(Session(), torch.zeros(2, 3), **QUICK)
    assert (found.parameters, found.threads, found.bytes) == (123, 7, None)
    assert (found.flops, found.memory_bytes) == (None, None)
    assert cost(lambda x: x, torch.zeros(2, 3), **QUICK).parameters is None
    assert "? MFLOPs" in str(found) and "7 threads of cpu" in str(found)


def test_the_model_is_asked_as_it_is_used_and_stays_as_it_was():
    model = network().train()
    model[1].eval()
    seen = set()
    model[4].register_forward_hook(lambda *_: seen.add((model.training, torch.is_grad_enabled())))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cost(model, torch.ones(2, 2, 8, 8), **QUICK)
    assert seen == {(False, False)}
    assert model.training and not model[1].training and model[4].training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model(torch.ones(2, 2, 8, 8)).requires_grad


@pytest.fixture
def rapl(tmp_path, monkeypatch):
    """A processor's counter that a forward can turn on; it wraps at 1,000 joules."""
    folder = tmp_path / "intel-rapl:0"
    folder.mkdir()
    (folder / "max_energy_range_uj").write_text("1000000000\n")
    counter = folder / "energy_uj"
    counter.write_text("960000000\n")  # 5 forwards later, after the warm-up, 10 are left
    monkeypatch.setattr(meters, "RAPL", tmp_path)
    return counter


def test_energy_is_read_from_the_processor_even_if_it_wraps(rapl):
    def model(x):
        rapl.write_text(str((int(rapl.read_text()) + 6_000_000) % 1_000_000_000))

    found = cost(model, torch.zeros(2, 1), runs=4, watts=5)
    assert found.energy_joules == pytest.approx(6 / 2)
    assert found.energy_from.startswith("RAPL")


def test_energy_is_an_estimate_that_is_called_one_or_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(meters, "RAPL", tmp_path)
    nothing = cost(Sleeper(0.0), torch.zeros(1, 1), **QUICK)
    assert (nothing.energy_joules, nothing.energy_from) == (None, "none")
    found = cost(Sleeper(0.0), torch.zeros(2, 1), watts=15, **QUICK)
    assert found.energy_joules == pytest.approx(15 * found.latency_ms / 1e3 / 2)
    assert found.energy_from == "estimate: 15 W while it computes"


def test_a_graphics_cards_meter(monkeypatch):
    spent = iter([2_000, 5_500])
    fake = types.SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda card: next(spent) * (card == "GPU-abc"),
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    card = types.SimpleNamespace(uuid="abc")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    meter = meters.find_meter(torch.device("cuda"))
    assert meter is not None and meter.name.startswith("NVML")
    assert meter.since(meter.joules()) == pytest.approx(3.5)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert meters.find_meter(torch.device("cuda")) is None
    assert meters.find_meter(torch.device("mps")) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": 2}, "runs: 2 came"),
        ({"threads": 0}, "threads: 0 came"),
        ({"seconds": -1.0}, "seconds: -1.0 came"),
        ({"watts": math.nan}, "watts: nan came"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        cost(nn.Flatten(), torch.zeros(1, 1), **options)
    with pytest.raises(ValueError, match=r"example: shape \[0, 3\]"):
        cost(nn.Flatten(), torch.zeros(0, 3))


def test_what_is_easily_mixed_up_is_named():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"^example: a Split came, .* data\.test\.x\[:1\]"):
        cost(nn.Flatten(), Split(x, torch.zeros(2, dtype=torch.int64)))
    with pytest.raises(ValueError, match=r"^model: a tuple came, .*teacher, card = load_teacher"):
        cost((nn.Flatten(), {}), x)
