"""The table of `docs/your_own_model.md`: every foreign model in every function.

python tests/own_models/matrix.py            # make all rows anew and write them into the page
python tests/own_models/matrix.py lazy bf16  # only these, and say what is refused
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

from verdicts import FAMILIES, Cell, row
from zoo import ZOO

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "your_own_model.md"
Row = dict[str, dict[str, Cell]]


def counted(cells: dict[str, Cell]) -> str:
    """One entry: how many functions are right, and how many refused or at fault."""
    counts = Counter(cell.verdict for cell in cells.values())
    entry = [f"{counts.pop('right', 0)}"]
    return ", ".join(entry + [f"{n} {verdict}" for verdict, n in counts.items()]) if cells else ""


def line(who: str, cells: Row) -> str:
    """One row of the table."""
    return f"| {who} | {' | '.join(counted(cells[family]) for family in FAMILIES)} |"


def faults(cells: Row, *, refused: bool = False) -> list[str]:
    """What is neither right nor refused by name; with ``refused`` that, too."""
    return [
        f"{cell.verdict} in {family}, {name}: {cell.said}"
        for family, found in cells.items()
        for name, cell in found.items()
        if cell.verdict != "right" and (refused or cell.verdict != "refused")
    ]


def stored(text: str) -> dict[str, str]:
    """The rows of a page, by model."""
    _, _, part = text.partition("<!-- matrix -->")
    lines = part.partition("<!-- /matrix -->")[0].splitlines()
    return {who: made for made in lines if (who := made[2:].partition(" | ")[0]) in ZOO}


def table(rows: dict[str, str]) -> str:
    """The whole table, and its sums in words."""
    counts: Counter[str] = Counter()
    for made in rows.values():
        for number, verdict in re.findall(r"(\d+)(?: (\w+))?(?:,| \|)", made.partition(" | ")[2]):
            counts[verdict or "right"] += int(number)
    head = [f"| model | {' | '.join(FAMILIES)} |", "| --- |" + " --- |" * len(FAMILIES)]
    told = ", ".join(f"{n:,} {verdict}" for verdict, n in counts.items())
    return "\n".join(
        [*head, *rows.values(), "", f"{len(rows)} models, {counts.total():,} cells: {told}."]
    )


def main(names: list[str]) -> None:
    rows = stored(PAGE.read_text(encoding="utf-8"))
    for who in names or ZOO:
        cells = row(who)
        rows[who] = line(who, cells)
        print(rows[who], *faults(cells, refused=bool(names)), sep="\n   ", flush=True)
    made = table({who: rows[who] for who in ZOO if who in rows})
    print(made.splitlines()[-1])

    sys.path.insert(0, str(ROOT / "tools"))
    import marks

    def matrix() -> str:
        return made

    marks.write(PAGE, lambda text: marks.fill(text, [matrix], PAGE.name), check=False)


if __name__ == "__main__":
    main(sys.argv[1:])
