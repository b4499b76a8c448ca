"""What a learner has solved: a small file that is theirs, and that never leaves the machine.

It is ``~/.kdlab/progress.json``, or what ``KDLAB_PROGRESS`` names; ``KDLAB_PROGRESS=off`` keeps
nothing. Only answers that a person gives in a notebook are kept: front ends name the cell that they
run, papermill, nbval and nbconvert do not. Answers from a lesson's solution cells are left out.
"""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from IPython import get_ipython

from kdlab.files import atomic_write, read_json
from kdlab.lab.parameters import parse

SWITCH, OFF = "KDLAB_PROGRESS", ("off", "no", "none", "false", "0")
RANKS = ("wrong", "close", "right")  # "not yet" is no answer
MARKS = {"wrong": "✗", "close": "≈", "right": "✓"}
PATIENCE = 5.0  # seconds to wait for another kernel
HEADLESS = "In JupyterLab your progress stands here. It is kept in a file of yours, and only there."

Entries = dict[str, dict[str, Any]]


def path() -> Path | None:
    """Return the progress file, which need not exist; None when it is switched off."""
    chosen = os.environ.get(SWITCH, "").strip()
    if chosen.lower() in OFF:
        return None
    try:
        file = Path(chosen) if chosen else Path.home() / ".kdlab" / "progress.json"
        return file.expanduser().resolve()
    except (RuntimeError, OSError):  # nobody's home, a link that points at itself
        return None


def request() -> dict[str, Any]:
    """Return what the front end says of the cell that runs; empty where it says nothing."""
    parent: Any = getattr(get_ipython(), "get_parent", dict)()
    found = parent.get("metadata") if isinstance(parent, dict) else None
    return found if isinstance(found, dict) else {}


def is_live() -> bool:
    """Say whether a person runs this cell, in a notebook."""
    return "cellId" in request()


def note(lesson: str, exercise: str, status: str, hints: int) -> str:
    """Keep a verdict: the best so far, and how many hints it took. Never raises.

    Returns:
        What the learner must be told, mostly nothing.
    """
    file = path()
    if file is None or status not in RANKS or not is_live() or "solution" in _tags():
        return ""
    try:
        return keep(file, exercise, {"lesson": lesson, "status": status, "hints": hints})
    except (OSError, Timeout) as error:
        return f"progress is not kept: {_reason(error)} ({SWITCH}=off keeps none)"


def keep(file: Path, exercise: str, entry: dict[str, Any]) -> str:
    """Write one verdict into the file, beside those of other kernels; tell of a damaged file.

    Raises:
        OSError, Timeout: the file cannot be written, or another kernel never lets go of it.
    """
    with _lock(file):
        entries, told = _load(file)
        better = _better(entries.get(exercise), entry)
        if better != entries.get(exercise):
            text = json.dumps({"exercises": entries | {exercise: better}}, indent=1, sort_keys=True)
            with atomic_write(file) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")
    return told


def read(file: Path) -> tuple[Entries, str]:
    """Return what was solved, and what must be told about a damaged file.

    Raises:
        OSError, Timeout: the file is there and cannot be read.
    """
    if not file.exists():
        return {}, ""
    with _lock(file):
        return _load(file)


def reset(file: Path) -> bool:
    """Delete the file; say whether there was one.

    Raises:
        OSError, Timeout: it cannot be deleted.
    """
    if not file.exists():
        return False
    with _lock(file):
        file.unlink(missing_ok=True)
    return True


def show(folder: str | os.PathLike[str] = ".") -> pd.DataFrame | None:
    """Return the learner's :func:`table` and print where it is kept.

    Where no person looks: None, and one line that is the same on every machine.
    """
    if not is_live():
        print(HEADLESS)
        return None
    file = path()
    if file is None:
        print(f"no progress is kept ({SWITCH})")
        return None
    try:
        entries, told = read(file)
    except (OSError, Timeout) as error:
        entries, told = {}, f"{file} cannot be read: {_reason(error)}"
    kept = f"kept in {file}, on this machine only; `kdlab progress --reset` deletes it"
    print(told or kept)
    return table(entries, folder)


def table(entries: Entries, folder: str | os.PathLike[str] = ".") -> pd.DataFrame:
    """Return lessons × exercises: how many are solved, and each with its mark and its hints.

    Args:
        entries: as :func:`read` gives them.
        folder: where the lessons are; an exercise of a lesson that is not there has a row, too.
    """
    asked = {lesson.stem: names for lesson in sorted(Path(folder).glob("*.ipynb"))
             if (names := exercises_of(lesson))}  # fmt: skip
    for name, entry in entries.items():
        names = asked.setdefault(entry["lesson"], [])
        if not any(name in known for known in asked.values()):
            names.append(name)
    rows = {}
    for lesson, names in asked.items():
        solved = sum(entries.get(name, {}).get("status") == "right" for name in names)
        cells = [_cell(name, entries.get(name)) for name in names]
        rows[lesson] = {"solved": f"{solved} of {len(names)}"} | dict(enumerate(cells, 1))
    widest = max((len(row) for row in rows.values()), default=1)
    columns = ["solved", *range(1, widest)]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=columns).fillna("")
    return frame.rename_axis("lesson")


def exercises_of(lesson: Path) -> list[str]:
    """Return the names of a notebook's exercises, in order; none for what is no notebook."""
    try:
        cells = read_json(lesson)["cells"]
        sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    found = (name for source in sources if (tree := parse(source)) for name, _ in judged(tree))
    return list(dict.fromkeys(found))


def judged(tree: ast.Module) -> list[tuple[str, ast.Call]]:
    """Return name and call of each ``lab.check("name", answer)`` (or ``lab.points``) of a cell."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    found = []
    for call in sorted(calls, key=lambda call: (call.lineno, call.col_offset)):
        named = isinstance(call.func, ast.Attribute) and call.func.attr in ("check", "points")
        first = call.args[0] if named and len(call.args) == 2 else None
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            found.append((first.value, call))
    return found


def _tags() -> list[str]:
    return request().get("tags") or []


def _lock(file: Path) -> FileLock:
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{file}.lock", timeout=PATIENCE)


def _load(file: Path) -> tuple[Entries, str]:
    """Read the file; set aside one that makes no sense, because it may be all that is left."""
    try:
        entries = read_json(file)["exercises"]
        if all(_is_sound(entry) for entry in entries.values()):
            return entries, ""
    except FileNotFoundError:
        return {}, ""
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    numbers = (f"{file.stem}.damaged-{n}{file.suffix}" for n in range(1, 1000))
    aside = next(spot for name in numbers if not (spot := file.with_name(name)).exists())
    file.replace(aside)
    return {}, f"the progress file was damaged: it is now {aside.name}, and a new one begins"


def _is_sound(entry: dict[str, Any]) -> bool:
    kinds = {"lesson": str, "status": str, "hints": int}
    return entry["status"] in RANKS and all(type(entry[key]) is kinds[key] for key in kinds)


def _better(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """Join two verdicts on one exercise; what was solved stays as it was solved."""
    if old is None or old["status"] == "right":
        return old or new
    best = max(old, new, key=lambda entry: RANKS.index(entry["status"]))
    return new | {"status": best["status"], "hints": max(old["hints"], new["hints"])}


def _cell(name: str, entry: dict[str, Any] | None) -> str:
    if entry is None:
        return f"– {name}"
    hints = entry["hints"]
    used = f" ({hints} hint{'s' if hints > 1 else ''})" if hints else ""
    return f"{MARKS[entry['status']]} {name}{used}"


def _reason(error: Exception) -> str:
    if isinstance(error, Timeout):
        return "another kernel holds the file"
    return f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"
