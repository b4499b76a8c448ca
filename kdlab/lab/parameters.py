"""The parameters of a lesson: what its cell declares, what came, and whether that is allowed.

Types come from the annotations, defaults from the source of the parameters cell (in IPython's
history of inputs), ranges from ``lab.start``.
"""

from __future__ import annotations

import ast
import difflib
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Union, get_args, get_origin

STANDARD: dict[str, Any] = {
    "profile": ("fast", "full"),
    "seed": (0, 2**31 - 1),
    "device": ("auto", "cpu", "cuda", "mps"),
}
OPTIONAL = frozenset({"device"})

EXAMPLE = """A lesson's first code cell, tagged `parameters`, looks like this:
    profile: str = "fast"      # fast or full
    seed: int = 0              # of everything random
    temperature: float = 4.0   # softens the teacher"""


def read(
    namespace: Mapping[str, Any], ranges: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the checked values, and the defaults (None when the cell's source is not known).

    Raises:
        ValueError: as ``lab.start``.
    """
    sources = [source for source in namespace.get("In") or [] if isinstance(source, str)]
    cell = _parameters_cell(sources)
    annotations = _annotations(namespace, cell)
    if not annotations:
        raise ValueError(f"this notebook declares no parameters. {EXAMPLE}")
    known = {**STANDARD, **ranges}
    for name in [n for n in OPTIONAL if n not in annotations and n not in namespace]:
        del known[name]
    _check_declared(known, annotations, namespace, cell)
    _check_injected(sources, known)
    for name, allowed in known.items():
        _check_value(name, namespace[name], annotations.get(name), allowed)
    return {name: namespace[name] for name in known}, _defaults(cell)


def meant(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the nearest known name, "" when none is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _parameters_cell(sources: Iterable[str]) -> ast.Module | None:
    """Return the first cell that annotates ``profile``: later edits of it are changes."""
    for source in sources:
        tree = _parse(source)
        if tree and "profile" in {name for name, _ in _annotated(tree)}:
            return tree
    return None


def _annotations(namespace: Mapping[str, Any], cell: ast.Module | None) -> dict[str, Any]:
    """Return name → type. Python 3.14 keeps them behind a function, and of one statement only."""
    found: dict[str, Any] = {}
    for name, node in _annotated(cell) if cell else ():
        try:
            found[name] = eval(ast.unparse(node.annotation), dict(namespace))
        except Exception:  # an annotation nobody can evaluate checks nothing
            found[name] = Any
    if callable(annotate := namespace.get("__annotate__")):
        found.update(annotate(1))
    found.update(namespace.get("__annotations__") or {})
    return found


def _annotated(tree: ast.Module) -> list[tuple[str, ast.AnnAssign]]:
    return [
        (node.target.id, node)
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]


def _defaults(cell: ast.Module | None) -> dict[str, Any] | None:
    """Return name → default of the parameters cell, None if that cell is not known."""
    if cell is None:
        return None
    found = {}
    for name, node in _annotated(cell):
        try:
            found[name] = ast.literal_eval(node.value) if node.value else None
        except ValueError as error:
            raise ValueError(
                f"the parameter {name} is computed in the parameters cell; expected a literal, "
                "because a rerun that changes what it depends on would leave it as it was"
            ) from error
    return found


def _check_declared(
    known: Mapping[str, Any],
    annotations: Mapping[str, Any],
    namespace: Mapping[str, Any],
    cell: ast.Module | None,
) -> None:
    # from Python 3.14 on, without the cell's source, a missing annotation says nothing
    lazy = sys.version_info >= (3, 14) and cell is None
    for name in known:
        if name not in namespace or (name not in annotations and not lazy):
            raise ValueError(
                f"the parameter {name} is not declared in the parameters cell"
                f"{meant(name, annotations)}. {EXAMPLE}"
            )
    for name, _ in _annotated(cell) if cell else ():
        if name not in known:
            raise ValueError(
                f"the parameter {name} has no range; pass lab.start(globals(), {name}=...): "
                "(low, high), choices, or None"
            )


def _check_injected(sources: Iterable[str], known: Mapping[str, Any]) -> None:
    """Refuse names that papermill set and nobody declared; papermill itself only warns."""
    for source in sources:
        tree = _parse(source) if source.lstrip().startswith("# Parameters") else None
        for node in tree.body if tree else ():
            for target in node.targets if isinstance(node, ast.Assign) else ():
                if isinstance(target, ast.Name) and target.id not in known:
                    raise ValueError(
                        f"unknown parameter {target.id!r}{meant(target.id, known)}; "
                        f"this lesson has: {', '.join(known)}"
                    )


def _check_value(name: str, value: Any, annotation: Any, allowed: Any) -> None:
    """Raise if a value has the wrong type or is not allowed."""
    if not _fits(value, annotation):
        shown = getattr(annotation, "__name__", None) if isinstance(annotation, type) else None
        raise ValueError(
            f"parameter {name} = {value!r} is a {type(value).__name__}; "
            f"expected {shown or annotation}"
        )
    if allowed is None:
        return
    span = len(allowed) == 2 and not any(isinstance(end, str | bool) for end in allowed)
    for item in value if isinstance(value, list | tuple) else [value]:
        if span:
            if not isinstance(item, int | float) or not allowed[0] <= item <= allowed[1]:
                raise ValueError(
                    f"parameter {name} = {value!r} is out of range; "
                    f"expected {allowed[0]} to {allowed[1]}"
                )
        elif item not in allowed:
            raise ValueError(
                f"parameter {name} = {value!r} is not allowed"
                f"{meant(str(item), map(str, allowed))}; "
                f"expected one of {', '.join(map(str, allowed))}"
            )


def _fits(value: Any, annotation: Any) -> bool:
    """Say whether a value has the annotated type; an int is a float, a bool is not an int."""
    names: dict[Any, Any] = {"int": int, "float": float, "str": str, "bool": bool, "list": list}
    annotation = names.get(annotation, annotation) if isinstance(annotation, str) else annotation
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Union or type(annotation).__name__ == "UnionType":
        return any(_fits(value, argument) for argument in arguments)
    if annotation is None or annotation is type(None):
        return value is None or annotation is None
    if origin in (list, tuple):
        # papermill injects every sequence as a list
        inner = [argument for argument in arguments if argument is not ...]
        return isinstance(value, list | tuple) and all(
            any(_fits(item, argument) for argument in inner) for item in value
        )
    if annotation in (int, float):
        kinds = (int,) if annotation is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)
    if annotation in (list, tuple):
        return isinstance(value, list | tuple)
    return isinstance(value, annotation) if isinstance(annotation, type) else True


def _parse(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except SyntaxError:  # a cell that failed is in the history too
        return None
