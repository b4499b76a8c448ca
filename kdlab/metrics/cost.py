"""What a model costs: parameters, bytes, FLOPs, latency, memory and energy, in one call."""

from __future__ import annotations

import math
import statistics
import time
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdlab.losses.checks import check_kind
from kdlab.metrics.energy import Meter, find_meter
from kdlab.models import count_parameters
from kdlab.models.modes import (
    check_initialised,
    counting_flops,
    device_of,
    evaluating,
    unwrapped,
)

PLAIN = (Tensor, nn.Parameter, nn.Buffer)
WARM_UP = 5  # forwards that are not timed
CALLABLE = "a module or a function; load_teacher gives a pair: teacher, card = load_teacher(data)"


@dataclass(frozen=True)
class Cost:
    """What one model costs; None where it cannot be had.

    Attributes:
        parameters: how many numbers were learned, zeros included: a mask saves none of them.
        bytes: of the file: what `file` weighs, or the model's state as safetensors.
        flops: of one sample, as PyTorch's counter counts them: a multiplication and an addition
            are two; convolutions, matrix products and attention count, all else does not. None
            with weights that are complex, packed or tensors of another kind (torchao), of which
            the counter knows nothing.
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
        example: inputs ``[B, ...]``, which are given in the dtype of the module's weights. Latency
            is that of the whole batch, FLOPs and energy are of one sample.
        file: what is shipped, if it exists; its size is the answer. Else the size of the model's
            state as safetensors is.
        runs: how many forwards are timed, after five that are not.
        seconds: when to stop timing, even if there were fewer runs (at least three are made).
        threads: of PyTorch, while it is measured; None leaves them as they are.
        watts: power under load, for an estimate of the energy where no meter can be read: watts
            times the median latency, nothing else.

    Raises:
        ValueError: a model that cannot be called, whose forward fails on the example, or that has
            lazy layers without weights; an example that is no tensor, or empty; fewer than three
            runs; a number of threads, seconds or watts that is not positive.
        OSError: a `file` that is not there.
    """
    check_kind("model", model, Callable, CALLABLE)
    _check(example, runs, seconds, threads, watts)
    module = unwrapped(model) if isinstance(model, nn.Module) else None
    device = torch.device("cpu") if module is None else device_of(module)
    example = example.to(device).clone()  # a slice would be weighed with all it was cut from
    if module is not None:
        check_initialised(module)
        floats = (p.dtype for p in module.parameters() if p.is_floating_point())
        if example.is_floating_point():
            example = example.to(next(floats, example.dtype))
    plain = module is not None and _is_plain(module)
    own_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or own_threads)
        mode = nullcontext() if module is None else evaluating(module)
        with torch.inference_mode(False), torch.no_grad(), mode:
            used = _number(model, "threads") or torch.get_num_threads()
            meter = find_meter(device)
            times, joules = _timed(model, example, device, runs, seconds, meter)
            flops = _flops(module, example) if module is not None and plain else None
            memory = None if module is None else _memory(module, example, device)
    finally:
        torch.set_num_threads(own_threads)
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    source = meter.name if meter else "none"
    if joules is None and watts is not None:
        joules, source = watts * median, f"estimate: {watts:g} W while it computes"
    return Cost(
        parameters=_number(model, "parameters") if module is None else _parameters(module),
        bytes=Path(file).stat().st_size if file else _stored_bytes(module),
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
        _try(model, example)
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


def _try(model: Callable[[Tensor], Any], example: Tensor) -> None:
    try:
        model(example)
    except ValueError:
        raise  # of a model that says itself what it expects
    except Exception as error:
        raise ValueError(
            f"model: got an example of shape {list(example.shape)} and {example.dtype} with which "
            f"its forward fails ({type(error).__name__}: {error}), expected one that it takes; try "
            "model(example) by itself"
        ) from error


def _is_plain(module: nn.Module) -> bool:
    """Whether all weights are real tensors, whose operations PyTorch's counter knows."""
    return all(type(v) in PLAIN and not v.is_complex() for v in _state(module).values())


def _parameters(module: nn.Module) -> int | None:
    """None where weights are hidden in packed objects."""
    hidden = any(not isinstance(value, Tensor) for value in _state(module).values())
    return None if hidden else count_parameters(module)


def _state(module: nn.Module) -> dict[str, Any]:
    """What a module keeps, without what it gives by ``get_extra_state``."""
    state = module.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if not name.endswith("_extra_state")}


def _stored_bytes(module: nn.Module | None) -> int | None:
    """As safetensors, where a weight of two names is stored once; None where it cannot be."""
    if module is None:
        return None
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in _state(module).items():
        if id(value) in seen:
            continue
        seen.add(id(value))
        if not isinstance(value, Tensor):
            return None
        inner = value.__tensor_flatten__()[0] if hasattr(value, "__tensor_flatten__") else None
        parts = (
            {name: value} if inner is None else {f"{name}.{n}": getattr(value, n) for n in inner}
        )
        stored |= {n: part.detach().contiguous() for n, part in parts.items()}
    return len(save({name: tensor.clone() for name, tensor in stored.items()}))


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
