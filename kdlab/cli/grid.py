"""The grid of a sweep: what was typed, as runs, all checked before anything starts."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from kdlab.cli import parameters
from kdlab.cli.runs import Run, identity, source_digest
from kdlab.files import content_of
from kdlab.words import check_known

OPENING, CLOSING, QUOTES = "[({", "])}", "\"'"
RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})")
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
    content = functools.cache(functools.partial(content_of, lesson.resolve().parent))
    planned = []
    for row in itertools.product(*values.values()):
        setting = dict(zip(values, row, strict=True))
        made_from = identity(source, defaults | setting, content)
        planned.append(Run(lesson.resolve(), defaults | setting, setting, out.resolve(), made_from))
    return planned


def split_values(text: str) -> list[str]:
    """Split at commas, but not inside brackets or quotes: ``[64,32],"a,b",[32]`` are three values.

    A quote opens only where a value begins, or inside brackets: the one of ``it's`` is a letter.
    """
    parts, depth, quote = [""], 0, ""
    for letter in text:
        word = parts[-1].strip()
        if quote:
            quote = "" if letter == quote else quote
        elif letter in QUOTES and (depth > 0 or not word or word[0] == word[-1] == letter):
            quote = letter
        else:
            depth += (letter in OPENING) - (letter in CLOSING)
        if letter == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    if quote:
        raise ValueError(f"grid: {text} came, expected a second {quote} behind the first")
    return [part.strip() for part in parts]


def _values(declared: Mapping[str, parameters.Parameter], name: str, text: str) -> list[Any]:
    check_known("parameter", name, declared)
    kinds = {declared[name].type, *get_args(declared[name].type)}
    found: list[Any] = []
    for word in split_values(text):
        ends = RANGE.fullmatch(word) if kinds & {int, float} and str not in kinds else None
        if ends:
            low, high = map(int, ends.groups())
            if not 0 <= high - low < MOST:
                raise ValueError(
                    f"grid: {name}={word} came, expected LOW..HIGH with at most {MOST} values, "
                    f"as in -g {name}=0..4"
                )
        for one in map(str, range(low, high + 1)) if ends else [word]:
            value = _value(declared, name, one)
            if any(value == other and type(value) is type(other) for other in found):
                raise ValueError(f"grid: {name}={one} comes twice")
            found.append(value)
    return found


def _value(declared: Mapping[str, parameters.Parameter], name: str, word: str) -> Any:
    quote = word[:1] if word[:1] in QUOTES and word[1:].endswith(word[:1]) else ""
    if not word:
        raise ValueError(
            f"grid: {name} has an empty value; as in -g {name}=1,2,4, and an empty text is "
            f"-g '{name}=\"\"'"
        )
    text = word[1:-1].replace(quote * 2, quote) if quote else word
    (value,) = parameters.accept(declared, {name: text}, is_text=bool(quote)).values()
    return value


def _as_declared(value: Any, kind: Any) -> Any:
    """Return a default as typed values are read, ``4`` of a float as 4.0: both hash alike."""
    kinds = get_args(kind) or (kind,)
    if type(value) is int and float in kinds and int not in kinds and abs(value) < 2**63:
        return float(value)
    return value
