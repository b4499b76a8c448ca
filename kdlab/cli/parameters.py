"""What a lesson lets you change: read from its source, and held against what was typed.

Papermill only logs an unknown parameter and runs on. Here everything is refused before a kernel
starts, by the checks of ``kdlab.lab`` and with the limits that the lesson hands to
``lab.start(globals(), temperature=(1, 20), dataset=("glyphs", "digits"))``.
"""

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from kdlab.lab import parameters as lab
from kdlab.words import check_known

WORDS = {"true": True, "false": False, "none": None, "null": None}
START = re.compile(r"(?:\w+\.)*start\(globals\(\)")


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
                kind = lab.type_of(node, {})
                found[name] = Parameter(name, kind, defaults[name], limits.get(name))
    return found


def read_limits(sources: Iterable[str]) -> dict[str, Sequence[Any]]:
    """Return the literal limits handed to ``start(globals(), ...)`` in these cells.

    What is not a literal is left to the lesson itself, which checks again when it starts.
    """
    limits: dict[str, Sequence[Any]] = {}
    for tree in filter(None, map(lab.parse, sources)):
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        for call in [call for call in calls if START.match(ast.unparse(call))]:
            for keyword in call.keywords:
                try:
                    value = ast.literal_eval(keyword.value)
                except ValueError:
                    continue
                if keyword.arg and isinstance(value, list | tuple):
                    limits[keyword.arg] = value
    return limits


def accept(declared: Mapping[str, Parameter], given: Mapping[str, str]) -> dict[str, Any]:
    """Turn typed words into checked values.

    Args:
        declared: the notebook's parameters, as :func:`read` gives them.
        given: name → what was typed after ``name=``.

    Raises:
        ValueError: an unknown name (with the nearest one), a wrong type, a value out of limits.
    """
    values = {}
    for name, text in given.items():
        check_known("parameter", name, declared)
        parameter = declared[name]
        values[name] = _value(text, parameter.type)
        if isinstance(values[name], tuple) and not _is_list(parameter.type):
            raise ValueError(
                f"parameter: {name}={text} came, expected one value; "
                f"`kdlab sweep NOTEBOOK -g {name}={text}` runs the lesson with each"
            )
        lab.check_value(name, values[name], parameter.type, parameter.limits)
    return values


def _is_list(kind: Any) -> bool:
    return any(get_origin(one) in (list, tuple) for one in (kind, *get_args(kind)))


def _value(text: str, kind: Any) -> Any:
    """Read what was typed as a value of the declared type, as far as it is one."""
    if kind is str:
        return text
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    kinds = get_args(kind) or (kind,)
    whole = type(value) is int and float in kinds and int not in kinds
    return float(value) if whole else value
