"""The parameters of a lesson: what its cell declares, what came, and whether that is allowed.

Types come from the annotations, defaults from the source of the parameters cell (in IPython's
history of inputs), ranges from ``lab.start``. ``kdlab run`` asks the same functions beforehand.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Union, get_args, get_origin

from kdlab.words import check_known, nearest

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
    types = _types(namespace, cell)
    if not types:
        raise ValueError(f"this notebook declares no parameters. {EXAMPLE}")
    known = {**STANDARD, **ranges}
    for name in [n for n in OPTIONAL if n not in types and n not in namespace]:
        del known[name]
    _check_declared(known, types, namespace, cell)
    for name in _injected(sources):
        check_known("parameter", name, known)
    for name, allowed in known.items():
        check_value(name, namespace[name], types.get(name, Any), allowed)
    return {name: namespace[name] for name in known}, defaults(cell) if cell else None


def check_value(name: str, value: Any, annotation: Any, allowed: Any) -> None:
    """Raise ValueError if a value has the wrong type, or is not ``allowed`` (as in ``start``)."""
    if not fits(value, annotation):
        expected = annotation.__name__ if type(annotation) is type else annotation
        raise ValueError(
            f"parameter {name} = {value!r} is a {type(value).__name__}; expected {expected}"
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
                f"parameter {name} = {value!r} is not allowed{nearest(item, map(str, allowed))}; "
                f"expected one of {', '.join(map(str, allowed))}"
            )


def fits(value: Any, annotation: Any) -> bool:
    """Say whether a value has the annotated type; an int is a float, a bool is no number."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Union or type(annotation).__name__ == "UnionType":
        return any(fits(value, argument) for argument in arguments)
    if annotation is None:
        return value is None
    if list in (origin, annotation) or tuple in (origin, annotation):
        # papermill injects every sequence as a list
        inner = [argument for argument in arguments if argument is not ...] or [Any]
        return isinstance(value, list | tuple) and all(
            any(fits(item, argument) for argument in inner) for item in value
        )
    if annotation in (int, float):
        kinds = (int,) if annotation is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)
    return isinstance(value, annotation) if isinstance(annotation, type) else True


def annotated(tree: ast.Module) -> dict[str, ast.AnnAssign]:
    """Return the statements ``name: type = default`` of a cell by name."""
    return {
        node.target.id: node
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def type_of(node: ast.AnnAssign, namespace: Mapping[str, Any]) -> Any:
    """Return the type that a statement declares; Any, which fits all, where that fails."""
    try:
        return eval(ast.unparse(node.annotation), dict(namespace))
    except Exception:
        return Any


def defaults(cell: ast.Module) -> dict[str, Any]:
    """Return name → default of a parameters cell.

    Raises:
        ValueError: a default that is no literal.
    """
    found = {}
    for name, node in annotated(cell).items():
        try:
            found[name] = ast.literal_eval(node.value) if node.value else None
        except ValueError as error:
            raise ValueError(
                f"the parameter {name} is computed in the parameters cell; expected a literal, "
                "because a rerun that changes what it depends on would leave it as it was"
            ) from error
    return found


def parse(source: str) -> ast.Module | None:
    """Return a cell's tree; None for one that is no plain Python (a magic, or one that failed)."""
    try:
        return ast.parse(source)
    except SyntaxError:
        return None


def _parameters_cell(sources: Iterable[str]) -> ast.Module | None:
    """Return the first cell that annotates ``profile``: later edits of it are changes."""
    trees = filter(None, map(parse, sources))
    return next((tree for tree in trees if "profile" in annotated(tree)), None)


def _types(namespace: Mapping[str, Any], cell: ast.Module | None) -> dict[str, Any]:
    """Return name → type. Python 3.14 keeps them behind a function, and of one statement only."""
    found = {n: type_of(node, namespace) for n, node in annotated(cell).items()} if cell else {}
    if callable(annotate := namespace.get("__annotate__")):
        found.update(annotate(1))
    for name, kind in (namespace.get("__annotations__") or {}).items():
        # with `from __future__ import annotations` they are texts
        node = ast.parse(f"_: {kind}").body[0] if isinstance(kind, str) else None
        found[name] = type_of(node, namespace) if isinstance(node, ast.AnnAssign) else kind
    return found


def _check_declared(
    known: Mapping[str, Any],
    types: Mapping[str, Any],
    namespace: Mapping[str, Any],
    cell: ast.Module | None,
) -> None:
    # from Python 3.14 on, without the cell's source, a missing annotation says nothing
    lazy = sys.version_info >= (3, 14) and cell is None
    for name in known:
        if name not in namespace or (name not in types and not lazy):
            raise ValueError(
                f"the parameter {name} is not declared in the parameters cell"
                f"{nearest(name, types)}. {EXAMPLE}"
            )
    for name in annotated(cell) if cell else ():
        if name not in known:
            raise ValueError(
                f"the parameter {name} has no range; pass lab.start(globals(), {name}=...): "
                "(low, high), choices, or None"
            )


def _injected(sources: Iterable[str]) -> list[str]:
    """Return the names that papermill set; of those nobody declared it only warns."""
    trees = [parse(source) for source in sources if source.lstrip().startswith("# Parameters")]
    nodes = [node for tree in trees if tree for node in tree.body if isinstance(node, ast.Assign)]
    return [t.id for node in nodes for t in node.targets if isinstance(t, ast.Name)]
