"""Write the routes of docs/teaching.md from the lessons and their stored times; ``--check`` looks.

python tools/teaching.py            # what is between the marks of docs/teaching.md
"""

import sys

import marks
import nbformat
from readme import LESSONS, ROOT, machine, read, table

from kdlab.cli.pages import title_of
from kdlab.lab.progress import exercises_of

PAGE = ROOT / "docs" / "teaching.md"
BREAK = ""
# what is planned: lesson, what is done with it, minutes in class
SHORT = [
    ("00_start_here", "the slider, all together at one screen", 10),
    ("01_soft_targets", "sections 1 to 4, exercises 1 to 3", 60),
    ("01b_broken_distillers", "patients A and B, in pairs", 15),
    (BREAK, "what each takes home", 5),
]
HALF_DAY = [
    ("00_start_here", "the slider, each at their own machine", 15),
    ("01_soft_targets", "the whole lesson", 75),
    (BREAK, "break", 15),
    ("01b_broken_distillers", "all five patients; exercise 6 for the quick", 40),
    ("02_feature_distillation", "hints, attention and the tournament", 60),
    ("05_gated_distillation", "sections 1 and 2: gates and their rivals", 25),
    (BREAK, "what each takes home", 10),
]
FIRST_DAY = [
    ("00_start_here", "the slider, each at their own machine", 15),
    ("01_soft_targets", "the whole lesson", 75),
    (BREAK, "break", 15),
    ("01b_broken_distillers", "the whole lesson", 60),
    (BREAK, "lunch", 60),
    ("02_feature_distillation", "the whole lesson", 75),
    (BREAK, "break", 15),
    ("03_gradient_distillation", "the whole lesson", 75),
]
SECOND_DAY = [
    ("04_attention_and_depth", "the whole lesson", 60),
    ("05_gated_distillation", "the whole lesson", 60),
    (BREAK, "break", 15),
    ("06_compression", "the whole lesson", 75),
    (BREAK, "lunch", 60),
    ("07_nested_networks", "the whole lesson", 45),
    (BREAK, "own data: a lesson run anew with `kdlab run -p dataset=...`", 45),
    (BREAK, "each group shows one finding, and what did not work", 30),
]
ROUTES = {
    "90 minutes": (SHORT, 90),
    "half a day": (HALF_DAY, 240),
    "two days: the first": (FIRST_DAY, 390),
    "two days: the second": (SECOND_DAY, 390),
}


def links() -> dict[str, str]:
    """Return a link for each lesson, by its file's name."""
    paths = {path.stem: path for path in LESSONS}
    return {
        stem: f"[{title_of(nbformat.read(path, 4))}](../notebooks/{path.name})"
        for stem, path in paths.items()
    }


def routes() -> str:
    """The three routes: when, which lesson, what, and how long the machine computes.

    Raises:
        ValueError: a route names a lesson that is not there, or is longer or shorter than it says.
    """
    seconds, link, parts = read("times")["seconds"], links(), []
    for name, (steps, promised) in ROUTES.items():
        clock, rows = 0, []
        for stem, what, minutes in steps:
            if stem and stem not in link:
                raise ValueError(f"route {name!r}: there is no lesson {stem!r}")
            runs = f"{seconds[stem]:.0f} s" if stem in seconds else "not timed yet" if stem else ""
            start = f"{clock // 60}:{clock % 60:02d}"
            rows.append([start, link.get(stem, "–"), what, f"{minutes}", runs])
            clock += minutes
        if clock != promised:
            raise ValueError(f"route {name!r} takes {clock} minutes, expected {promised}")
        shown = table(["at", "lesson", "what", "minutes", "computes (fast)"], rows)
        parts.append(f"### {name.capitalize()}\n\n{shown}")
    made = machine(read("times")["made_on"])
    parts.append(
        f"*Computes*: all cells of the lesson, from start to end of the kernel, on {made}."
    )
    return "\n\n".join(parts)


def lessons() -> str:
    """Each lesson with its exercises by name, in order."""
    rows = []
    for path in LESSONS:
        names = exercises_of(path)
        rows.append([links()[path.stem], f"{len(names)}", " · ".join(names) or "–"])
    return table(["lesson", "exercises", "their names in `kdlab progress`"], rows)


def render(text: str) -> str:
    """Return the page with what is between its marks made anew.

    Raises:
        ValueError: a mark is missing.
    """
    return marks.fill(text, (routes, lessons), PAGE.name)


def main(arguments: list[str] | None = None) -> int:
    options = marks.parser(__doc__).parse_args(arguments)
    return marks.write(PAGE, render, options.check)


if __name__ == "__main__":
    sys.exit(main())
