"""Several processes that train one model: who they are, what each does, what they add up.

``torchrun`` starts them and says so in the environment; each is called a rank. Without it there is
one, ``ALONE``, for which all of this does nothing. How to use it: docs/scale.md.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kdlab.distillers import Distiller
from kdlab.models.outputs import Output
from kdlab.training.device import forked_generators, seed_generators
from kdlab.training.interrupt import Stop, deferred_interrupt
from kdlab.training.predict import predict

T = TypeVar("T")
ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = "KDLAB_RANK_TIMEOUT"  # seconds that a rank may keep the others waiting
UNSHARED = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"  # PyTorch's: a store for each attempt
BEAT, PATIENCE = 1.0, 5.0  # seconds between signs of life, and until their absence is a death
GONE = "kdlab/gone"  # where the store keeps the numbers of dead ranks


class Alone:
    """One process: nothing to share, nobody to wait for."""

    rank, size = 0, 1

    def check(
        self, batch_size: int, identity: Mapping[str, Any], distiller: Distiller | None
    ) -> None:
        """Raise ValueError unless these ranks can make this run together."""

    def share(self, rows: Tensor) -> Tensor:
        """Return the part of ``rows`` ``[N, ...]`` that is this rank's to work on."""
        return rows

    def gather(self, mine: Tensor, count: int) -> Tensor:
        """Return ``[count, ...]`` from the results ``[n, ...]`` of all ranks for their shares."""
        return mine

    def predict(
        self,
        model: nn.Module,
        images: Tensor,
        *,
        device: str | torch.device = "auto",
        output: Output | None = None,
    ) -> Tensor:
        """Return what ``kdlab.training.predict`` does; each rank asks about its share."""
        return predict(model, images, device=device, output=output)

    def any(self, here: bool) -> bool:
        """Say whether it is so on any rank."""
        return here

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what ``make`` gives on rank 0; its ValueError is every rank's."""
        return make()

    def interrupts(self, terminate: bool) -> AbstractContextManager[Stop]:
        """Defer interrupts until all ranks can stop after the same step, SIGTERM if wanted."""
        return deferred_interrupt(terminate)

    def check_alike(self, modules: Mapping[str, nn.Module]) -> None:
        """Raise ValueError unless the buffers of these modules are the same on all ranks."""

    def guarded(self) -> AbstractContextManager[None]:
        """Name the rank that is gone, instead of the connection that broke."""
        return contextlib.nullcontext()


ALONE = Alone()


class Ranks(Alone):
    """One of several processes that train one model together.

    Args:
        device: where this rank computes.
        control: a gloo group, for what is agreed on between processors.
        life: the signs of life of all ranks.
    """

    def __init__(self, device: torch.device, control: dist.ProcessGroup, life: SignsOfLife) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device = device
        self.control = control
        self.life = life

    def check(
        self, batch_size: int, identity: Mapping[str, Any], distiller: Distiller | None
    ) -> None:
        """Raise ValueError for too small a batch, a method for one process, unlike settings."""
        if batch_size < self.size:
            raise ValueError(
                f"batch_size: {batch_size} images came for {self.size} ranks, expected at least "
                "one for each; start fewer ranks, or take larger batches (and as many images)"
            )
        methods = [] if distiller is None else list(distiller.modules())
        if remembering := [m for m in methods if getattr(m, "remembers_images", False)]:
            raise ValueError(
                f"distiller: {type(remembering[-1]).__name__} remembers each image and "
                "cannot be shared by ranks, each of which would know its own part alone; start it "
                "without torchrun"
            )
        told: list[Any] = [None] * self.size
        dist.all_gather_object(told, dict(identity), group=self.control)
        for rank, theirs in enumerate(told):
            if differing := [name for name in told[0] if theirs[name] != told[0][name]]:
                listing = "; ".join(
                    f"{n}: {theirs[n]!r:.80} there, {told[0][n]!r:.80} on rank 0" for n in differing
                )
                raise ValueError(
                    f"rank {rank} was told something else than rank 0 ({listing}); every rank must "
                    "call fit with the same settings, models and data"
                )

    def bounds(self, count: int) -> list[int]:
        """Return where the shares of ``count`` rows begin, and the end: their sizes differ by 1."""
        return [count * rank // self.size for rank in range(self.size + 1)]

    def share(self, rows: Tensor) -> Tensor:
        """Return this rank's rows, ``[n, ...]``, in order."""
        bounds = self.bounds(len(rows))
        return rows[bounds[self.rank] : bounds[self.rank + 1]]

    def gather(self, mine: Tensor, count: int) -> Tensor:
        """Return the ``count`` rows of all shares, in order, on every rank."""
        bounds, parts = self.bounds(count), []
        for rank in range(self.size):
            shape = (bounds[rank + 1] - bounds[rank], *mine.shape[1:])
            part = mine.contiguous() if rank == self.rank else mine.new_empty(shape)
            dist.broadcast(part, rank)
            parts.append(part)
        return torch.cat(parts)

    def predict(
        self,
        model: nn.Module,
        images: Tensor,
        *,
        device: str | torch.device = "auto",
        output: Output | None = None,
    ) -> Tensor:
        """Return the logits ``[N, C]``, on the CPU, on every rank."""
        if len(images) < self.size:
            return predict(model, images, device=device, output=output)
        mine = predict(model, self.share(images), device=device, output=output)
        return self.gather(mine.to(self.device), len(images)).cpu()

    def total(self, values: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        """Return the sum over the ranks of each scalar times the rank's ``share``, detached."""
        if not values:
            return {}
        row = torch.stack([value.detach() for value in values.values()]) * share
        dist.all_reduce(row)
        return dict(zip(values, row.unbind(), strict=True))

    def any(self, here: bool) -> bool:
        """Say whether it is so on any rank."""
        return self.most(int(here)) > 0

    def most(self, number: int) -> int:
        """Return the largest number of all ranks."""
        row = torch.tensor(number)
        dist.all_reduce(row, dist.ReduceOp.MAX, group=self.control)
        return int(row)

    def check_alike(self, modules: Mapping[str, nn.Module]) -> None:
        """Raise ValueError that names a buffer which has become another one on some rank."""
        buffers = {
            f"{part}: {name}": buffer.detach().float().flatten().to(self.device)
            for part, module in modules.items()
            for name, buffer in module.named_buffers()
            if buffer.numel()
        }
        if not buffers:
            return
        values = torch.cat(list(buffers.values()))
        ends = torch.stack([values, -values])
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        apart = (ends[0] + ends[1]) > 1e-3 * ends.abs().amax(0).clamp(min=1e-3)
        pieces = apart.split([len(buffer) for buffer in buffers.values()])
        if differing := [name for name, piece in zip(buffers, pieces, strict=True) if piece.any()]:
            raise ValueError(
                f"{differing[0]} is not the same on all {self.size} ranks, each of which sees its "
                "share of the batch; a method that keeps what it saw works in one process only, "
                "and says so with remembers_images = True"
            )

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what ``make`` gives on rank 0; its ValueError is every rank's."""
        said: list[Any] = [None, None]
        if self.rank == 0:
            try:
                said[0] = make()
            except ValueError as error:
                said[1] = error
        dist.broadcast_object_list(said, 0, group=self.control)
        if said[1] is not None:
            raise said[1]
        return said[0]

    @contextlib.contextmanager
    def branch(self, own: bool = False) -> Iterator[None]:
        """Draw random numbers aside: the same on all ranks, or this rank's ``own``.

        Afterwards the generators stand where they stood on every rank, whatever was drawn: one
        state in a checkpoint serves them all.
        """
        number = int(torch.randint(2**62, ())) + (self.rank + 1 if own else 0)
        with forked_generators(self.device):
            seed_generators(number, self.device)
            yield

    @contextlib.contextmanager
    def interrupts(self, terminate: bool) -> Iterator[Stop]:
        """Defer interrupts, and SIGTERM in any case.

        torchrun also sends it when a rank is gone; there is then time to say so.
        """
        with deferred_interrupt(terminate=True) as here, self.guarded():
            yield CommonStop(self, here)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn a lost connection into a RuntimeError that names the rank that is gone."""
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            atexit.unregister(_leave)  # it would wait for the one that is gone
            raise RuntimeError(self._what_happened()) from error

    def _what_happened(self) -> str:
        if silent := self.life.silent():
            plural = "s" if len(silent) > 1 else ""
            names = ", ".join(map(str, silent))
            return (
                f"rank{plural} {names} of {self.size} no longer answered, so rank {self.rank} ends "
                "too: killed, out of memory, failed with an error of its own (see above), or its "
                "machine is gone. Start the same command again: with checkpoint=... fit goes on "
                "from the last epoch that was finished"
            )
        return (
            f"rank {self.rank} of {self.size} waited in vain for "
            f"{longest_wait().total_seconds():g} s for a rank that is still alive. Does every rank "
            "call fit, as often as the others and with the same settings? "
            f"{TIMEOUT} (seconds) lets them wait longer"
        )


class CommonStop(Stop):
    """Requested when any rank is asked to stop, and by that rank's signal on all of them."""

    def __init__(self, ranks: Ranks, here: Stop) -> None:
        super().__init__()
        self.ranks = ranks
        self.here = here

    @property
    def requested(self) -> bool:
        """Whether to stop, agreed on with the others: every rank has to ask at the same moment."""
        self.here.asked = self.ranks.most(self.here.asked)
        return self.here.requested


class SignsOfLife:
    """Every rank tells a common store each second that it lives; who stops telling is dead."""

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.store, self.rank = store.clone(), rank  # a thread needs a connection of its own
        self.keys = [f"kdlab/alive/{rank}" for rank in range(size)]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tell, args=(store.clone(),), daemon=True)
        self._thread.start()

    def _tell(self, store: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the store has gone, and the job with it
            while not self._ended.wait(BEAT):
                store.add(self.keys[self.rank], 1)

    def _count(self) -> list[int]:
        return [self.store.add(key, 0) for key in self.keys]

    def silent(self) -> list[int]:
        """Return the ranks that gave no sign for ``PATIENCE`` seconds.

        The first who asks answers for all: the others lose it next, and then one another.
        """
        try:
            if not self.store.check([GONE]):
                before = self._count()
                time.sleep(PATIENCE)
                pairs = zip(before, self._count(), strict=True)
                gone = [str(rank) for rank, (then, now) in enumerate(pairs) if then == now]
                if not gone:
                    return []
                self.store.compare_set(GONE, "", ",".join(gone))
            return [int(rank) for rank in self.store.get(GONE).decode().split(",")]
        except RuntimeError:
            return [0]  # without torchrun it is rank 0 that holds the store

    def end(self) -> None:
        """Tell no more."""
        self._ended.set()
        self._thread.join(2 * BEAT)


def join(device: torch.device) -> tuple[Alone, torch.device]:
    """Return this process's place among those that train together, and where it computes.

    Without torchrun that is ``ALONE``, on ``device``. Else the first call waits for all ranks, and
    "cuda" becomes the GPU with this rank's number on its machine.

    Raises:
        ValueError: a device that ranks cannot share work on, more ranks on a machine than GPUs, a
            timeout that is no number of seconds, or restarts that would not find one another.
    """
    if not _started_together():
        return ALONE, device
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: {device.type!r} came under torchrun, expected 'cpu' or 'cuda'")
    if device.type == "cuda" and device.index is None:
        number, cards = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if number >= cards:
            raise ValueError(
                f"device: 'cuda' came for rank {number} of this machine, which has {cards} GPUs; "
                f"start torchrun with --nproc-per-node={cards}, or take device='cpu'"
            )
        device = torch.device("cuda", number)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return Ranks(device, *_group()), device


def _started_together() -> bool:
    if not dist.is_available():
        return False
    if dist.is_initialized():
        return dist.get_world_size() > 1
    return all(name in os.environ for name in ENVIRONMENT) and int(os.environ["WORLD_SIZE"]) > 1


@functools.cache
def _group() -> tuple[dist.ProcessGroup, SignsOfLife]:
    """Meet the other ranks, once in a process; ``fit`` may be called many times."""
    wait = longest_wait()
    _check_restarts()
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=wait)
        atexit.register(_leave)
    control = dist.new_group(backend="gloo", timeout=wait)
    store = dist.distributed_c10d._get_default_store()
    life = SignsOfLife(store, dist.get_rank(), dist.get_world_size())
    atexit.register(life.end)
    return control, life


def _check_restarts() -> None:
    """Refuse torchrun's restarts while all attempts share one store.

    It still has the addresses of the ranks that are gone, and who comes again may wait for those
    (github.com/pytorch/pytorch/issues/135712).
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if shared and restarts != "0":
        raise ValueError(
            f"--max-restarts: {restarts} came, and torchrun keeps one store for all attempts, in "
            "which ranks that come again would find those that are gone; set "
            f"{UNSHARED}=1 where torchrun starts, and use --standalone or --rdzv-backend=c10d"
        )


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def longest_wait() -> timedelta:
    """Return how long a rank may keep the others waiting."""
    given = os.environ.get(TIMEOUT, "600")
    if not given.isdecimal() or not 0 < int(given) < 10**9:
        raise ValueError(f"{TIMEOUT}: {given!r} came, expected seconds, such as 600")
    return timedelta(seconds=int(given))
