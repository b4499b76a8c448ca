"""Hand-outs: lessons without solutions and instructor's notes, for Jupyter or for nbgrader.

What goes is said by cell tags, ``solution`` and ``instructor``; nothing is edited by hand. Where a
later cell needs what an exercise asks for, a line lets the package's own function stand in until
the learner's is right: a hand-out runs from top to bottom, unsolved.
"""

from __future__ import annotations

import ast
import re
import symtable
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell

from kdlab.files import atomic_write
from kdlab.lab.parameters import parse
from kdlab.lab.progress import judged

REMOVED = {"solution", "instructor"}
STAND_IN = "stand-in-"  # how the names of cells begin that a hand-out adds
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
LINK = re.compile(r"\[([^\]]*)\]\(([^)#:\s]+\.ipynb)(?:#[^)]*)?\)")
START = re.compile(r"\bstart\(\s*globals\(\)")
CONFIG = '''\
"""nbgrader's settings for the lessons of kdlab."""

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "kdlab"
# each exercise keeps its own placeholder, and solutions follow it
c.ClearSolutions.code_stub = {"python": "# replace the ... above, then run the next cell"}
c.Execute.timeout = 600  # seconds for one cell; lessons train networks
'''


def write(
    lessons: Sequence[Path], folder: Path, *, nbgrader: bool = False, force: bool = False
) -> list[Path]:
    """Write the hand-out of these lessons and return the files.

    Args:
        lessons: the notebooks with solutions; they are not changed.
        folder: gets one notebook for each lesson; with ``nbgrader`` the ``source`` folder of a
            course, one assignment for each lesson that has exercises, and its settings.
        nbgrader: keep the solutions, marked so that nbgrader takes them out and grades.
        force: overwrite notebooks, which may hold a learner's work.

    Raises:
        ValueError: ``folder`` is where the lessons are or has other notebooks of these names; a
            lesson breaks a rule that hand-outs need; hand-out and course would lie in one folder.
    """
    if any(folder.resolve() == lesson.resolve().parent for lesson in lessons):
        raise ValueError(f"folder: {folder} holds the lessons themselves; choose another")
    if (folder / "source").is_dir() if not nbgrader else any(folder.glob("*.ipynb")):
        kind = "a hand-out" if nbgrader else "a course of nbgrader, with solutions"
        raise ValueError(f"folder: {folder} holds {kind}; choose another, so that they stay apart")
    files = {folder / name: text for name, text in prepare(lessons, nbgrader=nbgrader).items()}
    there = [p.name for p, text in files.items() if p.exists() and p.read_text("utf-8") != text]
    if there and not force:
        raise ValueError(f"folder: {folder} has other {', '.join(there)}; --force overwrites them")
    for path, text in files.items():
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return list(files)


def prepare(lessons: Sequence[Path], *, nbgrader: bool = False) -> dict[str, str]:
    """Return the files of a hand-out, path to content, as :func:`write` writes them.

    Raises:
        ValueError: a lesson breaks a rule that hand-outs need; none has exercises for nbgrader.
    """
    from kdlab.cli.runs import read_notebook

    files = {}
    for lesson in lessons:
        notebook = nbformat.from_dict(read_notebook(lesson))
        for number, cell in enumerate(notebook.cells):
            cell.setdefault("id", f"cell-{number:02d}")
        if nbgrader and not any("exercise" in _tags(cell) for cell in notebook.cells):
            continue
        folder = f"source/{lesson.stem}/" if nbgrader else ""
        beside = [lesson.name] if nbgrader else [path.name for path in lessons]
        try:
            made = for_nbgrader(notebook) if nbgrader else hand_out(notebook)
        except (ValueError, nbformat.ValidationError) as error:
            raise ValueError(f"{lesson.name}: {error}") from None
        files[folder + lesson.name] = nbformat.writes(unlink(made, beside)).rstrip("\n") + "\n"
    if nbgrader and not files:
        raise ValueError("lessons: none of these has an exercise, which nbgrader needs")
    return files | ({"nbgrader_config.py": CONFIG} if nbgrader else {})


def linked(lessons: Sequence[Path]) -> dict[str, str]:
    """Return whole lessons, name to content; links to lessons that are not among them are words."""
    names = [path.name for path in lessons]
    from kdlab.cli.runs import read_notebook

    read = {path.name: nbformat.from_dict(read_notebook(path)) for path in lessons}
    return {name: nbformat.writes(unlink(made, names)) + "\n" for name, made in read.items()}


def hand_out(notebook: Any) -> Any:
    """Return a lesson without solutions, notes and outputs, which runs as it is.

    Raises:
        ValueError: an exercise has no placeholder, a cell needs what only a solution defines, or
            the notebook is a hand-out already.
    """
    if any(cell.id.startswith(STAND_IN) for cell in notebook.cells):
        raise ValueError("it is a hand-out already")
    stay = [cell for cell in notebook.cells if not REMOVED & _tags(cell)]
    _check_names(stay, [cell for cell in notebook.cells if "solution" in _tags(cell)])
    cells = []
    for number, cell in enumerate(stay):
        cells.append(_cleared(cell))
        if "exercise" in _tags(cell):
            if not _has_placeholder(cell):
                raise ValueError(f"the exercise {_name(cell)} has no placeholder ...")
            cells += _stand_ins(cell, stay[number + 1 :])
    return _with_cells(notebook, cells)


def for_nbgrader(notebook: Any) -> Any:
    """Return a lesson as nbgrader's instructor version: generate_assignment makes the student's.

    The cell of an answer holds the placeholder and, between nbgrader's marks, the solution. The
    next cell is graded: it asks the same check as the lesson, for one point.

    Raises:
        ValueError: as :func:`hand_out`; or an exercise without ``lab.check`` or solution.
    """
    plain = hand_out(notebook)
    cells = []
    for cell in plain.cells:
        cells.append(cell)
        if "exercise" in _tags(cell):
            solution = _solution_of(notebook, cell)
            asked = _answers(cell)
            if not asked or not solution:
                raise ValueError(f"the exercise {_name(cell)} has no lab.check, or no solution")
            exercise = _without_checks(cell.source, asked)
            cell.source = f"{exercise}\n\n{BEGIN}\n{_without_checks(solution, asked)}\n{END}"
            cell.metadata["nbgrader"] = _role(cell.id, solution=True)
            for number, (name, variable) in enumerate(asked.items(), 1):
                ending = f"-{number}" if number > 1 else ""
                line = f"lab.points({_quoted(name)}, {variable})"
                graded = new_code_cell(line, id=f"points-{cell.id}{ending}"[:64])
                graded.metadata["nbgrader"] = _role(graded.id, grade=True, locked=True, points=1)
                cells.append(graded)
        elif "parameters" in _tags(cell) or START.search(cell.source):
            cell.metadata["nbgrader"] = _role(cell.id, locked=True)
    return _with_cells(plain, cells)


def unlink(notebook: Any, there: Iterable[str]) -> Any:
    """Turn links to lessons that are not handed out into plain words; return the notebook."""
    known = set(there)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(lambda m: m[0] if m[2] in known else m[1], cell.source)
    return notebook


def defined(source: str) -> set[str]:
    """Return the names that a cell binds at its top level."""
    table = _names(source)
    return {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}


def needed(source: str) -> set[str]:
    """Return the names that a cell takes from the notebook (or from Python itself)."""
    top = _names(source)
    found = {s.get_name() for s in top.get_symbols() if s.is_referenced()}
    waiting = list(top.get_children())
    while waiting:
        scope = waiting.pop()
        waiting += scope.get_children()
        found |= {s.get_name() for s in scope.get_symbols() if s.is_global()}
    return found - defined(source)


def _stand_ins(cell: Any, later: Sequence[Any]) -> list[Any]:
    """Return a cell that lets a later one run before the exercise is solved; empty if none does."""
    wanted = set().union(*(needed(c.source) for c in _code(later) if "exercise" not in _tags(c)))
    lines = []
    for name, call in judged(parse(cell.source) or ast.Module([], [])):
        answer = ast.unparse(call.args[1])
        if answer in wanted & defined(cell.source):
            lines += [
                f"# {answer} is needed below: yours, as soon as it is right",
                f"{answer} = lab.stand_in({_quoted(name)}, {answer})",
            ]
    return [new_code_cell("\n".join(lines), id=f"{STAND_IN}{cell.id}"[:64])] if lines else []


def _check_names(stay: Sequence[Any], solutions: Sequence[Any]) -> None:
    """Raise ValueError if a cell that stays needs a name that only a solution binds."""
    gone: set[str] = set().union(*(defined(cell.source) for cell in _code(solutions)))
    gone -= set().union(*(defined(cell.source) for cell in _code(stay)))
    for cell in _code(stay):
        if lost := sorted(needed(cell.source) & gone):
            raise ValueError(
                f"{_name(cell)} needs {', '.join(lost)}, which only a solution defines"
            )


def _solution_of(notebook: Any, exercise: Any) -> str:
    """Return the code tagged ``solution`` between an exercise and the next one."""
    position = next(n for n, cell in enumerate(notebook.cells) if cell.id == exercise.id)
    found = []
    for cell in _code(notebook.cells[position + 1 :]):
        if "exercise" in _tags(cell):
            break
        if "solution" in _tags(cell):
            found.append(cell.source)
    return "\n\n".join(found)


def _answers(cell: Any) -> dict[str, str]:
    """Return for each exercise of a cell the variable that holds its answer."""
    found = {}
    for name, call in judged(parse(cell.source) or ast.Module([], [])):
        answer = call.args[1]
        slug = re.sub(r"\W+", "_", name).strip("_").lower()
        found[name] = answer.id if isinstance(answer, ast.Name) else f"answer_{slug}"
    return found


def _without_checks(source: str, variables: dict[str, str]) -> str:
    """Replace each ``lab.check("name", answer)`` by ``variable = answer``, or by nothing."""
    lines = source.splitlines()
    for name, call in reversed(judged(ast.parse(source))):
        answer = ast.get_source_segment(source, call.args[1])
        variable = variables[name]
        new = [] if answer == variable else [f"{variable} = {answer}"]
        lines[call.lineno - 1 : call.end_lineno] = new
    return "\n".join(lines).rstrip()


def _role(name: str, **roles: Any) -> dict[str, Any]:
    """Return nbgrader's metadata of a cell (its schema 3)."""
    plain = {"grade": False, "locked": False, "solution": False, "task": False}
    return {"schema_version": 3, "grade_id": name} | plain | roles


def _cleared(cell: Any) -> Any:
    """Return a copy of a cell without outputs and without what only a run or solution left."""
    fresh = nbformat.from_dict(dict(cell))
    for key in ("execution", "collapsed"):
        fresh.metadata.pop(key, None)
    if cell.cell_type == "code":
        fresh.outputs, fresh.execution_count = [], None
    return fresh


def _with_cells(notebook: Any, cells: Sequence[Any]) -> Any:
    metadata = {k: v for k, v in notebook.metadata.items() if k in ("kernelspec", "language_info")}
    made = nbformat.v4.new_notebook(cells=list(cells), metadata=metadata)
    nbformat.validate(made)
    return made


def _has_placeholder(cell: Any) -> bool:
    tree = parse(_python(cell.source)) or ast.Module([], [])
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return any(node.value is ... for node in constants)


def _tags(cell: Any) -> set[str]:
    return set(cell.metadata.get("tags", []))


def _code(cells: Iterable[Any]) -> list[Any]:
    return [cell for cell in cells if cell.cell_type == "code"]


def _name(cell: Any) -> str:
    return f"cell {cell.get('id', '')!r}"


def _quoted(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _names(source: str) -> symtable.SymbolTable:
    """Return what a cell does with names.

    Raises:
        ValueError: it is no Python.
    """
    try:
        return symtable.symtable(_python(source), "cell", "exec")
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"a cell is no Python ({error}): {source[:60]!r}") from None


def _python(source: str) -> str:
    """Return the source without lines for IPython or the shell."""
    return re.sub(r"^\s*[%!].*", "", source, flags=re.M)
