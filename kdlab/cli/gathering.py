"""Many runs in one table: parameters beside results, failed runs with their error."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlab.cli import parameters, runs

if TYPE_CHECKING:
    import pandas as pd

MARK = "kdlab_report"  # in the metadata of a report's own notebook, which is no run
CONDITIONS = ["source", "kdlab", "torch", "threads", "machine", "started"]
BEFORE = ["lesson", "run", "status", "seconds", "error", *CONDITIONS]
BETWEEN = ["record", "row", "claim", "holds"]
CLAIMS = "claims"  # the record whose rows are what a lesson claimed


def gather(folder: str | Path) -> pd.DataFrame:
    """Return the records of all runs in a folder and below it, as one tidy table.

    Runs are those of ``kdlab sweep`` and the executed notebooks of ``kdlab run``.

    Returns:
        One row for each run and record; a record that is a table has one for each of its rows.
        Columns: lesson, run (path in the folder), status (done or failed), seconds, error; what
        is known of source (digest of the notebook's code), kdlab, torch, threads, machine and
        started (UTC); the parameters of the lessons, then record (its name), row, and what was
        recorded, as a rule ``value``. A recorded column with the name of one before it is called
        ``record_...``, such a parameter ``parameter_...``. What is no number, text or truth value
        is JSON. The findings of a lesson are rows of the record ``claims``, with the sentence in
        the column claim, and whether it holds. A run without all this has one row.

    Raises:
        ValueError: no run is there.
    """
    import pandas as pd

    found = list(_facts_below(Path(folder)))
    if not found:
        raise ValueError(f"runs: no run in {folder}; `kdlab sweep NOTEBOOK -g NAME=A,B` makes some")
    for _, facts in found:
        facts["values"] = {
            f"parameter_{k}" if k in BEFORE else k: v for k, v in facts["values"].items()
        }
    names = list(dict.fromkeys(name for _, facts in found for name in facts["values"]))
    taken = {*BEFORE, *names, *BETWEEN}
    rows = []
    for run, facts in found:
        about = {
            "lesson": facts["lesson"],
            "run": run,
            "status": facts["status"],
            "seconds": facts["seconds"],
            "error": facts.get("reason"),
            **_conditions(facts),
            **{name: facts["values"].get(name) for name in names},
        }
        claims = [
            {"record": CLAIMS, "row": number, "claim": c["sentence"], "holds": c["holds"]}
            for number, c in enumerate(facts["told"].get("claims", []))
        ]
        rows += [about | claim for claim in claims]
        for entry in facts["records"] or ([] if claims else [{}]):
            for number, values in enumerate(_rows(entry)):
                renamed = {f"record_{k}" if k in taken else k: v for k, v in values.items()}
                between = dict(zip(BETWEEN, (entry.get("name"), number, None, None), strict=True))
                rows.append({**about, **between, **renamed})
    table = pd.DataFrame(rows).apply(_settled)
    return table.sort_values(["lesson", *names, "run"], kind="stable", ignore_index=True)


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
        started = f"{datetime.fromtimestamp(started, UTC):%Y-%m-%dT%H:%M:%SZ}"
    return {
        "source": facts.get("source"),
        "kdlab": facts.get("kdlab", told.get("kdlab")),
        "torch": machine.get("torch"),
        "threads": machine.get("threads", facts.get("threads")),
        "machine": ", ".join(words) or None,
        "started": started,
    }


def _facts_below(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (path in the folder, facts) of every run; a sweep may be at work in it meanwhile."""
    for name, folders, files in os.walk(root):
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        place = Path(name)
        notebooks = [place / file for file in sorted(files) if file.endswith(".ipynb")]
        if facts := runs.facts_of(place):
            told = _told_in([place / file for file in files if file.endswith(".json")])
            records = _records_below(notebooks)
            yield place.relative_to(root).as_posix(), facts | records | {"told": told}
            continue
        for path in notebooks:
            if alone := _facts_of_notebook(path):
                yield path.relative_to(root).as_posix(), alone


def _records_below(notebooks: list[Path]) -> dict[str, Any]:
    """Return the records of a run's notebook, or that it cannot be read."""
    try:
        return {"records": [e for path in notebooks for e in records_of(runs.read_notebook(path))]}
    except (OSError, ValueError) as error:
        return {"status": runs.FAILED, "reason": str(error), "records": []}


def _told_in(paths: list[Path]) -> dict[str, Any]:
    """Return what ``lab`` wrote beside a notebook: claims, machine, versions; {} if nothing."""
    for path in sorted(paths):
        with contextlib.suppress(OSError, ValueError):
            told = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(told, dict) and told.keys() >= {"claims", "machine", "parameters"}:
                return told
    return {}


def _facts_of_notebook(path: Path) -> dict[str, Any] | None:
    """Return what an executed notebook says of its run; None for one that papermill never ran."""
    try:
        notebook = runs.read_notebook(path)
        declared = parameters.read(notebook)
    except ValueError:
        return None
    about = notebook["metadata"].get("papermill")
    if not about or MARK in notebook["metadata"]:
        return None
    errors = [
        f"{output['ename']}: {output['evalue']}"
        for cell in notebook["cells"]
        for output in cell.get("outputs", [])
        if output["output_type"] == "error"
    ]
    failed = about.get("exception") or about.get("duration") is None
    values = {n: p.default for n, p in declared.items()} | about.get("parameters", {})
    told = _told_in([path.with_suffix(".json")])
    if any(told and told["parameters"].get(name) != value for name, value in values.items()):
        told = {}  # of a later run of this lesson into the same folder
    return {
        "lesson": path.stem,
        "status": runs.FAILED if failed else runs.DONE,
        "reason": (errors or ["it came to no end"])[0] if failed else None,
        "seconds": about.get("duration"),
        "started": f"{start[:19]}Z" if (start := about.get("start_time")) else None,
        "values": values,
        "records": records_of(notebook),
        "told": told,
    }


def records_of(notebook: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a notebook keeps of ``lab.record``; of several with one name the last."""
    from kdlab.lab import MIME

    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    entries = [output["data"][MIME] for output in outputs if MIME in output.get("data", {})]
    return list({entry["name"]: entry for entry in entries}.values())


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


def _settled(column: pd.Series) -> pd.Series:
    """Return a column of one kind, as Parquet wants it: numbers, truth values or texts."""
    present = [value for value in column if not _is_missing(value)]
    kinds = {type(value) for value in present}
    if kinds <= {int, float}:
        return column.astype("int64" if kinds == {int} and len(present) == len(column) else float)
    if kinds == {bool}:
        return column.astype("bool" if len(present) == len(column) else "boolean")
    return column.map(lambda value: None if _is_missing(value) else _text(value)).astype("str")


def _is_missing(value: Any) -> bool:
    return value is None or value != value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
