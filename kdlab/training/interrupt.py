"""An interrupt that waits for the end of the step, so that it loses nothing."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

ENDED = 128 + signal.SIGTERM  # a shell's exit status of what SIGTERM has ended


class Stop:
    """Whether training is to stop, and by which signal: ``asked`` is its number, or 0."""

    def __init__(self) -> None:
        self.asked = 0

    @property
    def requested(self) -> bool:
        """Whether to stop after this step."""
        return self.asked > 0


@contextlib.contextmanager
def deferred_interrupt(terminate: bool = False) -> Iterator[Stop]:
    """Turn the first interrupt (Ctrl-C, the toolbar's square) into ``stop.requested``.

    The loop then stops between two steps, where model, optimizer and batch-norm statistics agree.
    A second interrupt acts at once. Outside the main thread nothing changes.

    Args:
        terminate: SIGTERM, with which schedulers announce the end, waits too. What it ends is the
            process: at the end of the block it goes to who handled it before, or is a SystemExit.
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
        stop.asked = number

    for number in numbers:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop.asked == signal.SIGTERM:
        if callable(before[signal.SIGTERM]):
            signal.raise_signal(signal.SIGTERM)
        else:
            raise SystemExit(ENDED)
