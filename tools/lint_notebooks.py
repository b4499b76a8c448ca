"""Hold lessons against the anatomy that DESIGN.md, section 4, gives them.

Every rule is a function that yields what is wrong; RULES at the end lists them.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nbformat

CELLS, WORDS, CODE_LINES, KILOBYTES = (25, 45), (600, 1500), 20, 300
# lessons that may be shorter: the tour, and the clinic, whose text is the learner's own
SHORT = {
    "00_start_here": {"cells": 12, "words": 200},
    "01b_broken_distillers": {"cells": 12, "words": 300},
}
NO_EXERCISE = ("00_start_here",)
HEADER = ("you will be able to", "you need", "time", "runs on")
CLOSING = ("Take-aways", "Common mistakes", "Think further", "Papers")
FORBIDDEN_CALLS = {
    "interact": "hangs headless runs; use an Explorer or `.observe`",
    "interactive": "hangs headless runs; use an Explorer or `.observe`",
    "interactive_output": "hangs headless runs; use an Explorer or `.observe`",
    "Output": "hangs headless runs; change a widget's value instead",
    "clear_output": "leaves nothing that a test could compare; update a display",
    "filterwarnings": "hides what the learner should see",
    "simplefilter": "hides what the learner should see",
}
FORBIDDEN_NAMES = {"plt": "no pyplot state; call a function of kdlab.plots"}

FENCED = re.compile(r"```.*?```|~~~.*?~~~|<!--.*?-->", re.S)
INLINE = re.compile(r"`[^`\n]+`|\$\$.+?\$\$|(?<!\\)\$[^$\n]+\$|<[^>\n]+>", re.S)
TARGET = re.compile(r"\]\([^)]*\)|https?://\S+")
ALLOWED_NUMBER = re.compile(
    r"^#+\s+\d+(?:\.\d+)*|arXiv:?\s*\d{4}\.\d{4,5}|\b\d{4}\.\d{4,5}\b"
    r"|\b\d+\s?%(?=\s(?:confidence|interval|band))|\bPython \d\.\d+",
    re.M,
)
TYPED_RESULT = re.compile(r"(?<![\w.])\d+\.\d+(?:\s?%)?|(?<![\w.])\d+\s?%")
NOTEBOOK_LINK = re.compile(r"\]\(([^)#:\s]+\.ipynb)(?:#[^)]*)?\)")
START = re.compile(r"(?:\w+\.)*start\(globals\(\)")
HELP = re.compile(r"#\s*(.*)$")


@dataclass(frozen=True)
class Lesson:
    """A notebook with the views of it that the rules need."""

    path: Path
    notebook: nbformat.NotebookNode

    @property
    def stem(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    @property
    def cells(self) -> list[nbformat.NotebookNode]:
        """All cells, in order."""
        return self.notebook.cells

    @cached_property
    def code(self) -> list[tuple[int, nbformat.NotebookNode]]:
        """Position and cell of the code."""
        return [(n, c) for n, c in enumerate(self.cells) if c.cell_type == "code"]

    @cached_property
    def text(self) -> list[tuple[int, str]]:
        """Position and source of the markdown."""
        return [(n, c.source) for n, c in enumerate(self.cells) if c.cell_type == "markdown"]

    @cached_property
    def headings(self) -> list[tuple[int, int, str]]:
        """Cell, level and text of each heading."""
        found = []
        for number, source in self.text:
            for line in FENCED.sub("", source).splitlines():
                if match := re.match(r"(#+)\s+(.*)", line):
                    found.append((number, len(match[1]), match[2].strip()))
        return found

    def tagged(self, tag: str) -> list[int]:
        """Positions of the cells with this tag."""
        return [n for n, cell in enumerate(self.cells) if tag in cell.metadata.get("tags", [])]

    @cached_property
    def calls(self) -> list[tuple[int, ast.Call]]:
        """Every call in the code, with its cell's position."""
        return [(n, x) for n, t in self.trees for x in ast.walk(t) if isinstance(x, ast.Call)]

    @cached_property
    def trees(self) -> list[tuple[int, ast.Module]]:
        """The code cells that are plain Python, parsed; ruff tells about the others."""
        parsed = []
        for number, cell in self.code:
            lines = ["" if x.startswith(("%", "!")) else x for x in cell.source.splitlines()]
            try:
                parsed.append((number, ast.parse("\n".join(lines))))
            except SyntaxError:
                continue
        return parsed


def title(lesson: Lesson) -> Iterator[str]:
    ones = [text for _, level, text in lesson.headings if level == 1]
    if len(ones) != 1:
        yield f"title: {len(ones)} headings of level 1, expected one"


def header(lesson: Lesson) -> Iterator[str]:
    tables = [source.lower() for _, source in lesson.text[:3] if "|" in source]
    missing = [field for field in HEADER if not any(field in table for table in tables)]
    if missing:
        yield f"header: the table near the top lacks {', '.join(map(repr, missing))}"


def parameters(lesson: Lesson) -> Iterator[str]:
    cells = lesson.tagged("parameters")
    if len(cells) != 1:
        yield f"parameters: {len(cells)} cells are tagged `parameters`, expected one"
        return
    source = lesson.cells[cells[0]].source
    for node in ast.parse(source).body:
        line = source.splitlines()[node.lineno - 1]
        if not is_typed_literal(node):
            yield f"parameters: {line.strip()!r} is not `name: type = literal  # help`"
            continue
        told = HELP.search(line[getattr(node, "end_col_offset", 0) :])
        if not told or not told[1].strip():
            yield f"parameters: {line.strip()!r} has no help"
        elif "=" in told[1]:
            yield f"parameters: {line.strip()!r} has `=` in its help, which papermill misreads"


def is_typed_literal(node: ast.stmt) -> bool:
    if not isinstance(node, ast.AnnAssign) or node.value is None:
        return False
    try:
        ast.literal_eval(node.value)
    except ValueError:
        return False
    return isinstance(node.target, ast.Name)


def start(lesson: Lesson) -> Iterator[str]:
    starts = [n for n, call in lesson.calls if START.match(ast.unparse(call))]
    if len(starts) != 1:
        yield f"start: {len(starts)} calls of lab.start(globals()), expected one"
    elif lesson.tagged("parameters") and starts[0] < lesson.tagged("parameters")[0]:
        yield "start: lab.start comes before the parameters cell"


def size(lesson: Lesson) -> Iterator[str]:
    least, most = SHORT.get(lesson.stem, {}).get("cells", CELLS[0]), CELLS[1]
    if not least <= len(lesson.cells) <= most:
        yield f"size: {len(lesson.cells)} cells, expected {least} to {most}"
    kilobytes = lesson.path.stat().st_size / 1000
    if kilobytes > KILOBYTES:
        yield f"size: {kilobytes:.0f} kB, expected at most {KILOBYTES}"
    for number, cell in lesson.code:
        lines = len(cell.source.splitlines())
        if lines > CODE_LINES:
            yield f"size: cell {number} has {lines} lines, expected at most {CODE_LINES}"


def words(lesson: Lesson) -> Iterator[str]:
    least, most = SHORT.get(lesson.stem, {}).get("words", WORDS[0]), WORDS[1]
    count = sum(len(re.findall(r"[A-Za-z][\w’'-]*", prose(s))) for _, s in lesson.text)
    if not least <= count <= most:
        yield f"words: {count}, expected {least} to {most}"


def numbers(lesson: Lesson) -> Iterator[str]:
    """Results are computed, never typed."""
    papers = {n for n, _, text in lesson.headings if text.startswith("Papers")}
    for number, source in lesson.text:
        if number in papers:
            continue
        for typed in TYPED_RESULT.findall(ALLOWED_NUMBER.sub(" ", prose(source))):
            yield (
                f"numbers: cell {number} has {typed!r} typed into its text; compute it, "
                "or write it as code or formula if it is a setting"
            )


def prose(source: str) -> str:
    """Return the sentences of a markdown cell: no code, no formula, no tag, no address."""
    return TARGET.sub(" ", INLINE.sub(" ", FENCED.sub(" ", source)))


def claims(lesson: Lesson) -> Iterator[str]:
    if not any(called(call) == "claim" for _, call in lesson.calls):
        yield "claims: no lab.claim; a lesson states at least one finding"


def exercises(lesson: Lesson) -> Iterator[str]:
    asked, solved = lesson.tagged("exercise"), lesson.tagged("solution")
    if not asked and lesson.stem not in NO_EXERCISE:
        yield "exercises: no cell is tagged `exercise`"
    for here, after in zip(asked, [*asked[1:], len(lesson.cells)], strict=False):
        if not any(here < number < after for number in solved):
            yield f"exercises: cell {here} has no cell tagged `solution` before the next exercise"
        if not any(here <= n < after and called(call) == "check" for n, call in lesson.calls):
            yield f"exercises: cell {here} is not followed by lab.check"
    for number in solved:
        if not lesson.cells[number].metadata.get("jupyter", {}).get("source_hidden"):
            yield (
                f"exercises: solution {number} stands open; its metadata needs "
                '"jupyter": {"source_hidden": true}'
            )


def forbidden(lesson: Lesson) -> Iterator[str]:
    for number, call in lesson.calls:
        if called(call) in FORBIDDEN_CALLS:
            yield f"forbidden: cell {number} calls {called(call)}: {FORBIDDEN_CALLS[called(call)]}"
    for number, tree in lesson.trees:
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        for name in sorted(used & FORBIDDEN_NAMES.keys()):
            yield f"forbidden: cell {number} uses {name}: {FORBIDDEN_NAMES[name]}"


def called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def executed(lesson: Lesson) -> Iterator[str]:
    for number, cell in lesson.code:
        if not cell.source.strip():
            yield f"executed: code cell {number} is empty"
        elif cell.execution_count is None:
            yield f"executed: code cell {number} was never run, so nbval compares nothing in it"


def ids(lesson: Lesson) -> Iterator[str]:
    have = [cell.get("id") for cell in lesson.cells]
    if None in have or len(set(have)) < len(have):
        yield "ids: cells lack ids, or share them"


def closing(lesson: Lesson) -> Iterator[str]:
    for wanted in CLOSING:
        if not any(text.startswith(wanted) for _, _, text in lesson.headings):
            yield f"closing: no heading “{wanted}”"


def links(lesson: Lesson) -> Iterator[str]:
    for number, source in lesson.text:
        for target in NOTEBOOK_LINK.findall(source):
            if not (lesson.path.parent / target).is_file():
                yield f"links: cell {number} points at {target}, which is not there"


RULES = (
    title, header, parameters, start, size, words, numbers, claims,
    exercises, forbidden, executed, ids, closing, links,
)  # fmt: skip


def lint(path: Path) -> list[str]:
    """Return everything that is wrong with one notebook, in the order of RULES."""
    raw = nbformat.reader.reads(path.read_text(encoding="utf-8"))  # as stored: no ids are added
    lesson = Lesson(path, raw)
    for cell in raw.cells:
        cell.source = "".join(cell.source)
    return [problem for rule in RULES for problem in rule(lesson)]


def main(arguments: list[str]) -> int:
    paths = [Path(a) for a in arguments] or sorted(Path("notebooks").glob("*.ipynb"))
    found = [f"{path}: {problem}" for path in paths for problem in lint(path)]
    print("\n".join(found) or f"{len(paths)} lessons are well formed")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
