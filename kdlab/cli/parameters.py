"""What a lesson lets you change: read from its source, and held against what was typed.

Papermill only logs an unknown parameter and runs on. Here everything is refused before a kernel
starts: unknown names, wrong types, values outside the limits that the lesson hands to
``lab.start(globals(), temperature=(1, 20), dataset=("glyphs", "digits"))``.
"""

import ast
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TYPES: dict[str, Callable[[Any], bool]] = {
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, float | int) and not isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "list": lambda value: isinstance(value, list),
    "tuple": lambda value: isinstance(value, tuple | list),
    "None": lambda value: value is None,
}
WORDS = {"true": True, "false": False, "none": None, "null": None}


@dataclass(frozen=True)
class Parameter:
    """One line ``name: type = default  # help`` of a parameters cell, with its limits."""

    name: str
    type: str
    default: Any
    limits: Sequence[Any] | None = None

    @property
    def is_range(self) -> bool:
        """Whether ``limits`` are a lowest and a highest number rather than the allowed values."""
        limits = self.limits or ()
        return len(limits) == 2 and all(map(TYPES["float"], limits))

    def describe(self) -> str:
        """Return type, limits and default in one phrase."""
        text = f"{self.type}, default {self.default!r}"
        if self.is_range and self.limits:
            return f"{text}, from {self.limits[0]} to {self.limits[1]}"
        return f"{text}, one of {', '.join(map(repr, self.limits))}" if self.limits else text


def read(notebook: Mapping[str, Any]) -> dict[str, Parameter]:
    """Return the parameters that a notebook declares, by name.

    Limits are those that ``lab.start`` checks again: the lesson's own, then the common ones.

    Raises:
        ValueError: a line of the parameters cell is not ``name: type = literal``.
    """
    from kdlab.lab.parameters import STANDARD

    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    tagged = [c for c in code if "parameters" in c["metadata"].get("tags", [])]
    limits = STANDARD | read_limits(_without_magics(cell["source"]) for cell in code)
    found = [p for cell in tagged for p in read_cell(cell["source"])]
    return {p.name: Parameter(p.name, p.type, p.default, limits.get(p.name)) for p in found}


def read_cell(source: str) -> Iterator[Parameter]:
    """Yield the parameters of one cell's source, in order.

    Raises:
        ValueError: a line is not ``name: type = literal  # help``.
    """
    lines = source.splitlines()
    for node in ast.parse(source).body:
        try:
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                raise TypeError
            default = ast.literal_eval(node.value)  # type: ignore[arg-type]  # None raises too
        except (TypeError, ValueError):
            raise ValueError(
                f"parameters cell, line {node.lineno}: {lines[node.lineno - 1].strip()!r} came, "
                "expected `name: type = literal  # help`"
            ) from None
        yield Parameter(node.target.id, ast.unparse(node.annotation), default)


def read_limits(sources: Iterator[str]) -> dict[str, Sequence[Any]]:
    """Return the literal limits handed to ``start(globals(), ...)`` in these cells.

    Two numbers are a range, both ends allowed; anything else lists the allowed values.
    What is not a literal is left to the lesson itself, which checks again when it starts.
    """
    limits: dict[str, Sequence[Any]] = {}
    for source in sources:
        for call in filter(_is_start, _walk(source)):
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
        if name not in declared:
            near = difflib.get_close_matches(name, declared, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            known = ", ".join(declared) or "none (no cell is tagged `parameters`)"
            raise ValueError(f"unknown parameter {name!r}{hint}; this lesson has: {known}")
        values[name] = convert(declared[name], text)
    return values


def convert(parameter: Parameter, text: str) -> Any:
    """Read ``text`` as the parameter's type and hold it against the limits.

    Raises:
        ValueError: the text is no value of that type, or lies outside the limits.
    """
    kinds = [kind.strip() for kind in parameter.type.split("|")]
    value = _read_value(text, kinds)
    if not any(_fits(value, kind) for kind in kinds):
        raise ValueError(f"{parameter.name}={text}: expected {parameter.describe()}")
    if "float" in kinds and TYPES["int"](value) and "int" not in kinds:
        value = float(value)
    if parameter.limits and not _within(value, parameter):
        raise ValueError(f"{parameter.name}={text}: out of range, expected {parameter.describe()}")
    return value


def _read_value(text: str, kinds: list[str]) -> Any:
    if text.lower() in WORDS and kinds != ["str"]:
        return WORDS[text.lower()]
    if "str" in kinds and len(kinds) == 1:
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _fits(value: Any, kind: str) -> bool:
    outer, _, inner = kind.partition("[")
    if outer not in TYPES:
        return True  # a type that only the lesson itself knows
    items = [
        part.strip() for part in inner.rstrip("]").split(",") if part.strip() not in ("", "...")
    ]
    return TYPES[outer](value) and (
        not items or all(any(_fits(entry, item) for item in items) for entry in value)
    )


def _within(value: Any, parameter: Parameter) -> bool:
    limits = parameter.limits or ()
    items = value if isinstance(value, list | tuple) else [value]
    if not parameter.is_range:
        return all(item in limits for item in items)
    return all(TYPES["float"](item) and limits[0] <= item <= limits[1] for item in items)


def _without_magics(source: str) -> str:
    return "\n".join(x for x in source.splitlines() if not x.startswith(("%", "!")))


def _walk(source: str) -> Iterator[ast.Call]:
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _is_start(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    first = call.args[0] if call.args else None
    called = isinstance(first, ast.Call) and getattr(first.func, "id", "") == "globals"
    return name == "start" and called
