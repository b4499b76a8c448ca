"""The runs of a sweep on a Dask cluster: on workers of this machine, or of many.

All workers need this package, and see the notebook and the folder of the sweep at the same paths.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kdlab.cli import sweep
from kdlab.cli.runs import Outcome, Run

if TYPE_CHECKING:
    from distributed import Client

LOCAL = "local"


@contextlib.contextmanager
def connect(address: str, jobs: int) -> Iterator[Client]:
    """Connect to the scheduler at ``address``, or start one with ``jobs`` worker processes here.

    Raises:
        ValueError: Dask is not installed, or nobody answers at this address.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise ValueError(
            "scheduler: Dask is not installed; `pip install 'kdlab[bulk]'` brings it"
        ) from None
    with contextlib.ExitStack() as stack:
        if address == LOCAL:
            workers: dict[str, Any] = {"n_workers": jobs, "threads_per_worker": 1}
            cluster = LocalCluster(**workers, dashboard_address=None, silence_logs=50)
            address = stack.enter_context(cluster).scheduler_address
        else:
            _probe(address)
        try:
            client = Client(address, timeout=20, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            raise _nobody(address, error) from None
        yield stack.enter_context(client)


def _probe(address: str) -> None:
    """Raise ValueError where nobody listens; Dask would try for a minute, and not end quietly."""
    parts = urlsplit(address if "://" in address else f"tcp://{address}")
    try:
        if parts.scheme in ("tcp", "tls"):
            socket.create_connection((parts.hostname, parts.port or 0), timeout=20).close()
    except (OSError, ValueError) as error:
        raise _nobody(address, error) from None


def _nobody(address: str, error: Exception) -> ValueError:
    return ValueError(
        f"scheduler: {address!r} came, and nobody answers there ({error}); expected "
        f"{LOCAL!r} or an address as `dask scheduler` prints it, tcp://HOST:8786"
    )


def run_there(client: Client, order: sweep.Order) -> Callable[..., Iterator[Outcome]]:
    """Return what makes runs on the cluster and yields each outcome as it comes.

    Dask starts the run of a worker that died again on another one. A run that outlives no worker
    (Dask tries it four times) is kept as one that failed.
    """
    from distributed import KilledWorker, as_completed

    def make(planned: Iterable[Run], wait: bool) -> Iterator[Outcome]:
        # pure=False: keys of its own, for two sweeps on one cluster may have runs in common
        futures = {client.submit(sweep.perform, r, order, wait, pure=False): r for r in planned}
        try:
            for future in as_completed(list(futures), loop=client.loop):
                try:
                    yield future.result()
                except KilledWorker as death:
                    reason = f"its worker died {death.allowed_failures + 1} times"
                    yield sweep.keep_failure(futures[future], order, reason)
                except CancelledError:
                    raise ConnectionError("the scheduler is gone") from None
        finally:
            client.cancel([future for future in futures if not future.done()])

    return make
