"""The grid of a sweep: what was typed, as runs, all checked before anything starts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from kdlab.cli import parameters
from kdlab.cli.runs import Run, digest
from kdlab.words import check_known

OPENING, CLOSING = "[({", "])}"
MOST = 100_000  # runs in one sweep


def plan(
    lesson: Path, notebook: Mapping[str, Any], grid: Mapping[str, str], seeds: int | None, out: Path
) -> list[Run]:
    """Return one run for each setting of the grid and each seed.

    Args:
        lesson: path of the notebook.
        notebook: its content.
        grid: parameter → what was typed: values with commas between them.
        seeds: 5 means the seeds 0 to 4; None leaves the seed as it is.
        out: the folder of the sweep.

    Raises:
        ValueError: an unknown name, a value of the wrong type or out of limits, one that comes
            twice or climbs out of its folder, or too many runs.
    """
    declared = parameters.read(notebook)
    given = dict(grid)
    if seeds is not None:
        check_known("parameter", "seed", declared, where=" (--seeds sets it)")
        if "seed" in given:
            raise ValueError("seeds: give --seeds or -g seed=..., not both")
        given["seed"] = ",".join(map(str, range(seeds)))
    values = {name: _values(declared, name, text) for name, text in given.items()}
    count = 1
    for column in values.values():
        count *= len(column)
    if count > MOST:
        raise ValueError(f"grid: {count} runs came, expected at most {MOST}; take fewer values")
    defaults = {name: _as_declared(p.default, p.type) for name, p in declared.items()}
    source = source_digest(notebook)
    settings = [dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]
    return [Run(lesson.resolve(), defaults | s, s, out.resolve(), source) for s in settings]


def split_values(text: str) -> list[str]:
    """Split at commas, but not inside brackets: ``[64,32],[32]`` are two values."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in OPENING) - (letter in CLOSING)
        if letter == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def source_digest(notebook: Mapping[str, Any]) -> str:
    """Return a short hash of what a notebook computes: its code, not its outputs."""
    code = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return digest(code)


def _values(declared: Mapping[str, parameters.Parameter], name: str, text: str) -> list[Any]:
    found: list[Any] = []
    for word in split_values(text):
        if not word:
            raise ValueError(f"grid: {name}={text!r} has an empty value; as in -g {name}=1,2,4")
        (value,) = parameters.accept(declared, {name: word}).values()
        _check_inside(name, value)
        if value in found:
            raise ValueError(f"grid: {name}={word} comes twice")
        found.append(value)
    return found


def _check_inside(name: str, value: Any) -> None:
    """Raise if a text, also one in a list, is a path that climbs with ``..``."""
    for text in value if isinstance(value, list | tuple) else [value]:
        if isinstance(text, str) and ".." in PurePosixPath(text.replace("\\", "/")).parts:
            raise ValueError(
                f"parameter {name} = {value!r} leaves its folder; expected a name or a full path"
            )


def _as_declared(value: Any, kind: Any) -> Any:
    """Return a default as typed values are read, ``4`` of a float as 4.0: both hash alike."""
    kinds = get_args(kind) or (kind,)
    return float(value) if type(value) is int and float in kinds and int not in kinds else value
