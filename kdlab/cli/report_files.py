"""The files of a report: the table, a page that needs no network, and a notebook to go on from."""

from __future__ import annotations

import base64
import html
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from kdlab.cli import report, runs
from kdlab.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd

NAME = "report"
MOST_FIGURES = 60
MOST_LINES = 400  # of the page's table; the files have all
SHOWN_ERROR = 300  # characters

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #ccc; --quiet: #555; --bad: #b00020; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; color: #111; background: #fff; }}
a {{ color: #0060a0; }}
table {{ border-collapse: collapse; width: 100%; font-size: .9em; margin: 1em 0; }}
th, td {{ text-align: left; padding: .3em .6em; border-bottom: 1px solid var(--line);
         vertical-align: top; overflow-wrap: anywhere; }}
td.number, th.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
.wide {{ overflow-x: auto; }}
.bad {{ color: var(--bad); }}
figure {{ margin: 1.5em 0; }}
figure img {{ max-width: 100%; height: auto; }}
figcaption, .quiet {{ color: var(--quiet); font-size: .9em; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --line: #444; --quiet: #aaa; --bad: #ff8a8a; }}
  body {{ color: #e6e6e6; background: #121212; }}
  a {{ color: #8ecbff; }}
  /* white paper becomes the page's black, and hues stay what they are */
  figure img {{ filter: invert(.93) hue-rotate(180deg); }}
}}
</style></head>
<body><h1>{title}</h1>
<p>{counts}</p>
{body}
</body></html>
"""


def write(
    table: pd.DataFrame, folder: Path, source: Path, metrics: list[str] | None = None
) -> list[Path]:
    """Write the four files of a report, each whole or not at all, and return their paths.

    Args:
        table: as ``gather`` gives it.
        folder: where the files go.
        source: the folder of the runs, which the page links to.
        metrics: as in ``report.measures``.

    Raises:
        ValueError: nothing of the name of a metric was recorded.
        OSError: the folder cannot be written.
        LessonFailed: the notebook did not run; the other files are there.
    """
    from filelock import FileLock

    text = page(table, folder, source, metrics)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{NAME}.{ending}" for ending in ("parquet", "csv", "html", "ipynb")]
    with FileLock(folder / f".{NAME}.lock"):
        for part in folder.glob(f".{NAME}.*.part"):  # of a report that was killed
            part.unlink()
        with atomic_write(paths[0]) as temporary:
            table.to_parquet(temporary, index=False)
        with atomic_write(paths[1]) as temporary:
            table.to_csv(temporary, index=False)
        with atomic_write(paths[2]) as temporary:
            temporary.write_text(text, encoding="utf-8")
        _write_notebook(paths[3], source, metrics)
    return paths


def page(table: pd.DataFrame, folder: Path, source: Path, metrics: list[str] | None = None) -> str:
    """Return the report as one HTML page with its figures inside; links are to ``source``."""
    ends = table.drop_duplicates("run")
    failed = ends[ends["status"] == runs.FAILED]
    counts = (
        f"{len(ends)} runs of {', '.join(ends['lesson'].unique())}, {len(failed)} failed. "
        f"Swept: {', '.join(report.swept(table)) or 'nothing but the seed'}. "
        "Intervals: 95 %, Student's t, over what n counts in one setting: runs, or the seeds with "
        "which a run trains where the run's own seed changes nothing in these trainings."
    )
    parts = [
        *_failures(failed, report.swept(table)),
        *_figures(table, metrics),
        *_results(table, metrics),
    ]
    body = "\n".join([*parts, *_list_of_runs(ends, folder, source)])
    title = html.escape(f"Report on {source.resolve().name}")
    return PAGE.format(title=title, counts=html.escape(counts), body=body)


def _failures(failed: pd.DataFrame, swept: list[str]) -> Iterator[str]:
    if len(failed):
        columns = ["run", *swept, *_seed(failed), "error"]
        yield "<h2>Failed</h2>"
        yield _html_table(failed[columns].head(MOST_LINES))


def _figures(table: pd.DataFrame, metrics: list[str] | None) -> Iterator[str]:
    from kdlab import plots

    yield "<h2>Results over each parameter</h2>"
    number = 0
    for number, figure in enumerate(report.figures(table, metrics), 1):
        if number <= MOST_FIGURES:
            picture = base64.b64encode(plots.png(figure, colors=128)).decode()
            words = html.escape(plots.alt_text(figure), quote=True)
            yield (
                f'<figure><img alt="{words}" src="data:image/png;base64,{picture}">'
                f"<figcaption>{words}</figcaption></figure>"
            )
    if number == 0:
        yield "<p>No parameter was swept, or nothing was recorded that is a number.</p>"
    if number > MOST_FIGURES:
        more = number - MOST_FIGURES
        yield f'<p class="quiet">{more} more figures: choose with <code>--metric NAME</code>.</p>'


def _results(table: pd.DataFrame, metrics: list[str] | None) -> Iterator[str]:
    summary = report.summary(table, metrics)
    if len(summary):
        yield "<h2>Means and intervals</h2>"
        yield _html_table(summary.head(MOST_LINES))
        yield from _more(len(summary) - MOST_LINES)


def _list_of_runs(ends: pd.DataFrame, folder: Path, source: Path) -> Iterator[str]:
    columns = ["run", "status", "seconds", *report.swept(ends), *_seed(ends)]
    links = {run: _link(run, folder, source) for run in ends["run"].head(MOST_LINES)}
    yield "<h2>Runs</h2>"
    yield _html_table(ends[columns].head(MOST_LINES), links)
    yield from _more(len(ends) - MOST_LINES)
    yield f'<p class="quiet">All of it: {NAME}.csv, {NAME}.parquet; go on in {NAME}.ipynb.</p>'


def _seed(table: pd.DataFrame) -> list[str]:
    return ["seed"] if "seed" in table else []


def _more(count: int) -> Iterator[str]:
    if count > 0:
        yield f'<p class="quiet">{count} more lines: see {NAME}.csv.</p>'


def _link(run: str, folder: Path, source: Path) -> str:
    """Return the address of a run's notebook, from where the page lies."""
    place = source / run
    notebook = next(iter(sorted(place.glob("*.ipynb"))), place) if place.is_dir() else place
    address = os.path.relpath(notebook.resolve(), folder.resolve())
    return quote(Path(address).as_posix())


def _html_table(frame: pd.DataFrame, links: dict[str, str] | None = None) -> str:
    """Return a frame as an HTML table; ``links`` are addresses for texts in the column run."""
    from pandas.api.types import is_numeric_dtype

    kinds = [' class="number"' if is_numeric_dtype(frame[c]) else "" for c in frame]
    head = "".join(
        f"<th{kind}>{html.escape(str(c))}</th>" for kind, c in zip(kinds, frame, strict=True)
    )
    lines = [f"<tr>{head}</tr>"]
    for line in frame.itertuples(index=False):
        cells = []
        for name, kind, value in zip(frame, kinds, line, strict=True):
            text = html.escape(_shown(value))
            if name == "run" and links and value in links:
                text = f'<a href="{html.escape(links[value], quote=True)}">{text}</a>'
            bad = ' class="bad"' if name == "error" or value == runs.FAILED else ""
            cells.append(f"<td{bad or kind}>{text}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return '<div class="wide"><table>' + "\n".join(lines) + "</table></div>"


def _shown(value: object) -> str:
    if value is None or value != value:
        return "–"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= SHOWN_ERROR else text[:SHOWN_ERROR] + "…"


def _write_notebook(path: Path, source: Path, metrics: list[str] | None) -> None:
    """Write and execute the notebook that a person goes on from."""
    import nbformat

    from kdlab.cli.report_notebook import notebook
    from kdlab.cli.running import run_lesson

    where = Path(os.path.relpath(source.resolve(), path.parent.resolve())).as_posix()
    with tempfile.TemporaryDirectory() as scratch:
        empty, executed = Path(scratch, "empty", path.name), Path(scratch, path.name)
        empty.parent.mkdir()
        nbformat.write(notebook(where, metrics or []), empty)
        run_lesson(empty, executed, {}, progress=False, folder=path.parent)
        with atomic_write(path) as temporary:
            temporary.write_bytes(executed.read_bytes())
