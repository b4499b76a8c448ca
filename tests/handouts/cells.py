"""What the tests of hand-outs ask of notebooks."""

from pathlib import Path

FOLDER = Path(__file__).parents[2] / "notebooks"
LESSONS = sorted(FOLDER.glob("*.ipynb"))


def tags(cell):
    return set(cell.metadata.get("tags", []))


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in tags(cell)]


def lines(cells):
    found = (line.strip() for cell in cells for line in cell.source.splitlines())
    return {line for line in found if line}


def secrets(notebook):
    """Lines that stand in solutions and notes only."""
    hidden = [c for c in notebook.cells if tags(c) & {"solution", "instructor"}]
    return lines(hidden) - lines(c for c in notebook.cells if c not in hidden)
