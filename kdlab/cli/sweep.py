"""The runs of a sweep: made at most once each, here or on the workers of a cluster.

Whatever is killed, and whenever: a run is kept whole or not at all (``runs``), so the same command
goes on where it was. Nothing heavy is imported here, for every worker imports this.
"""

from __future__ import annotations

import functools
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdlab.cli import runs
from kdlab.cli.runs import BUSY, DONE, FAILED, Outcome, Run
from kdlab.files import content_of


@dataclass(frozen=True)
class Order:
    """How runs are made; the same for all runs of a sweep.

    Attributes:
        timeout: longest time for one cell, in seconds.
        threads: of each kernel; None: as the environment of the machine says.
        again: make every run anew.
        retry: make those anew that failed.
        sweep: tells this sweep from others, so that it makes no run twice even with ``again``.
    """

    timeout: int = 600
    threads: int | None = None
    again: bool = False
    retry: bool = False
    sweep: str = field(default_factory=lambda: secrets.token_hex(8))

    def redo(self, facts: Mapping[str, Any]) -> bool:
        """Say whether a finished run is to be made again."""
        wanted = self.again or (self.retry and facts["status"] == FAILED)
        return wanted and facts.get("sweep") != self.sweep


def perform(run: Run, order: Order, wait: bool = True) -> Outcome:
    """Make one run, or find that it is there; here, in a thread, or on a worker of a cluster.

    Raises:
        OSError: the folder cannot be written or is full. What the notebook raises is no error
            here but a run that failed.
    """
    return runs.make(run, lambda place: _produce(run, order, place), redo=order.redo, wait=wait)


def keep_failure(run: Run, order: Order, reason: str) -> Outcome:
    """Keep a run that failed where nothing could be written: its worker died again and again."""
    facts = _facts(run, order, runs.now()) | {"status": FAILED, "reason": reason, "error": reason}
    return runs.make(run, lambda place: facts, redo=order.redo, wait=True)


def run_here(planned: Iterable[Run], order: Order, jobs: int, wait: bool) -> Iterator[Outcome]:
    """Make runs on this machine, ``jobs`` kernels at a time; yield each outcome as it comes.

    Raises:
        OSError: as ``perform``; runs that have begun are brought to an end first.
    """
    pool = ThreadPoolExecutor(jobs)
    futures = [pool.submit(perform, run, order, wait) for run in planned]
    try:
        for future in as_completed(futures):
            yield future.result()
    except BaseException as error:
        # an interrupt waits for no kernel: they end when this process does
        pool.shutdown(wait=isinstance(error, OSError), cancel_futures=True)
        raise
    pool.shutdown()


def look_up(
    planned: Sequence[Run], order: Order
) -> tuple[list[Outcome], list[Run], dict[str, str]]:
    """Return what is there already, the runs that are to be made, and which of them are stale.

    To be made are also those that are to be cleared up after a kill; of the stale ones it says
    what has changed since.
    """
    there, missing, stale = [], [], {}
    unclear = runs.left_over(planned[0].out)
    for run in planned:
        facts = runs.facts_of(run.folder)
        changed = run.changed(facts) if facts else ""
        if changed:
            stale[run.name] = changed
        if facts is None or changed or order.redo(facts) or run.name in unclear:
            missing.append(run)
        else:
            there.append(runs.found(run, facts))
    return there, missing, stale


def run_all(
    planned: Iterable[Run], make: Callable[[Iterable[Run], bool], Iterator[Outcome]]
) -> Iterator[Outcome]:
    """Make runs; what another sweep is making comes last, so that nobody waits while work is left.

    Args:
        planned: the runs.
        make: makes runs and waits, or does not, for those that are being made elsewhere.
    """
    busy = []
    for outcome in make(planned, False):
        if outcome.status == BUSY:
            busy.append(outcome.run)
        else:
            yield outcome
    if busy:
        yield from make(busy, True)


def threads_each(jobs: int, cores: int) -> int:
    """Return the threads of each of ``jobs`` kernels; never more than OMP_NUM_THREADS allows."""
    share = max(1, cores // jobs)
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(limit)) if limit.isdigit() and int(limit) else share


def _produce(run: Run, order: Order, place: Path) -> dict[str, Any]:
    """Execute the notebook into ``place`` and return the facts of the run."""
    from kdlab.cli.running import LessonFailed, run_lesson

    output, facts = place / run.lesson.name, _facts(run, order, runs.now())
    begun, before = time.perf_counter(), _made_from(run)
    try:
        run_lesson(
            run.lesson,
            output,
            run.given,
            timeout=order.timeout,
            progress=False,
            threads=order.threads,
        )
    except LessonFailed as failure:
        there = str(failure).replace(str(place), str(run.folder))
        facts |= {"status": FAILED, "reason": failure.reason, "error": there}
    except OSError:
        raise
    except Exception as failure:  # no kernel, a reply that cannot be read: this run, not the sweep
        reason = f"{type(failure).__name__}: {failure}"
        facts |= {"status": FAILED, "reason": reason, "error": reason}
    if facts["status"] == DONE and _made_from(run) != before:
        reason = "the data or the notebook changed while it ran"
        facts |= {"status": FAILED, "reason": reason, "error": reason}
    seconds = round(time.perf_counter() - begun, 3)  # a clock may be set back meanwhile
    return facts | before | {"ended": runs.now(), "seconds": seconds}


def _made_from(run: Run) -> dict[str, Any]:
    """Return the identity of a run as things are now; a sweep takes hours."""
    source = runs.source_digest(runs.read_notebook(run.lesson))
    content = functools.partial(content_of, run.lesson.parent)
    return runs.identity(source, run.values, content)


def _facts(run: Run, order: Order, started: float) -> dict[str, Any]:
    return {
        "status": DONE,
        "lesson": run.lesson.stem,
        "values": dict(run.values),
        "given": dict(run.given),
        **run.made_from,
        "sweep": order.sweep,
        "threads": order.threads,
        "started": started,
        "ended": started,
        "seconds": 0.0,
    }
