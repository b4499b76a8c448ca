"""What a lesson lets you change: read from its source, and held against what was typed.

Papermill only logs an unknown parameter and runs on. Here everything is refused before a kernel
starts, by the checks of ``kdlab.lab`` and with the limits that the lesson hands to
``lab.start(globals(), temperature=(1, 20), dataset=("glyphs", "digits"))``.
"""

import ast
import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, get_args, get_origin

from kdlab.files import DATA, looks_like_path
from kdlab.lab import parameters as lab
from kdlab.words import check_known

WORDS = {"true": True, "false": False, "none": None, "null": None}
SCALARS = (str, int, float, bool)


@dataclass(frozen=True)
class Parameter:
    """One line ``name: type = default  # help`` of a parameters cell, with its limits."""

    name: str
    type: Any
    default: Any
    limits: Sequence[Any] | None = None


def read(notebook: Mapping[str, Any]) -> dict[str, Parameter]:
    """Return the parameters that a notebook declares, by name.

    Limits are those that ``lab.start`` checks again: the lesson's own, then the common ones.

    Raises:
        ValueError: a default is no literal.
    """
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    plain = {id(c): re.sub(r"^[%!].*", "", c["source"], flags=re.M) for c in code}
    limits = lab.STANDARD | read_limits(plain.values())
    found = {}
    for cell in code:
        tree = lab.parse(plain[id(cell)])
        if tree and "parameters" in cell["metadata"].get("tags", []):
            defaults = lab.defaults(tree)
            for name, node in lab.annotated(tree).items():
                kind = lab.type_of(node.annotation)
                found[name] = Parameter(name, kind, defaults[name], limits.get(name))
    return found


def read_limits(sources: Iterable[str]) -> dict[str, Sequence[Any]]:
    """Return the literal limits handed to ``start(globals(), ...)`` in these cells.

    What is not a literal is left to the lesson itself, which checks again when it starts.
    """
    limits: dict[str, Sequence[Any]] = {}
    for tree in filter(None, map(lab.parse, sources)):
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        for keyword in [keyword for call in calls if _is_start(call) for keyword in call.keywords]:
            with contextlib.suppress(ValueError):
                value = lab.literal(keyword.value)
                plain = isinstance(value, list | tuple) and all(type(v) in SCALARS for v in value)
                if keyword.arg and plain:
                    limits[keyword.arg] = value
    return limits


def _is_start(call: ast.Call) -> bool:
    """Say whether a call is ``start(globals(), ...)``, of whatever object."""
    name = getattr(call.func, "attr", getattr(call.func, "id", None))
    first = call.args[0] if call.args else None
    is_globals = isinstance(first, ast.Call) and getattr(first.func, "id", None) == "globals"
    return name == "start" and is_globals


def accept(
    declared: Mapping[str, Parameter], given: Mapping[str, str], *, is_text: bool = False
) -> dict[str, Any]:
    """Turn typed words into checked values; paths are full ones, seen from the working folder.

    Args:
        declared: the notebook's parameters, as :func:`read` gives them.
        given: name → what was typed after ``name=``.
        is_text: it was in quotes, and is taken as it is.

    Raises:
        ValueError: an unknown name (with the nearest one), a wrong type, a value out of limits, a
            path where nothing is.
    """
    values = {}
    for name, text in given.items():
        check_known("parameter", name, declared)
        parameter = declared[name]
        values[name] = text if is_text else _value(text, parameter.type)
        if isinstance(values[name], tuple) and not _is_list(parameter.type):
            raise ValueError(
                f"parameter: {name}={text} came, expected one value; "
                f"`kdlab sweep NOTEBOOK -g {name}={text}` runs the lesson with each"
            )
        lab.check_value(name, values[name], parameter.type, parameter.limits)
        values[name] = _seen_from_here(name, values[name])
    return values


def _seen_from_here(name: str, value: Any) -> Any:
    """Return a path, also one in a list, as a full one: kernels start in the lesson's folder.

    Raises:
        ValueError: there is no such data set, or nothing where it climbs to.
    """
    if isinstance(value, list | tuple):
        return type(value)(_seen_from_here(name, item) for item in value)
    is_path = isinstance(value, str) and looks_like_path(value)
    if not is_path and (name != DATA or not isinstance(value, str) or _is_known(value)):
        return value
    parts = PurePosixPath(value.replace("\\", "/")).parts
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        path = Path(value).expanduser()
        if path.exists() and set(parts) - {".."}:
            return str(path.resolve())
    if ".." in parts:
        raise ValueError(
            f"parameter {name} = {value!r} leaves its folder; expected a name, or the path of "
            f"something that is there, seen from {Path.cwd()}"
        )
    if name == DATA and is_path:
        raise ValueError(
            f"parameter {name} = {value!r}: there is no such file or folder, seen from {Path.cwd()}"
        )
    return value


def _is_known(name: str) -> bool:
    from kdlab import datasets

    return name in datasets.available()


def _is_list(kind: Any) -> bool:
    return any(get_origin(one) in (list, tuple) for one in (kind, *get_args(kind)))


def _value(text: str, kind: Any) -> Any:
    """Read what was typed as a value of the declared type, as far as it is one."""
    if kind is str:
        return text
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    kinds = get_args(kind) or (kind,)
    try:
        value = lab.literal(text)
    except ValueError:
        return text
    if str in kinds and not lab.fits(value, kind):
        return text
    whole = type(value) is int and float in kinds and int not in kinds
    return float(value) if whole else value
