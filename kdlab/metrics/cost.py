"""What a model costs: parameters, bytes, FLOPs, latency, memory and energy, in one call."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdlab.losses.checks import check_kind
from kdlab.metrics.energy import Meter, find_meter
from kdlab.models import count_parameters
from kdlab.models.modes import counting_flops, device_of, evaluating

WARM_UP = 5  # forwards that are not timed
CALLABLE = "a module or a function; load_teacher gives a pair: teacher, card = load_teacher(data)"


@dataclass(frozen=True)
class Cost:
    """What one model costs; None where it cannot be had.

    Attributes:
        parameters: how many numbers were learned, zeros included: a mask saves none of them.
        bytes: of the file: what `file` weighs, or the model's state as safetensors.
        flops: of one sample, as PyTorch's counter counts them: a multiplication and an addition
            are two; convolutions, matrix products and attention count, all else does not.
        latency_ms: median time of one forward of the whole batch, in milliseconds.
        latency_low_ms: the lower quartile.
        latency_high_ms: the upper quartile; a wide gap means that something else was running.
        batch: samples in that forward.
        threads: of the processor, which computed it.
        device: cpu, cuda or mps.
        runs: forwards that were timed.
        memory_bytes: the most that was held at once in one forward: weights, inputs and all values
            in between. On a CPU these are PyTorch's tensors, and scratch space inside an operation
            does not show; on a GPU it is what PyTorch's allocator says.
        energy_joules: of one sample.
        energy_from: the meter that it was read from, "estimate: ..." where it is one, or "none".
    """

    parameters: int | None
    bytes: int | None
    flops: int | None
    latency_ms: float
    latency_low_ms: float
    latency_high_ms: float
    batch: int
    threads: int
    device: str
    runs: int
    memory_bytes: int | None
    energy_joules: float | None
    energy_from: str

    def __str__(self) -> str:
        def amount(value: float | None, unit: str, by: float = 1) -> str:
            return f"{'?' if value is None else format(value / by, ',.4g')} {unit}"

        spread = f"{self.latency_low_ms:.3g} to {self.latency_high_ms:.3g}"
        return ", ".join(
            (
                amount(self.parameters, "parameters"),
                amount(self.bytes, "kB on disk", 1e3),
                amount(self.flops, "MFLOPs", 1e6),
                f"{self.latency_ms:.3g} ms [{spread}] for {self.batch} on {self.threads} "
                f"thread{'s' * (self.threads != 1)} of {self.device}",
                amount(self.memory_bytes, "kB in memory", 1e3),
                f"{amount(self.energy_joules, 'mJ', 1e-3)} ({self.energy_from})",
            )
        )


def cost(
    model: nn.Module | Callable[[Tensor], Any],
    example: Tensor,
    *,
    file: str | Path | None = None,
    runs: int = 50,
    seconds: float = 2.0,
    threads: int | None = None,
    watts: float | None = None,
) -> Cost:
    """What a model costs, in eval mode and without gradients.

    A model whose weights a mask sets to 0 costs what it costs: the zeros are stored, loaded and
    multiplied like all other numbers.

    Args:
        model: a module, which is measured on the device it is on and left as it was; or anything
            that can be called with the example, such as an exported file's session. Of the latter
            FLOPs and memory are not known; its parameters and threads are, if it has whole numbers
            of these names.
        example: inputs ``[B, ...]``. Latency is that of the whole batch, FLOPs and energy are of
            one sample.
        file: what is shipped, if it exists; its size is the answer. Else the size of the model's
            state as safetensors is.
        runs: how many forwards are timed, after five that are not.
        seconds: when to stop timing, even if there were fewer runs (at least three are made).
        threads: of PyTorch, while it is measured; None leaves them as they are.
        watts: power under load, for an estimate of the energy where no meter can be read: watts
            times the median latency, nothing else.

    Raises:
        ValueError: a model that cannot be called; an example that is no tensor, or empty; fewer
            than three runs; a number of threads, seconds or watts that is not positive.
        OSError: a `file` that is not there.
    """
    check_kind("model", model, Callable, CALLABLE)
    _check(example, runs, seconds, threads, watts)
    module = model if isinstance(model, nn.Module) else None
    device = device_of(module) if module else torch.device("cpu")
    example = example.to(device).clone()  # a slice would be weighed with all it was cut from
    own_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or own_threads)
        with evaluating(module) if module else nullcontext(), torch.no_grad():
            used = _number(model, "threads") or torch.get_num_threads()
            meter = find_meter(device)
            times, joules = _timed(model, example, device, runs, seconds, meter)
            flops = _flops(module, example) if module else None
            memory = _memory(module, example, device) if module else None
    finally:
        torch.set_num_threads(own_threads)
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    source = meter.name if meter else "none"
    if joules is None and watts is not None:
        joules, source = watts * median, f"estimate: {watts:g} W while it computes"
    return Cost(
        parameters=count_parameters(module) if module else _number(model, "parameters"),
        bytes=Path(file).stat().st_size if file else _stored_bytes(module) if module else None,
        flops=flops,
        latency_ms=1e3 * median,
        latency_low_ms=1e3 * low,
        latency_high_ms=1e3 * high,
        batch=len(example),
        threads=used,
        device=device.type,
        runs=len(times),
        memory_bytes=memory,
        energy_joules=None if joules is None else joules / len(example),
        energy_from=source,
    )


def _check(
    example: Tensor, runs: int, seconds: float, threads: int | None, watts: float | None
) -> None:
    check_kind("example", example, Tensor, "inputs [B, ...], such as data.test.x[:1]")
    if example.dim() == 0 or example.numel() == 0:
        raise ValueError(f"example: shape {list(example.shape)}, expected [B, ...] with B ≥ 1")
    if runs < 3:
        raise ValueError(f"runs: {runs!r} came, expected at least 3, so that there are quartiles")
    for name, value in (("seconds", seconds), ("threads", threads), ("watts", watts)):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}: {value!r} came, expected a positive number")


def _timed(
    model: Callable[[Tensor], Any],
    example: Tensor,
    device: torch.device,
    runs: int,
    seconds: float,
    meter: Meter | None,
) -> tuple[list[float], float | None]:
    """Seconds of each forward, and joules of one if there is a meter."""
    for _ in range(WARM_UP):
        model(example)
    _wait(device)
    times: list[float] = []
    before = meter.joules() if meter else 0.0
    while len(times) < 3 or (len(times) < runs and sum(times) < seconds):
        start = time.perf_counter()
        model(example)
        _wait(device)
        times.append(time.perf_counter() - start)
    return times, meter.since(before) / len(times) if meter else None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _flops(model: nn.Module, example: Tensor) -> int:
    with counting_flops() as counter:
        model(example[:1])
    return counter.get_total_flops()


def _stored_bytes(model: nn.Module) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_model(model, str(path))
        return path.stat().st_size


def _memory(model: nn.Module, example: Tensor, device: torch.device) -> int | None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        model(example)
        _wait(device)
        return torch.cuda.max_memory_allocated(device)
    with _Held([*model.parameters(), *model.buffers(), example]) as held:
        model(example)
    return held.peak


class _Held(TorchDispatchMode):
    """Adds up the storages of all tensors that live, and keeps the highest sum."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.peak = 0
        self._look(tensors)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self._look(tree_leaves(out))
        return out

    def _look(self, leaves: list[Any]) -> None:
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.sizes.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self.sizes.values()))


def _number(model: object, name: str) -> int | None:
    value = getattr(model, name, None)
    return value if isinstance(value, int) else None
