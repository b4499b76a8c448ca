"""An interrupt that waits for the end of the step, so that it loses nothing."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Stop:
    """Whether the reader has asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    @property
    def requested(self) -> bool:
        """Whether to stop after this step."""
        return self.asked


@contextlib.contextmanager
def deferred_interrupt(terminate: bool = False) -> Iterator[Stop]:
    """Turn the first interrupt (Ctrl-C, the toolbar's square) into ``stop.requested``.

    The loop then stops between two steps, where model, optimizer and batch-norm statistics agree.
    A second interrupt acts at once. Outside the main thread nothing changes. With ``terminate``
    SIGTERM counts as an interrupt, too.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = (signal.SIGINT, signal.SIGTERM) if terminate else (signal.SIGINT,)
    before = {number: signal.getsignal(number) for number in numbers}

    def request(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    for number in numbers:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
