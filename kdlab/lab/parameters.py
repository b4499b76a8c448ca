"""The parameters of a lesson: what its cell declares, what came, and whether that is allowed.

Types come from the annotations, defaults from the source of the parameters cell (in IPython's
history of inputs), ranges from ``lab.start``. ``kdlab run`` asks the same functions beforehand, of
notebooks that strangers wrote: nothing here evaluates what it reads.
"""

from __future__ import annotations

import ast
import functools
import numbers
import operator
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
TYPES: dict[str, Any] = {kind.__name__: kind for kind in (str, int, float, bool, list, tuple, dict)}
TYPES |= {"Any": Any, "None": None, "List": list, "Tuple": tuple, "Dict": dict}

NUMBERS = tuple(f"float('{word}')" for word in ("nan", "inf", "-inf"))  # as papermill writes them

EXAMPLE = """A lesson's first code cell, tagged `parameters`, looks like this:
    profile: str = "fast"      # fast or full
    seed: int = 0              # of everything random
    temperature: float = 4.0   # softens the teacher"""


def read(
    namespace: Mapping[str, Any], ranges: Mapping[str, Any], *, live: bool = False
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the checked values, and the defaults (None when the cell's source is not known).

    Args:
        namespace: of the notebook.
        ranges: as ``lab.start``.
        live: a person runs the cells, so that papermill set nothing.

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
    for name in [] if live else _injected(sources):
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
    span = len(allowed) == 2 and all(map(_is_number, allowed))
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
    if annotation is Any:
        return True
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


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def annotated(tree: ast.Module) -> dict[str, ast.AnnAssign]:
    """Return the statements ``name: type = default`` of a cell by name."""
    return {
        node.target.id: node
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def type_of(annotation: ast.expr | None) -> Any:
    """Return the type that an annotation names, without evaluating it.

    Names are those of ``TYPES``, alone, in brackets or joined by ``|``, ``Union`` or ``Optional``.
    Of all others it is Any, which fits every value.
    """
    try:
        match annotation:
            case ast.Constant(value=None):
                return None
            case ast.Constant(value=str(text)) if tree := parse(f"_: {text}"):
                return type_of(annotated(tree)["_"].annotation) if annotated(tree) else Any
            case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="typing"), attr=name):
                return TYPES.get(name, Any)
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return type_of(left) | type_of(right)
            case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name), slice=inside):
                several = inside.elts if isinstance(inside, ast.Tuple) else [inside]
                inner = [_item_type(item) for item in several]
                if name in ("Union", "Optional"):
                    more = [None] if name == "Optional" else []
                    return functools.reduce(operator.or_, [*inner, *more])
                if TYPES.get(name) in (list, tuple, dict):
                    return TYPES[name][tuple(inner)]
    except (TypeError, RecursionError):
        pass
    return Any


def _item_type(node: ast.expr) -> Any:
    is_dots = isinstance(node, ast.Constant) and node.value is ...
    return ... if is_dots else type_of(node)


def defaults(cell: ast.Module) -> dict[str, Any]:
    """Return name → default of a parameters cell.

    Raises:
        ValueError: a default that is no literal.
    """
    found = {}
    for name, node in annotated(cell).items():
        try:
            found[name] = literal(node.value) if node.value else None
        except ValueError:
            raise ValueError(
                f"the parameter {name} is computed in the parameters cell; expected a literal, "
                "because a rerun that changes what it depends on would leave it as it was"
            ) from None
    return found


def literal(node: ast.expr | str) -> Any:
    """Return the value of a literal.

    Raises:
        ValueError: it is no literal, or one that Python cannot make.
    """
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise ValueError("it is no literal") from None


def parse(source: str) -> ast.Module | None:
    """Return a cell's tree; None for one that is no plain Python (a magic, or one that failed)."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # also zeros, and deep nesting
        return None


def _parameters_cell(sources: Iterable[str]) -> ast.Module | None:
    """Return the first cell that annotates ``profile``: later edits of it are changes."""
    trees = filter(None, map(parse, sources))
    return next(filter(_declares, trees), None)


def _types(namespace: Mapping[str, Any], cell: ast.Module | None) -> dict[str, Any]:
    """Return name → type. Python 3.14 keeps them behind a function, and of one statement only."""
    found = {n: type_of(node.annotation) for n, node in annotated(cell).items()} if cell else {}
    if callable(annotate := namespace.get("__annotate__")):
        found.update(annotate(1))
    for name, kind in (namespace.get("__annotations__") or {}).items():
        # with `from __future__ import annotations` they are texts
        found[name] = type_of(ast.Constant(kind)) if isinstance(kind, str) else kind
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


def _injected(sources: list[str]) -> list[str]:
    """Return the names that papermill set; of those nobody declared it only warns.

    Its cell stands right behind the parameters cell and holds nothing but literals: a cell of the
    learner's own that begins in the same way stands elsewhere.
    """
    trees = [parse(source) for source in sources]
    cells = zip(trees, sources[1:], trees[1:], strict=False)
    behind = ((source, tree) for first, source, tree in cells if first and _declares(first))
    source, tree = next(behind, ("", None))
    if not source.startswith("# Parameters\n") or not tree or not all(map(_is_set, tree.body)):
        return []
    names = [ast.unparse(node.targets[0]) for node in tree.body if isinstance(node, ast.Assign)]
    return [name for name in names if not name.startswith("PAPERMILL_")]


def _declares(tree: ast.Module) -> bool:
    """Say whether this is a parameters cell: every lesson has a profile."""
    return "profile" in annotated(tree)


def _is_set(node: ast.stmt) -> bool:
    """Say whether a statement is ``name = value`` as papermill writes it, with float('nan')."""
    if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
        return False
    calls = [n for n in ast.walk(node.value) if isinstance(n, ast.Call | ast.Name | ast.Attribute)]
    return all(ast.unparse(call) in ("float", *NUMBERS) for call in calls)
