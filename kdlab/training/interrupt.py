"""An interrupt that waits for the end of the step, so that it loses nothing."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType


@dataclass
class Stop:
    """Whether the reader has asked to stop."""

    requested: bool = False


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Stop]:
    """Turn the first interrupt (Ctrl-C, the toolbar's square) into ``stop.requested``.

    The loop then stops between two steps, where model, optimizer and batch-norm statistics agree.
    A second interrupt acts at once. Outside the main thread nothing changes.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def request(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    signal.signal(signal.SIGINT, request)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
