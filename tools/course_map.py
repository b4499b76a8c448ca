"""Write what the lessons say of each other, from the lessons and their stored times.

python tools/course_map.py            # links, map, times; then the tables of the README
python tools/course_map.py --check    # write nothing; name what is stale

The links to the lessons before and after, the map in `00_start_here` and the time that a lesson
runs come from one list: the notebooks in their order. A new lesson needs its notebook and one run.
"""

import re
import sys
from pathlib import Path
from typing import Any

import marks
import nbformat
import readme
import scale
import teaching
from rerun import source_hash

from kdlab.cli.pages import title_of
from kdlab.files import atomic_write

MAP = re.compile(r"<!-- map -->.*?<!-- /map -->", re.S)
TIME = re.compile(r"(\| \*\*Time\*\* \| [^;|]+?)(?:; running[^|]*?)? \|")
NEED = re.compile(r"\| \*\*You need\*\* \| (.+?) \|")
START, ROUNDED, UNKNOWN = "00_start_here.ipynb", 5, "not timed yet"


def navigation(path: Path, lessons: list[Path]) -> str:
    """Return the line of links below a lesson's promise: before, start, after."""
    place = lessons.index(path)
    before, after = lessons[:place][-1:], lessons[place + 1 :][:1]
    links = [f"[← {name(p)}]({p.name})" for p in before]
    if START not in {path.name, *(p.name for p in before)}:
        links.append(f"[Start here]({START})")
    links += [f"[{name(p)} →]({p.name})" for p in after]
    return " · ".join(links)


def name(path: Path) -> str:
    """Return a lesson's title without its number."""
    return title_of(nbformat.read(path, 4)).split(" · ", 1)[-1]


def course_map(lessons: list[Path]) -> str:
    """Return the table of all lessons but the first: what one sees, needs, and how long it runs."""
    rows = []
    for path in lessons[1:]:
        notebook = nbformat.read(path, 4)
        needed = NEED.search(notebook.cells[1].source)
        link = f"[{title_of(notebook)}]({path.name})"
        rows.append([link, readme.promise(notebook), needed[1] if needed else "", runs(path)])
    return readme.table(["lesson", "what you will see", "you need", "runs in"], rows)


def runs(path: Path) -> str:
    """Return how long a lesson runs, rounded so that it holds on machines like the measured one."""
    seconds = readme.read("times")["seconds"].get(path.stem)
    if not seconds:
        return UNKNOWN
    return f"about {max(ROUNDED, ROUNDED * round(seconds / ROUNDED))} s"


def render(notebook: Any, path: Path, lessons: list[Path]) -> None:
    """Make the generated parts of a lesson anew, in place.

    The hash of the source follows if it was that of the source before: code has not changed, so
    the stored outputs are as fresh, or as stale, as they were.
    """
    fresh = notebook.metadata.get("kdlab", {}).get("source") == source_hash(notebook)
    title, header = notebook.cells[:2]
    title.source = "\n\n".join([*title.source.split("\n\n")[:2], navigation(path, lessons)])
    if (told := runs(path)) != UNKNOWN:  # until then the author's guess stays
        header.source = TIME.sub(rf"\1; running takes {told} |", header.source)
    for cell in notebook.cells[2:] if path == lessons[0] else ():
        if cell.cell_type == "markdown":
            filled = f"<!-- map -->\n{course_map(lessons)}\n<!-- /map -->"
            cell.source = MAP.sub(lambda _, filled=filled: filled, cell.source)
    if fresh:
        notebook.metadata["kdlab"]["source"] = source_hash(notebook)


def update(lessons: list[Path], check: bool) -> list[Path]:
    """Write the lessons whose generated parts are stale (or only look), and return them."""
    stale = []
    for path in lessons:
        before = path.read_text(encoding="utf-8")
        notebook = nbformat.reads(before, as_version=4)
        render(notebook, path, lessons)
        after = nbformat.writes(notebook).rstrip("\n") + "\n"
        if after == before:
            continue
        stale.append(path)
        if not check:
            with atomic_write(path) as temporary:
                temporary.write_text(after, encoding="utf-8")
    return stale


def main(arguments: list[str] | None = None) -> int:
    options = marks.parser(__doc__).parse_args(arguments)
    stale = update(list(readme.LESSONS), options.check)
    print(*(f"{path.name}: {'stale' if options.check else 'written'}" for path in stale), sep="\n")
    passed = ["--check"] if options.check else []
    others = [tool.main(passed) for tool in (readme, teaching, scale)]
    return int(any(others) or (options.check and bool(stale)))


if __name__ == "__main__":
    sys.exit(main())
