"""Run a lesson through papermill, and say plainly where it failed."""

import contextlib
import itertools
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat

from kdlab.files import short_hash

ANSI = re.compile(r"\x1b\[[0-9;]*m")


class LessonFailed(Exception):
    """A cell raised, took too long, or the kernel died; the message says which and why.

    Attributes:
        reason: the same in one line.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def find_lesson(name: str | Path, folder: Path = Path("notebooks")) -> Path:
    """Return the notebook at this path, or the one lesson of ``folder`` whose name starts so.

    Raises:
        ValueError: there is none, or several fit.
    """
    path = Path(name)
    if path.is_file():
        return path
    fitting = sorted(folder.glob(f"{path.name.removesuffix('.ipynb')}*.ipynb"))
    # 01 is lesson 01, even where there is a 01b
    fitting = [p for p in fitting if p.stem.split("_")[0] == path.name] or fitting
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(p.stem for p in fitting or sorted(folder.glob("*.ipynb")))
    what = "several fit" if fitting else "no such notebook"
    advice = f"one of: {known}" if known else f"run from the project's folder ({folder}/ has none)"
    raise ValueError(f"notebook: {str(name)!r} came, {what}; give a path or {advice}")


def run_name(lesson: Path, values: Mapping[str, Any]) -> str:
    """Return a folder name that tells runs with other parameters apart, by a hash of them."""
    parts = [f"{key}-{value}" for key, value in sorted(values.items())]
    words = re.sub(r"[^\w.\-]+", "_", "--".join([lesson.stem, *parts]))[:110]
    return f"{words}-{short_hash([lesson.stem, dict(values)], 8)}"


def own_folder(name: str, parent: Path = Path("build/runs")) -> Path:
    """Make a folder that nobody has yet: ``name``, else ``name-2``, ``name-3`` and so on."""
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            break
    return folder


def run_lesson(
    lesson: Path,
    output: Path,
    values: Mapping[str, Any],
    *,
    timeout: int = 600,
    progress: bool = True,
    threads: int | None = None,
) -> nbformat.NotebookNode:
    """Execute ``lesson`` with these parameters and write the result to ``output``.

    The kernel starts in the lesson's folder, as in Jupyter; the record goes beside ``output`` and
    has its name. Several threads of one process may run lessons at once.

    Args:
        lesson: the notebook to run; it is not changed.
        output: where the executed notebook goes; written even when a cell fails.
        values: checked parameters.
        timeout: longest time for one cell, in seconds.
        progress: draw a bar with one step per cell.
        threads: of the kernel; default: as the environment says.

    Raises:
        LessonFailed: a cell raised or took too long, or the kernel died.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    from kdlab.cli import engine

    output.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    name = output.name.removesuffix(".ipynb")
    environment = {"KDLAB_RECORDS": str(output.parent.resolve()), "KDLAB_RECORD": name}
    if threads:
        environment |= dict.fromkeys(("KDLAB_THREADS", "OMP_NUM_THREADS"), str(threads))
    try:
        return papermill.execute_notebook(
            _literal(lesson),
            _literal(output),
            parameters=dict(values),
            kernel_name="python3",
            language="python",
            engine_name=engine.NAME,
            progress_bar={"desc": lesson.stem, "leave": False} if progress else False,
            folder=str(lesson.parent.resolve()),
            environment=environment,
            execution_timeout=timeout,
            start_timeout=120,
            extra_arguments=["--log-level=CRITICAL"],  # it warns of TCP, and reports its own end
        )
    except papermill.PapermillExecutionError as error:
        reason = f"{error.ename}: {ANSI.sub('', error.evalue)}"
        raise LessonFailed(_explain(error, reason, lesson, output), reason) from None
    except CellTimeoutError:
        reason = f"a cell ran longer than {timeout} s"
        raise LessonFailed(
            f"{lesson.name}: {reason}; give more with --timeout. The run so far is in {output}",
            reason,
        ) from None
    except DeadKernelError:
        reason = "the kernel died, most often for lack of memory"
        raise LessonFailed(
            f"{lesson.name}: {reason}; "
            f"the run so far is in {output}. `kdlab doctor` shows what is free.",
            reason,
        ) from None
    except OSError:
        raise
    except Exception as error:  # a notebook that is none to papermill, a kernel that never came
        reason = f"{type(error).__name__}: {error}"
        raise LessonFailed(f"{lesson.name}: it cannot be run ({reason})", reason) from None


def _literal(path: Path) -> str:
    """Return a path in which papermill, which formats paths with the parameters, sees no braces."""
    return str(path.resolve()).replace("{", "{{").replace("}", "}}")


def _explain(error: Any, reason: str, lesson: Path, output: Path) -> str:
    cells = nbformat.read(output, 4).cells
    failed = next((i for i, c in enumerate(cells) if c.get("source") == error.source), -1)
    headings = [
        line.lstrip("# ")
        for cell in cells[: failed + 1]
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("#") and "papermill-error" not in line
    ]
    where = f", under “{headings[-1]}”" if headings else ""
    return (
        f"{lesson.name}: code cell {error.exec_count}{where}, raised\n"
        f"  {reason}\n"
        f"in\n{_indent(error.source)}\nThe run so far is in {output}"
    )


def _indent(source: str, lines: int = 12) -> str:
    kept = source.splitlines()
    more = [f"... ({len(kept) - lines} more lines)"] if len(kept) > lines else []
    return "\n".join(f"  | {line}" for line in kept[:lines] + more)
