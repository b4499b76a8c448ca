"""Run a lesson through papermill, and say plainly where it failed."""

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat

ANSI = re.compile(r"\x1b\[[0-9;]*m")


class LessonFailed(Exception):
    """A cell raised, took too long, or the kernel died; the message says which and why."""


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
    what = f"several fit: {', '.join(p.stem for p in fitting)}" if fitting else "no such notebook"
    known = ", ".join(p.stem for p in sorted(folder.glob("*.ipynb"))) or f"none in {folder}/"
    raise ValueError(f"notebook: {str(name)!r} came, {what}; give a path or one of: {known}")


def run_name(lesson: Path, values: Mapping[str, Any]) -> str:
    """Return a folder name that tells runs with other parameters apart."""
    parts = [f"{key}-{value}" for key, value in sorted(values.items())]
    return re.sub(r"[^\w.\-]+", "_", "--".join([lesson.stem, *parts]))[:120]


def run_lesson(
    lesson: Path,
    output: Path,
    values: Mapping[str, Any],
    *,
    timeout: int = 600,
    progress: bool = True,
) -> nbformat.NotebookNode:
    """Execute ``lesson`` with these parameters and write the result to ``output``.

    The kernel starts in the lesson's folder, as in Jupyter; records go beside ``output``.

    Args:
        lesson: the notebook to run; it is not changed.
        output: where the executed notebook goes; written even when a cell fails.
        values: checked parameters.
        timeout: longest time for one cell, in seconds.
        progress: draw a bar with one step per cell.

    Raises:
        LessonFailed: a cell raised or took too long, or the kernel died.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    output.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    with _records_in(output.parent):
        try:
            return papermill.execute_notebook(
                str(lesson.resolve()),
                str(output.resolve()),
                parameters=dict(values),
                kernel_name="python3",
                language="python",
                progress_bar={"desc": lesson.stem, "leave": False} if progress else False,
                cwd=str(lesson.resolve().parent),
                execution_timeout=timeout,
                start_timeout=120,
                extra_arguments=["--log-level=ERROR"],  # it warns of TCP on every start
            )
        except papermill.PapermillExecutionError as error:
            raise LessonFailed(_explain(error, lesson, output)) from None
        except CellTimeoutError:
            raise LessonFailed(
                f"{lesson.name}: a cell ran longer than {timeout} s; give more with --timeout. "
                f"The run so far is in {output}"
            ) from None
        except DeadKernelError:
            raise LessonFailed(
                f"{lesson.name}: the kernel died, most often for lack of memory; "
                f"the run so far is in {output}. `kdlab doctor` shows what is free."
            ) from None


def _explain(error: Any, lesson: Path, output: Path) -> str:
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
        f"  {error.ename}: {ANSI.sub('', error.evalue)}\n"
        f"in\n{_indent(error.source)}\nThe run so far is in {output}"
    )


def _indent(source: str, lines: int = 12) -> str:
    kept = source.splitlines()
    more = [f"... ({len(kept) - lines} more lines)"] if len(kept) > lines else []
    return "\n".join(f"  | {line}" for line in kept[:lines] + more)


@contextlib.contextmanager
def _records_in(folder: Path) -> Iterator[None]:
    """Let the kernels started inside write their records into ``folder``."""
    before = os.environ.get("KDLAB_RECORDS")
    os.environ["KDLAB_RECORDS"] = str(folder.resolve())
    try:
        yield
    finally:
        del os.environ["KDLAB_RECORDS"]
        if before is not None:
            os.environ["KDLAB_RECORDS"] = before
