"""Many runs in one table: parameters beside results, failed runs with their error."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlab.cli import parameters, runs
from kdlab.files import read_json, safe_name

if TYPE_CHECKING:
    import pandas as pd

MARK = "kdlab_report"  # in the metadata of a report's own notebook, which is no run
CONDITIONS = ["source", "kdlab", "torch", "threads", "machine", "started"]
BEFORE = ["lesson", "run", "status", "seconds", "error", *CONDITIONS]
BETWEEN = ["record", "row", "claim", "holds"]
CLAIMS = "claims"  # the record whose rows are what a lesson claimed


def gather(folder: str | Path) -> pd.DataFrame:
    """Return the records of all runs in a folder and below it, as one tidy table.

    Runs are those of ``kdlab sweep`` and the executed notebooks of ``kdlab run``. What lies there
    is read, never executed; links and devices are not followed.

    Returns:
        One row for each run and record; a record that is a table has one for each of its rows.
        Columns: lesson, run (path in the folder), status (done or failed), seconds, error; what
        is known of source (digest of the notebook's code), kdlab, torch, threads, machine and
        started (UTC); the parameters of the lessons, then record (its name), row, and what was
        recorded, as a rule ``value``. A recorded column with the name of one before it is called
        ``record_...``, such a parameter ``parameter_...``. What is no number, text or truth value
        is JSON. A column has values of several kinds where its records have; ``settled`` makes
        them texts. The findings of a lesson are rows of the record ``claims``, with the sentence in
        the column claim, and whether it holds. A run without all this has one row.
        ``table.attrs`` has ``skipped``, what is no run though it looks like one (path → why), and
        ``data``, by run what lay at its paths (path → digest).

    Raises:
        ValueError: no run is there.
    """
    import pandas as pd

    skipped: dict[str, str] = {}
    found = list(_facts_below(Path(folder), skipped))
    if not found:
        there = "".join(f"\n  {path}: {why}" for path, why in list(skipped.items())[:20])
        raise ValueError(
            f"runs: no run in {folder}; `kdlab sweep NOTEBOOK -g NAME=A,B` makes some{there}"
        )
    of_runs = dict.fromkeys(name for _, facts in found for name in facts["values"])
    called = _renamed(of_runs, {*BEFORE, *BETWEEN}, "parameter")
    names = list(called.values())
    taken = {*BEFORE, *names, *BETWEEN}
    recorded = {k for _, facts in found for e in facts["records"] for row in _rows(e) for k in row}
    own = _renamed(sorted(recorded), taken, "record")
    rows = []
    for run, facts in found:
        values = {called[name]: value for name, value in facts["values"].items()}
        about = {
            "lesson": facts["lesson"],
            "run": run,
            "status": facts["status"],
            "seconds": facts["seconds"],
            "error": facts.get("reason"),
            **_conditions(facts),
            **{name: values.get(name) for name in names},
        }
        claims = [
            {"record": CLAIMS, "row": number, "claim": c["sentence"], "holds": c["holds"]}
            for number, c in enumerate(facts["told"].get("claims", []))
        ]
        rows += [about | claim for claim in claims]
        for entry in facts["records"] or ([] if claims else [{}]):
            for number, line in enumerate(_rows(entry)):
                between = dict(zip(BETWEEN, (entry.get("name"), number, None, None), strict=True))
                rows.append({**about, **between, **{own[k]: v for k, v in line.items()}})
    columns = dict.fromkeys(name for row in rows for name in row)
    data = {name: [row.get(name) for row in rows] for name in columns}
    whole = {name: column_of(values, mixed=name in own.values()) for name, values in data.items()}
    table = pd.DataFrame(whole)
    table = table.sort_values(["lesson", *names, "run"], kind="stable", ignore_index=True)
    data = {run: facts.get("data", facts["told"].get("data")) for run, facts in found}
    known = {run: contents for run, contents in data.items() if isinstance(contents, dict)}
    table.attrs |= {"skipped": skipped, "data": known}
    return table


def settled(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose columns have one kind each, as Parquet wants it: else texts."""
    made = table.copy()
    made.attrs = {}
    for name in [name for name in table if table[name].dtype == "object"]:
        made[name] = column_of(list(table[name]), mixed=False)
    return made


def _renamed(names: Iterable[str], taken: set[str], kind: str) -> dict[str, str]:
    """Return for each name one that nothing else has: ``record_seed`` for a seed in a record."""
    found, used = {}, set(names)
    for name in names:
        new = name
        while new in taken or (new != name and new in used):
            new = f"{kind}_{new}"
        found[name] = new
        used.add(new)
    return found


def parameter_names(table: pd.DataFrame) -> list[str]:
    """Return the columns of ``gather``'s table that are parameters of a lesson."""
    columns = list(table.columns)
    return columns[len(BEFORE) : columns.index(BETWEEN[0])]


def recorded_names(table: pd.DataFrame) -> list[str]:
    """Return the columns of ``gather``'s table that were recorded."""
    columns = list(table.columns)
    return columns[columns.index(BETWEEN[-1]) + 1 :]


def _conditions(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return under which conditions a run was made, None for what nobody wrote down."""
    told = facts["told"]
    machine = told.get("machine", {})
    words = [str(machine[name]) for name in ("name", "device") if name in machine]
    started = facts.get("started")
    if isinstance(started, int | float):
        try:
            started = f"{datetime.fromtimestamp(started, UTC):%Y-%m-%dT%H:%M:%SZ}"
        except (ValueError, OverflowError, OSError):
            started = None
    return {
        "source": facts.get("source"),
        "kdlab": facts.get("kdlab", told.get("kdlab")),
        "torch": machine.get("torch"),
        "threads": machine.get("threads", facts.get("threads")),
        "machine": ", ".join(words) or None,
        "started": started,
    }


def _facts_below(root: Path, skipped: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (path in the folder, facts) of every run; a sweep may be at work in it meanwhile."""
    for name, folders, files in os.walk(root):
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        place = Path(name)
        notebooks = [place / file for file in sorted(files) if file.endswith(".ipynb")]
        texts = [place / file for file in sorted(files) if file.endswith(".json")]
        plain, skip = [], {}
        for path in notebooks:
            if is_plain(path):
                plain.append(path)
            else:
                skip[path] = "it is a link, or no file"
        facts = runs.facts_of(place) if is_plain(place / runs.FACTS) else None
        if facts:
            records = _records_below(plain)
            yield _inside(place, root), facts | records | {"told": _told_in(texts, {})}
        elif (place / runs.FACTS).exists() and not _told_in([place / runs.FACTS], {}):
            skip[place / runs.FACTS] = "it is damaged, or not of a run of kdlab"
        for path in [] if facts else plain:
            try:
                if alone := _facts_of_notebook(path, texts):
                    yield _inside(path, root), alone
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                skip[path] = str(error) or type(error).__name__
        skipped |= {_inside(path, root): why for path, why in skip.items()}


def _inside(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def is_plain(path: Path) -> bool:
    """Say whether this is a file itself: a link may lead anywhere, a pipe never ends."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _records_below(notebooks: list[Path]) -> dict[str, Any]:
    """Return the records of a run's notebook, or that it cannot be read."""
    try:
        return {"records": [e for path in notebooks for e in records_of(runs.read_notebook(path))]}
    except (OSError, ValueError) as error:
        return {"status": runs.FAILED, "reason": str(error), "records": []}


def _told_in(paths: list[Path], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``lab`` wrote of a run with these values: claims, machine, versions."""
    for path in filter(is_plain, paths):
        with contextlib.suppress(OSError, ValueError):
            told = read_json(path)
            if _is_record(told) and not any(
                told["parameters"].get(name) != value for name, value in values.items()
            ):
                return dict(told)
    return {}


def _is_record(told: Any) -> bool:
    """Say whether this is what ``lab`` writes, and whole."""
    kinds = {"claims": list, "machine": dict, "parameters": dict}
    if not isinstance(told, dict) or any(not isinstance(told.get(k), v) for k, v in kinds.items()):
        return False
    claims = [isinstance(c, dict) and isinstance(c.get("sentence"), str) for c in told["claims"]]
    return all(claims) and all(isinstance(claim.get("holds"), bool) for claim in told["claims"])


def _facts_of_notebook(path: Path, texts: list[Path]) -> dict[str, Any] | None:
    """Return what an executed notebook says of its run; None for one that papermill never ran.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: it is damaged.
    """
    notebook = runs.read_notebook(path)
    about = notebook["metadata"].get("papermill")
    if not about or MARK in notebook["metadata"]:
        return None
    errors = [
        f"{output.get('ename')}: {output.get('evalue')}"
        for cell in notebook["cells"]
        for output in cell.get("outputs", [])
        if output["output_type"] == "error"
    ]
    seconds, start = about.get("duration"), about.get("start_time")
    timed = isinstance(seconds, int | float) and seconds >= 0
    failed = bool(about.get("exception")) or seconds is None
    declared = parameters.read(notebook)
    values = {n: p.default for n, p in declared.items()} | about.get("parameters", {})
    own = re.compile(
        rf"{re.escape(path.stem)}|{re.escape(safe_name(path.stem, 110))}-[0-9a-f]{{8}}"
    )
    mine = [text for text in texts if own.fullmatch(text.stem)]
    return {
        "lesson": path.stem,
        "status": runs.FAILED if failed else runs.DONE,
        "reason": (errors or ["it came to no end"])[0] if failed else None,
        "seconds": seconds if timed else None,
        "started": f"{start[:19]}Z" if isinstance(start, str) else None,
        "values": values,
        "source": runs.source_digest(notebook),
        "records": records_of(notebook),
        "told": _told_in(mine, json.loads(json.dumps(values, default=str))),
    }


def records_of(notebook: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a notebook keeps of ``lab.record``; of several with one name the last."""
    from kdlab.lab import MIME

    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    entries = [output.get("data", {}).get(MIME) for output in outputs]
    sound = [e for e in entries if isinstance(e, dict) and isinstance(e.get("name"), str)]
    return list({entry["name"]: entry for entry in sound}.values())


def _rows(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one record as rows: a table as its own, a mapping as columns ``name.key``."""
    flat: dict[str, Any] = {}
    for key, value in entry.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": item for inner, item in value.items()}
        elif key != "name":
            flat[key] = value
    value = flat.get("value")
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        del flat["value"]
        return [{**flat, **row} for row in value]
    return [flat]


def column_of(values: list[Any], *, mixed: bool) -> pd.Series:
    """Return a column of numbers, truth values or texts; of all these if it may be ``mixed``."""
    import pandas as pd

    plain = [None if value is None or value != value else _plain(value) for value in values]
    kinds = {type(value) for value in plain} - {type(None)}
    whole = None not in plain
    if kinds <= {int, float}:
        return pd.Series(plain, dtype="int64" if kinds == {int} and whole else float)
    if kinds == {bool}:
        return pd.Series(plain, dtype="bool" if whole else "boolean")
    if mixed and kinds != {str}:
        return pd.Series(plain, dtype=object)
    return pd.Series([None if v is None else _text(v) for v in plain], dtype="str")


def _plain(value: Any) -> Any:
    """Return a number, truth value or text as it is, all else as JSON."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else None if abs(value) > 1e300 else float(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
