"""The part of a lesson that its explorers need: a browser test has to wait for nothing else."""

import ast
import copy
import symtable
from collections.abc import Iterator

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell


def shortened(notebook: NotebookNode, **parameters) -> NotebookNode:
    """Copy a lesson up to where it drives its last explorer, without studies.

    A study changes none of its arguments, so that a statement which reads nothing that a study
    returned cannot miss it. If an explorer would, all studies stay.

    Args:
        notebook: the lesson; it is not changed.
        parameters: other values, given as papermill gives them.
    """
    result = copy.deepcopy(notebook)
    made, used = explorers([cell.source if is_code(cell) else "" for cell in result.cells])
    if used:
        result.cells = result.cells[: used[-1] + 1]
    sources = without_studies([cell.source if is_code(cell) else "" for cell in result.cells])
    if all("Explorer(" in sources[n] for n in made):
        for cell, source in zip(result.cells, sources, strict=True):
            cell.source = source if is_code(cell) else cell.source
    if parameters:
        tags = [cell.metadata.get("tags", []) for cell in result.cells]
        place = next(n for n, tag in enumerate(tags) if "parameters" in tag) + 1
        source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
        result.cells.insert(place, new_code_cell(source, id="other-parameters"))
    return result


def is_code(cell: NotebookNode) -> bool:
    return cell.cell_type == "code"


def explorers(sources: list[str]) -> tuple[list[int], list[int]]:
    """Numbers of the cells that make an explorer, and of those that make or use one."""
    made, used = [], []
    known: set[str] = set()
    for number, source in enumerate(sources):
        for statement in ast.parse(source).body:
            read, bound = names(statement)
            if any(name.endswith("Explorer") for name in called(statement)):
                known |= bound
                made.append(number)
            if number in made or read & known:
                used.append(number)
    return made, used


def without_studies(sources: list[str]) -> list[str]:
    """Sources without the statements that train a study or read what is then missing."""
    missing: set[str] = set()
    result = []
    for source in sources:
        kept = []
        for statement in ast.parse(source).body:
            read, bound = names(statement)
            if "study" in called(statement) or read & missing:
                missing |= bound
            else:
                missing -= bound
                kept.append(ast.unparse(statement))
        whole = len(kept) == len(ast.parse(source).body)
        result.append(source if whole else "\n".join(kept))
    return result


def called(tree: ast.AST) -> set[str]:
    """The last names of all that is called."""
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in calls}


def names(statement: ast.stmt) -> tuple[set[str], set[str]]:
    """The global names that a statement reads, inside functions too, and those that it binds."""
    top = symtable.symtable(ast.unparse(statement), "cell", "exec")
    symbols = [symbol for table in scopes(top) for symbol in table.get_symbols()]
    read = {s.get_name() for s in symbols if s.is_global() and s.is_referenced()}
    grown = (node.target for node in ast.walk(statement) if isinstance(node, ast.AugAssign))
    read |= {target.id for target in grown if isinstance(target, ast.Name)}
    return read, {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}


def scopes(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    """A scope and all within it."""
    yield table
    for inner in table.get_children():
        yield from scopes(inner)
