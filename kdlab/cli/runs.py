"""A finished run on disk: a folder with the executed notebook, its records, and ``run.json``.

A run is made in ``.work`` and renamed when it is complete, so that its folder is whole or absent.
A lock for each run keeps two sweeps, on one machine or on several that share the folder, from
making the same one.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdlab.files import contents_of, read_json
from kdlab.files import short_hash as digest

FACTS = "run.json"
WORK = ".work"
DONE, FAILED = "done", "failed"
BUSY = "busy"  # another sweep is making it


@dataclass(frozen=True)
class Run:
    """What is to be run, and where it is kept.

    Attributes:
        lesson: path of the notebook.
        values: all parameters, defaults included; they give the run its name.
        given: the parameters that differ from run to run, which papermill sets.
        out: the folder of the sweep.
        made_from: what else decides the results, as ``identity`` gives it.
    """

    lesson: Path
    values: Mapping[str, Any]
    given: Mapping[str, Any]
    out: Path
    made_from: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A short hash of the settings: the same for the same settings, on every machine."""
        return digest([self.lesson.stem, dict(self.values)])

    @property
    def folder(self) -> Path:
        """Where the finished run lies."""
        return self.out / self.name

    def changed(self, facts: Mapping[str, Any]) -> str:
        """Say what is other now than when a finished run was made, "" if nothing is."""
        words = {"source": "the notebook", "data": "the data", "kdlab": "kdlab"}
        other = [words[key] for key, now in self.made_from.items() if facts.get(key) != now]
        return " and ".join(other)

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(f'{k}={v}' for k, v in self.given.items()) or 'as it is'})"


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        run: the run.
        status: ``DONE``, ``FAILED`` or ``BUSY``.
        before: it was there before.
        reason: why it failed, in one line.
    """

    run: Run
    status: str
    before: bool = False
    reason: str = ""


def source_digest(notebook: Mapping[str, Any]) -> str:
    """Return a short hash of what a notebook computes: its code, not its outputs."""
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    # what papermill set is no part of it
    own = [c for c in code if "injected-parameters" not in c.get("metadata", {}).get("tags", [])]
    return digest([cell["source"] for cell in own])


def identity(
    source: str, values: Mapping[str, Any], content: Callable[[str], str]
) -> dict[str, Any]:
    """Return what a run is made from beside its values: notebook, data and version, by content.

    Args:
        source: digest of the notebook's code.
        values: all parameters; texts that are paths count by what lies there.
        content: gives the digest of what lies at a path, "" for nothing.
    """
    import kdlab

    return {"source": source, "data": contents_of(values, content), "kdlab": kdlab.__version__}


FACT_KINDS: dict[str, Any] = {
    "status": str, "ended": (int, float), "seconds": (int, float), "lesson": str, "values": dict,
}  # fmt: skip


def facts_of(folder: Path) -> dict[str, Any] | None:
    """Return what ``run.json`` of a run's folder says; None where there is no complete run."""
    try:
        facts = read_json(folder / FACTS)
    except (OSError, ValueError):
        return None
    sound = isinstance(facts, dict) and facts.get("status") in (DONE, FAILED)
    return (
        facts if sound and all(isinstance(facts.get(k), v) for k, v in FACT_KINDS.items()) else None
    )


def found(run: Run, facts: Mapping[str, Any]) -> Outcome:
    """Return the outcome of a run that was there before."""
    return Outcome(run, facts["status"], before=True, reason=str(facts.get("reason", "")))


def read_notebook(path: Path) -> dict[str, Any]:
    """Return the content of a notebook, unchecked by nbformat, which takes ten times as long.

    Whatever a stranger wrote, what this package looks at is there and of its kind: cells with
    source, metadata, tags and outputs.

    Raises:
        ValueError: it is no notebook.
        OSError: it cannot be read.
    """
    try:
        notebook = read_json(path)
        _check(notebook["cells"], list)
        _check(notebook.setdefault("metadata", {}), dict)
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"])
            _check(cell["cell_type"], str)
            tags = _check(cell.setdefault("metadata", {}), dict).get("tags", [])
            _check("".join(_check(tags, list)), str)
            if cell["cell_type"] == "code":
                cell.setdefault("execution_count", None)
                for output in _check(cell.setdefault("outputs", []), list):
                    _check(_check(output, dict)["output_type"], str)
                    _check(output.get("data", {}), dict)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ValueError(f"notebook: {path} is not a Jupyter notebook") from None
    return dict(notebook)


def _check(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError
    return value


def make(
    run: Run,
    produce: Callable[[Path], dict[str, Any]],
    *,
    redo: Callable[[dict[str, Any]], bool],
    wait: bool,
) -> Outcome:
    """Let ``produce`` fill a folder, and keep it as the run's own, unless the run is there.

    Args:
        run: which one.
        produce: fills the folder that it gets and returns the facts: ``status``, ``reason``, ....
        redo: says of the facts of a finished run whether it must be made again.
        wait: wait while another process makes this run; else that outcome is ``BUSY``.

    Raises:
        OSError: the folder cannot be written, or is full; nothing half made is left.
    """
    work = run.out / WORK
    work.mkdir(parents=True, exist_ok=True)
    with _lock(work / f"{run.name}.lock", wait) as ours:
        if not ours:
            return Outcome(run, BUSY)
        _clear_up(run, work)
        there = facts_of(run.folder)
        if there and not run.changed(there) and not redo(there):
            return found(run, there)
        place = work / f"{run.name}-{secrets.token_hex(4)}"
        try:
            place.mkdir()
            facts = produce(place)
            if there:  # a clock may be set back, and the newest must stay the newest
                facts["ended"] = max(facts["ended"], there["ended"] + 0.001)
            text = json.dumps(facts, indent=1, ensure_ascii=False, default=str)
            (place / FACTS).write_text(text + "\n", encoding="utf-8")
            for path in place.iterdir():
                _flush(path)
            _put(place, run.folder, work)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        return Outcome(run, facts["status"], reason=facts.get("reason", ""))


@contextlib.contextmanager
def _lock(path: Path, wait: bool) -> Iterator[bool]:
    """Hold the lock inside; yield False when another has it and ``wait`` is not wanted.

    The system frees it when its holder dies. Its empty file stays: to delete it is a race.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0, poll_interval=0.2)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _clear_up(run: Run, work: Path) -> None:
    """Put in place what was complete when its process was killed, and remove what was not."""
    left = [path for path in work.glob(f"{run.name}-*") if path.is_dir()]
    complete = {path: facts for path in left if (facts := facts_of(path))}
    if complete:
        newest = max(complete, key=lambda path: complete[path]["ended"])
        kept = facts_of(run.folder)
        if kept is None or kept["ended"] < complete[newest]["ended"]:
            _put(newest, run.folder, work)
    for path in left:
        shutil.rmtree(path, ignore_errors=True)  # a kernel may write for a second after the kill


def left_over(out: Path) -> set[str]:
    """Return the names of runs that are being made, or were when their process was killed."""
    return {path.name.split("-")[0] for path in (out / WORK).glob("*-*")}


def _put(place: Path, folder: Path, work: Path) -> None:
    """Rename a complete folder to its name; killed between, ``_clear_up`` brings it to the end."""
    old = work / f"{folder.name}-{secrets.token_hex(4)}"
    if folder.exists():
        folder.rename(old)
    place.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    """Have a file on the disk itself before its folder gets its name."""
    if path.is_file():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def now() -> float:
    """Return the seconds since 1970, whole milliseconds."""
    return round(time.time(), 3)
