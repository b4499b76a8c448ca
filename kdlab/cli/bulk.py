"""Commands for many runs: ``kdlab sweep`` makes them, ``kdlab report`` compares them."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from kdlab.words import counted

if TYPE_CHECKING:
    from kdlab.cli.runs import Outcome, Run
    from kdlab.cli.sweep import Order

ADVICE = "the same command goes on where this one was"
GRID = (
    "Values to try; 0..4 are five whole numbers; a text with a comma, or an empty one, stands in "
    'quotes inside those of the shell: -g \'note="a, b",""\'. Repeat it.'
)
STEADY = 24 * 3600  # seconds over which the bar averages: runs are long, and not all alike


def sweep(
    notebook: Annotated[str, typer.Argument(help="A path, or the start of a lesson's name: 01")],
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", "-g", metavar="NAME=A,B,...", help=GRID),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, max=10_000, help="Seeds 0 to N - 1.")] = None,
    profile: Annotated[
        str | None, typer.Option(help="Short for -g profile=…: fast or full")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A folder; default: build/sweeps/LESSON")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Kernels at a time; default: one for two cores.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="local|ADDRESS", help="Run on a Dask cluster.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Make all runs anew.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Make those anew that failed.")] = False,
    timeout: Annotated[int, typer.Option(min=1, help="Longest time for one cell, in seconds.")] = (
        600
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell the runs, make none.")] = False,
) -> None:
    """Run a lesson for every setting of a grid; stopped at any moment, it can go on.

    Status 1 if a run failed, now or before.
    """
    from kdlab import cli
    from kdlab.cli.doctor import usable_cores
    from kdlab.cli.grid import plan
    from kdlab.cli.running import find_lesson
    from kdlab.cli.runs import read_notebook
    from kdlab.cli.sweep import Order, look_up, threads_each

    lesson = find_lesson(notebook)
    given = cli.split_assignments(grid or [], "-g temperature=1,2")
    if profile is not None:
        if "profile" in given:
            raise ValueError("profile: give --profile or -g profile=..., not both")
        given["profile"] = profile
    if jobs is not None and scheduler not in (None, "local"):
        raise ValueError("jobs: the cluster says how many at a time; leave --jobs out")
    out = output or Path("build/sweeps") / lesson.stem
    planned = plan(lesson, read_notebook(lesson), given, seeds, out)
    cores = usable_cores()
    jobs = jobs or max(1, min(cores // 2, len(planned)))
    threads = threads_each(jobs, cores) if scheduler in (None, "local") else None
    order = Order(timeout, threads, again, retry)
    check_data(planned)
    there, missing, stale = look_up(planned, order)
    where = f"on {scheduler}" if threads is None else f"{jobs} at a time"
    cli.console.print(f"{out}: {counted(len(planned), 'run')}, {len(there)} there already, {where}")
    if dry_run:
        for run in missing:
            why = f": stale, {stale[run.name]} changed since" if run.name in stale else ""
            cli.console.print(f"to be made: {run}{why}")
        return
    for run in [run for run in missing if run.name in stale]:
        cli.complain(f"stale: {run}, {stale[run.name]} changed since; it is made again")
    out.mkdir(parents=True, exist_ok=True)
    outcomes = list(there)
    try:
        for outcome in _watched(_outcomes(missing, order, jobs, scheduler), there, len(planned)):
            outcomes.append(outcome)
    except OSError as error:
        cli.complain(f"{error}: nothing half made is kept, and {ADVICE}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        cli.complain(f"stopped with {len(outcomes)} of {counted(len(planned), 'run')}; {ADVICE}")
        os._exit(130)  # no waiting for threads that wait for kernels, which end with this process
    _conclude(outcomes, out)


def report(
    runs: Annotated[Path, typer.Argument(help="A folder with runs, of a sweep or of several.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where the files go; default: RUNS.")
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            "-m",
            help="Only this column or record in figures and summary; the table has all. Repeat it.",
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(help="Write each figure as .svg and .pdf into this folder as well."),
    ] = None,
    mlflow: Annotated[
        Path | None, typer.Option(help="Put the runs into this MLflow folder as well.")
    ] = None,
) -> None:
    """Gather the records of many runs: a table, a page with figures, a notebook to go on from."""
    from kdlab import cli
    from kdlab.cli import report_files
    from kdlab.cli.gathering import gather
    from kdlab.cli.running import LessonFailed

    table = gather(runs)
    try:
        paths = report_files.write(table, output or runs, runs, metrics, figures)
        if mlflow is not None:
            from kdlab.cli.tracking import track

            new = track(table, runs, mlflow)
            cli.console.print(f"{mlflow}: {counted(new, 'run')} new or changed")
    except (LessonFailed, OSError) as error:
        cli.complain(error)
        raise typer.Exit(1) from None
    for path, why in table.attrs["skipped"].items():
        cli.complain(f"skipped, no run: {path}: {why}")
    ends = table.drop_duplicates("run")["status"]
    failed = f"({(ends == 'failed').sum()} failed)"
    counts = f"{counted(len(ends), 'run')} {failed}, {counted(len(table), 'row')}"
    cli.console.print(f"{counts}: {', '.join(map(str, paths))}")


def _outcomes(
    missing: list[Run], order: Order, jobs: int, scheduler: str | None
) -> Iterator[Outcome]:
    from kdlab.cli.sweep import run_all, run_here

    if not missing:
        return
    if scheduler is None:
        yield from run_all(missing, lambda some, wait: run_here(some, order, jobs, wait))
        return
    from kdlab.cli.cluster import connect, run_there

    with connect(scheduler, jobs) as client:
        yield from run_all(missing, run_there(client, order))


def check_data(planned: list[Run]) -> None:
    """Raise ValueError if a data set is a path where nothing is; each run would find it out."""
    from kdlab.files import DATA, looks_like_path

    paths = {(run.lesson.parent, str(run.values.get(DATA, ""))) for run in planned}
    for folder, text in sorted(paths):
        if looks_like_path(text) and not (folder / Path(text).expanduser()).exists():
            raise ValueError(f"parameter dataset = {text!r}: there is no such file or folder")


def _watched(outcomes: Iterator[Outcome], there: list[Outcome], total: int) -> Iterator[Outcome]:
    """Draw a bar with the time left; where nothing can be drawn, print a line for each run."""
    from kdlab.cli import complain, console
    from kdlab.cli.runs import FAILED

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    times = [TimeElapsedColumn(), TextColumn("gone,"), TimeRemainingColumn(), TextColumn("left")]
    start, drawn, before = time.monotonic(), console.is_terminal, len(there)
    with Progress(
        *columns, *times, console=console, speed_estimate_period=STEADY, disable=not drawn
    ) as bar:
        task = bar.add_task("runs", total=total, completed=before)
        for number, outcome in enumerate(outcomes, 1 + before):
            bar.advance(task)
            if outcome.status == FAILED:
                complain(f"{outcome.run}: {outcome.reason}")
            if not drawn:
                left = (time.monotonic() - start) / (number - before) * (total - number)
                console.print(f"{number} of {total}: {outcome.run}, {left:.0f} s left")
            yield outcome


def _conclude(outcomes: list[Outcome], out: Path) -> None:
    from kdlab.cli import complain, console
    from kdlab.cli.runs import DONE, FAILED

    failed = [outcome for outcome in outcomes if outcome.status == FAILED]
    fine = [outcome for outcome in outcomes if outcome.status == DONE]
    before = sum(outcome.before for outcome in fine)
    words = f"{len(fine) - before} ran, {before} were there already, {len(failed)} failed"
    if failed:
        old = [outcome for outcome in failed if outcome.before]
        words += f" ({len(old)} of them before; --retry makes them anew)"
        for reason, times in Counter(outcome.reason for outcome in old).items():
            complain(f"failed before, {counted(times, 'time')}: {reason}")
    console.print(f"{out}: {counted(len(outcomes), 'run')}: {words}")
    raise typer.Exit(bool(failed))
