"""The files of a report: the table, a page that needs no network, and a notebook to go on from."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlab.cli import report
from kdlab.cli.gathering import settled
from kdlab.cli.report_page import Picture, in_order, page
from kdlab.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd

NAME = "report"
MOST_FIGURES = 60
AS_TEXT: Any = {"text.parse_math": False}  # a name with a $ is no formula
FORMULA = r"^(?:[=@\t\r]|[+\-](?!\d+(?:\.\d*)?(?:e[+\-]?\d+)?$))"  # but -0.5 is a number


def write(
    table: pd.DataFrame,
    folder: Path,
    source: Path,
    metrics: list[str] | None = None,
    figures: Path | None = None,
) -> list[Path]:
    """Write the four files of a report, each whole or not at all, and return their paths.

    Args:
        table: as ``gather`` gives it.
        folder: where the files go.
        source: the folder of the runs, which the page links to.
        metrics: as in ``report.measures``.
        figures: a folder that gets each figure as .svg and .pdf too.

    Raises:
        ValueError: nothing of the name of a metric was recorded.
        OSError: the folder cannot be written.
        LessonFailed: the notebook did not run; the other files are there.
    """
    import matplotlib
    from filelock import FileLock

    ordered = in_order(table, metrics)
    with matplotlib.rc_context(AS_TEXT):
        drawn = [Picture(m, x, f) for m in ordered for x, f in report.figures_of(m, table)]
        shown, left_out = drawn[:MOST_FIGURES], len(drawn[MOST_FIGURES:])
        text = page(table, folder, source, ordered, shown, left_out, metrics)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{NAME}.{ending}" for ending in ("parquet", "csv", "html", "ipynb")]
    with FileLock(folder / f".{NAME}.lock"):
        for part in folder.glob(f".{NAME}.*.part"):  # of a report that was killed
            part.unlink()
        of_one_kind = settled(table)
        with atomic_write(paths[0]) as temporary:
            of_one_kind.to_parquet(temporary, index=False)
        with atomic_write(paths[1]) as temporary:
            _without_formulas(of_one_kind).to_csv(temporary, index=False)
        with atomic_write(paths[2]) as temporary:
            temporary.write_text(text, encoding="utf-8")
        if figures:
            for picture in drawn:
                _write_figure(picture, figures)
        _write_notebook(paths[3], source, metrics)
    return paths


def _without_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table in which no text is a formula to a spreadsheet, which would compute it."""
    made = table.copy()
    for name in made.columns[[column.dtype == "str" for _, column in made.items()]]:
        made[name] = made[name].str.replace(FORMULA, r"'\g<0>", regex=True)
    return made.rename(columns=lambda name: re.sub(FORMULA, r"'\g<0>", name))


def _write_figure(picture: Picture, folder: Path) -> None:
    """Write a figure for a paper; its letters stay letters, and no date makes two files differ."""
    import matplotlib

    for ending, date in (("svg", "Date"), ("pdf", "CreationDate")):
        path = folder / f"{picture.name}.{ending}"
        with (
            atomic_write(path) as temporary,
            matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "kdlab", **AS_TEXT}),
        ):
            picture.figure.savefig(temporary, format=ending, metadata={date: None})


def _write_notebook(path: Path, source: Path, metrics: list[str] | None) -> None:
    """Write and execute the notebook that a person goes on from.

    Its kernel does not start among the runs, where it would import a stranger's ``pandas.py``.
    """
    import nbformat

    from kdlab.cli.report_notebook import notebook
    from kdlab.cli.running import run_lesson

    where = Path(os.path.relpath(source.resolve(), path.parent.resolve())).as_posix()
    with tempfile.TemporaryDirectory() as scratch:
        empty, executed = Path(scratch, "empty", path.name), Path(scratch, path.name)
        empty.parent.mkdir()
        nbformat.write(notebook(str(source.resolve()), metrics or []), empty)
        run_lesson(empty, executed, {}, progress=False)
        made = nbformat.read(executed, 4)
        for cell, shown in zip(made.cells, notebook(where, metrics or []).cells, strict=True):
            cell.source = shown.source
        with atomic_write(path) as temporary:
            nbformat.write(made, temporary)
