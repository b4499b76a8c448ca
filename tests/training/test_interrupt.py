"""Signals wait for the end of a step; SIGTERM then goes where it was going."""

import signal

import pytest

from kdlab.training.interrupt import ENDED, deferred_interrupt


def test_sigterm_waits_and_then_ends_the_process():
    done = []
    with pytest.raises(SystemExit) as end, deferred_interrupt(terminate=True) as stop:
        signal.raise_signal(signal.SIGTERM)
        done.append(stop.requested)
    assert done == [True] and end.value.code == ENDED == 143


def test_whoever_handles_sigterm_gets_it_afterwards():
    calls = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: calls.append(number))
    try:
        with deferred_interrupt(terminate=True) as stop:
            signal.raise_signal(signal.SIGTERM)
            assert stop.requested and not calls
        assert calls == [signal.SIGTERM]
        with deferred_interrupt() as stop:
            signal.raise_signal(signal.SIGTERM)  # not asked to wait
            assert not stop.requested
        assert calls == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_error_is_not_covered_up():
    with pytest.raises(RuntimeError, match="a rank is gone"), deferred_interrupt(terminate=True):
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("a rank is gone")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_interrupt_ends_no_process():
    with deferred_interrupt(terminate=True) as stop:
        signal.raise_signal(signal.SIGINT)
    assert stop.asked == signal.SIGINT
