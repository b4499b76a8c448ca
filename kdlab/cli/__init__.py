"""The command ``kdlab``: look after the machine, run lessons, make pages, fetch data.

Heavy packages are imported inside the commands, so that ``kdlab --help`` answers at once.
"""

import io
import re
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from kdlab.cli import bulk, classroom


class Commands(TyperGroup):
    """The group of commands: wrong input ends with a sentence and status 1, not a traceback."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run; what a terminal has no letter for, as cp1252 or ASCII, is a question mark there."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        return super().main(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; what :mod:`kdlab` or the disk refuses is told in its own words."""
        try:
            return super().invoke(ctx)
        except ValueError as error:
            complain(error)
        except OSError as error:  # a folder that is a file, a full disk, no permission
            complain(f"{error.filename}: {error.strerror}" if error.filename else error)
        raise typer.Exit(1) from None


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
data_app = typer.Typer(invoke_without_command=True, help="The data sets, and which are here.")
# names of files and lessons are words, whatever brackets they have
console = Console(highlight=False, soft_wrap=True, markup=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)

Version = Annotated[bool, typer.Option("--version", is_eager=True, help="Say which, and end.")]
Profile = Annotated[str | None, typer.Option(help="Short for -p profile=…: fast or full")]
Timeout = Annotated[int, typer.Option(min=1, help="Longest time for one cell, in seconds.")]

LONGEST = 50  # rows of a table of classes
COLOURS = {"ok": "green", "change": "yellow", "missing": "red"}


@app.callback(invoke_without_command=True)
def main(context: typer.Context, version: Version = False) -> None:
    """Run lessons, make pages, fetch data, look after the machine."""
    if version:
        import kdlab

        console.print(f"kdlab {kdlab.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        console.print(context.get_help())


@app.command("doctor")
def doctor_command() -> None:
    """Say what this machine offers, and what to change. Status 1 if something needed is missing."""
    from kdlab.cli.doctor import CHANGE, examine, is_fit

    findings = examine()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for finding in findings:
        colour = COLOURS[finding.state]
        table.add_row(Text(finding.state, colour), finding.name, finding.found)
        if finding.advice:
            table.add_row("", "", Text("→ ", colour) + Text(finding.advice, "default"))
    console.print(table)
    wishes = sum(finding.state == CHANGE for finding in findings)
    if not is_fit(findings):
        console.print("Something that the lessons need is missing; see above.", style="red")
        raise typer.Exit(1)
    console.print(
        "All that the lessons need is here." + (f" {wishes} to improve." if wishes else "")
    )


@app.command()
def run(
    notebook: Annotated[str, typer.Argument(help="A path, or the start of a lesson's name: 01")],
    parameters: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="Repeat it.")
    ] = None,
    profile: Profile = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="OUT.ipynb")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
    timeout: Timeout = 600,
) -> None:
    """Run one lesson with your parameters through papermill; the lesson itself is not changed."""
    from kdlab.cli.running import LessonFailed, find_lesson, own_folder, run_lesson, run_name

    lesson = find_lesson(notebook)
    given = split_assignments(parameters or [], "-p seed=1")
    if profile is not None:
        given["profile"] = profile
    values = checked_values(lesson, given)
    if output and output.exists() and output.samefile(lesson):
        raise ValueError(f"output: {output} is the lesson itself; choose another path")
    if output and output.exists() and not force:
        raise ValueError(f"output: {output} is there already; --force overwrites it")
    target = output or own_folder(run_name(lesson, values)) / lesson.name
    start = time.perf_counter()
    try:
        run_lesson(lesson, target, values, timeout=timeout)
    except LessonFailed as failure:
        complain(failure)
        raise typer.Exit(1) from None
    console.print(f"{target}: done in {time.perf_counter() - start:.0f} s")


@app.command()
def course(
    folder: Annotated[Path, typer.Argument(help="Where the pages go.")],
    lessons: Annotated[Path, typer.Option(help="Where the notebooks are.")] = Path("notebooks"),
    profile: Profile = None,
    timeout: Timeout = 600,
) -> None:
    """Run all lessons and write HTML pages that need no network, with an index."""
    from kdlab.cli import pages
    from kdlab.cli.running import LessonFailed, run_lesson

    found = sorted(lessons.glob("*.ipynb"))
    if not found:
        raise ValueError(f"lessons: no notebook in {lessons}; run from the project's folder")
    plan = [(path, checked_values(path, {"profile": profile} if profile else {})) for path in found]
    rows: list[pages.Row] = []
    failures: list[str] = []
    columns = [TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()]
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("lessons", total=len(plan))
        for path, values in plan:
            bar.update(task, description=path.stem)
            target, start, state = folder / "notebooks" / path.name, time.perf_counter(), "done"
            try:
                run_lesson(path, target, values, timeout=timeout, progress=False)
            except LessonFailed as failure:
                failures.append(str(failure))
                state = "failed"
            seconds = time.perf_counter() - start
            executed = _read(target)
            pages.write_page(executed, folder / f"{path.stem}.html")
            rows.append(pages.Row(pages.title_of(executed), f"{path.stem}.html", state, seconds))
            bar.advance(task)
    pages.write_index(rows, _circumstances(profile), folder / "index.html")
    for message in failures:
        complain(message)
    console.print(f"{folder / 'index.html'}: {len(rows)} lessons, {len(failures)} failed")
    raise typer.Exit(bool(failures))


for command in (bulk.sweep, bulk.report, classroom.progress, classroom.student, classroom.bundle):
    app.command()(command)
app.add_typer(data_app, name="data")


@data_app.callback()
def data(context: typer.Context) -> None:
    """List the data sets: which come with the package, which are cached, which need a download."""
    if context.invoked_subcommand:
        return
    from kdlab import datasets

    table = Table("name", "state", box=None, padding=(0, 2, 0, 0))
    for name in datasets.available():
        table.add_row(name, data_state(name))
    console.print(table)
    console.print(
        "`kdlab data fetch NAME` downloads one. Your own: give a path to an .npz, .csv or folder; "
        "`kdlab data check PATH` shows what is in it."
    )


@data_app.command("fetch")
def fetch(name: Annotated[str, typer.Argument(help="For example cifar10")]) -> None:
    """Download one data set into the cache (or make it), and say what is in it."""
    from kdlab import datasets

    try:
        loaded = datasets.load(name)
    except OSError as error:
        complain(error)
        raise typer.Exit(1) from None
    parts = ", ".join(f"{part} {len(getattr(loaded, part))}" for part in ("train", "val", "test"))
    shape = "×".join(map(str, loaded.shape))
    what = f"texts of {shape} tokens" if loaded.tokenizer else f"images of {shape}"
    console.print(f"{loaded.name}: {parts} {what}, {loaded.num_classes} classes")


@data_app.command("check")
def check_data(
    path: Annotated[str, typer.Argument(help="An .npz or .csv file, or a folder of pictures.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Picture of samples, OUT.png.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
    size: Annotated[int | None, typer.Option(min=1, help="Side of a picture.")] = None,
) -> None:
    """Say what is in your data, what was left out and why, and show some, before a lesson."""
    from kdlab import datasets, plots
    from kdlab.datasets.account import examples, readable_name

    name = readable_name(Path(path).resolve().name)
    target = output or Path(f"{name}-check.png")
    if output and output.suffix.lower() != ".png":
        raise ValueError(f"output: {output} came, expected a name that ends in .png")
    data = datasets.load(path, **({} if size is None else {"size": size}))  # prints its line
    if "line" not in data.card:
        console.print(f"{data.name} comes with kdlab, or is downloaded: nothing of it is left out")
    counts = data.card.get("counts", {})
    table = Table("class", *counts, box=None, padding=(0, 2, 0, 0))
    for number, label in enumerate(data.classes if counts else ()):
        if number == LONGEST:
            table.add_row(f"… {data.num_classes - LONGEST} more")
            break
        table.add_row(Text(label), *(str(of[label]) for of in counts.values()))
    console.print(table)
    for reason, count in data.card.get("left_out", {}).items():
        console.print(f"left out: {count} {reason}")
    shown = examples(data)
    if data.tokenizer is not None:
        for index in shown:
            tokens = " ".join(data.tokenizer.decode(data.train.x[index])[1:])
            words = Text(f"{data.classes[int(data.train.y[index])]}: {tokens}"[:200])
            console.print(words)
        return
    if target.exists() and not force:
        raise ValueError(f"output: {target} is there already; --force overwrites it")
    titles = [data.classes[int(data.train.y[index])][:12] for index in shown]
    figure = plots.image_grid(data.image(data.train.x[shown]), titles)
    target.write_bytes(plots.png(figure))
    console.print(f"{target}: {len(shown)} training pictures under their class")


@app.command("teachers")
def teachers_command(
    names: Annotated[list[str] | None, typer.Argument(help="Default: all of them.")] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Train anew.")] = False,
) -> None:
    """List the trained teachers that ship with the course, or train them anew."""
    from kdlab.training import teachers

    if rebuild:
        teachers.rebuild(names=names or None, progress=True)
    table = Table("teacher", "state", box=None, padding=(0, 2, 0, 0))
    for row in teachers.status():
        if not names or row["name"] in names:
            table.add_row(row["name"], "whole" if row["whole"] else "missing or damaged")
    console.print(table)


def complain(what: object) -> None:
    """Print an error's own words on stderr; letters that would steer a terminal are shown as ?."""
    errors.print(re.sub(r"[^\S\n\t ]|[\x00-\x08\x0e-\x1f\x7f-\x9f]", "?", str(what)), style="red")


def split_assignments(words: list[str], example: str) -> dict[str, str]:
    """Split ``name=value`` words.

    Args:
        words: as typed.
        example: what to show to who typed something else.

    Raises:
        ValueError: a word has no ``=``, or a name comes twice.
    """
    given: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"parameter: {word!r} came, expected NAME=VALUE, as in {example}")
        if name in given:
            raise ValueError(f"parameter: {name!r} came twice; give it once, as in {example}")
        given[name] = value
    return given


def checked_values(lesson: Path, given: dict[str, str]) -> dict[str, Any]:
    """Hold what was typed against what the lesson declares, before anything runs.

    Raises:
        ValueError: unknown name, wrong type, value out of range.
    """
    from kdlab.cli import parameters

    return parameters.accept(parameters.read(_read(lesson)), given)


def data_state(name: str) -> str:
    """Say whether loading this data set needs the network."""
    from kdlab.datasets.downloads import files_of

    files = files_of(name)
    if not files:
        return "comes with kdlab"
    return "cached" if all(path.is_file() for path in files) else "needs a download"


def _read(path: Path) -> Any:
    import nbformat

    from kdlab.cli.runs import read_notebook

    return nbformat.from_dict(read_notebook(path))


def _circumstances(profile: str | None) -> str:
    from kdlab.training import device

    facts = device.describe()
    return (
        f"Run on {facts['device']} ({facts['name']}, {facts['threads']} threads), "
        f"torch {facts['torch']}, Python {facts['python']}; profile: {profile or 'as stored'}."
    )


if __name__ == "__main__":
    app()
