"""Commands for learners and classes: ``kdlab progress``, ``kdlab student``, ``kdlab bundle``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdlab.words import counted

LESSONS = Path("notebooks")
Lessons = Annotated[Path, typer.Option(help="Where the notebooks are.")]
Names = Annotated[
    list[str] | None, typer.Argument(help="Lessons, like 01 or a path. Default: all of them.")
]


def progress(
    reset: Annotated[bool, typer.Option("--reset", help="Delete the file.")] = False,
    lessons: Lessons = LESSONS,
) -> None:
    """Show which exercises you have solved, and the file that says so; it stays on this machine."""
    from filelock import Timeout

    from kdlab.cli import complain, console
    from kdlab.lab import progress as kept

    file = kept.path()
    if file is None:
        console.print(f"no progress is kept: {kept.SWITCH} says so")
        return
    try:
        if reset:
            console.print(f"{file}: {'deleted' if kept.reset(file) else 'there is no such file'}")
            return
        entries, told = kept.read(file)
    except (OSError, Timeout) as error:
        complain(f"progress: {file} cannot be used: {error}")
        raise typer.Exit(1) from None
    if told:
        complain(told)
    chosen(None, lessons)  # says so where there are none
    for lesson, (solved, *cells) in kept.table(entries, lessons).iterrows():
        console.print(f"{lesson}: {solved}", style="bold")
        for cell in filter(None, cells):
            console.print(f"  {cell}")
    state = "" if file.exists() else " (nothing yet)"
    console.print(f"kept in {file}{state}; `kdlab progress --reset` deletes it")


def student(
    folder: Annotated[Path, typer.Argument(help="Where the hand-out goes.")],
    names: Names = None,
    nbgrader: Annotated[
        bool, typer.Option("--nbgrader", help="Write the source of an nbgrader course.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
    lessons: Lessons = LESSONS,
) -> None:
    """Write the lessons without solutions and instructor's notes, ready to be handed out."""
    from kdlab.cli import console
    from kdlab.cli.student import write
    from kdlab.training.teachers import status

    asked = chosen(names, lessons)
    is_lesson = any(path.name.startswith(str(folder)) for path in lessons.glob("*.ipynb"))
    if is_lesson and not folder.exists():
        raise ValueError(
            f"folder: {str(folder)!r} is a lesson's name; the folder comes first, as in "
            f"`kdlab student handout/ {folder}`"
        )
    files = write(asked, folder, nbgrader=nbgrader, force=force)
    written = [path for path in files if path.suffix == ".ipynb"]
    if nbgrader:
        stems = [path.stem for path in written]
        if without := [path.stem for path in asked if path.stem not in stems]:
            console.print(f"without exercises, so left out: {', '.join(without)}")
        console.print(f"{folder}: {counted(len(written), 'assignment')}. Go on with")
        console.print(f"  cd {folder}; nbgrader generate_assignment --create {stems[0]}")
        return
    whole = all(row["whole"] for row in status())
    found = "are found in this installation" if whole else "are trained when a lesson needs them"
    lines = f"{counted(len(written), 'lesson')} without solutions"
    console.print(f"{folder}: {lines}; the teachers {found}")


def bundle(
    file: Annotated[Path, typer.Argument(help="OUT.tar.gz or OUT.zip")],
    names: Names = None,
    handout: Annotated[
        bool, typer.Option("--student", help="Lessons without solutions, nothing for teachers.")
    ] = False,
    wheels: Annotated[
        bool, typer.Option("--wheels", help="Fetch all packages for machines like this one.")
    ] = False,
    data: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Add a downloaded data set. Repeat it.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
    lessons: Lessons = LESSONS,
) -> None:
    """Make one archive of the whole course, for machines without a network."""
    import tomllib

    from kdlab.cli import bundle as packing
    from kdlab.cli import complain, console
    from kdlab.cli.student import linked, prepare
    from kdlab.files import project_folder

    packing.check_ending(file)
    if file.exists() and not force:
        raise ValueError(f"file: {file} is there already; --force overwrites it")
    root = project_folder()
    if root is None:
        raise ValueError("bundle: kdlab is installed without its course; run in a checkout of it")
    asked = chosen(names, lessons)
    made = prepare(asked) if handout else linked(asked)
    notebooks: dict[str, bytes | Path] = {name: text.encode() for name, text in made.items()}
    cached = [path for name in data or [] for path in cached_files(name)]
    files = packing.contents(root, notebooks, student=handout, cached=cached)
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    files["README.md"] = packing.readme(project, wheels=wheels)
    file.parent.mkdir(parents=True, exist_ok=True)
    if not wheels:
        packing.pack(files, file)
    else:
        try:
            with (
                console.status("fetching wheels; this can take minutes"),
                packing.fetched_wheels(files, file.parent) as fetched,
            ):
                packing.pack(files | {f"wheels/{path.name}": path for path in fetched}, file)
        except packing.WheelsFailed as failure:
            complain(failure)
            raise typer.Exit(1) from None
    console.print(f"{file}: {file.stat().st_size / 1e6:.1f} MB; its README has the three commands")


def cached_files(name: str) -> list[Path]:
    """Return the downloaded files of a data set; none for one that comes with the package.

    Raises:
        ValueError: there is no such data set, or it was not downloaded yet.
    """
    from kdlab import datasets
    from kdlab.datasets.downloads import files_of
    from kdlab.words import check_known

    check_known("data set", name, datasets.available())
    files = files_of(name)
    if not all(path.is_file() for path in files):
        raise ValueError(f"data: {name} is not on this machine; `kdlab data fetch {name}` first")
    return files


def chosen(names: list[str] | None, folder: Path) -> list[Path]:
    """Return the lessons of these names, or all that lie in the folder.

    Raises:
        ValueError: there is none, or a name fits none or several.
    """
    from kdlab.cli.running import find_lesson

    there = sorted(filter(Path.is_file, folder.glob("*.ipynb")))
    found = [find_lesson(name, folder) for name in names] if names else there
    if not found:
        raise ValueError(f"lessons: no notebook in {folder}; run from the project's folder")
    return list(dict.fromkeys(found))
