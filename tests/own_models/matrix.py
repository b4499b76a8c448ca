"""The table of `docs/your_own_model.md`: every foreign model in every function.

python tests/own_models/matrix.py            # print it and write it into the page
python tests/own_models/matrix.py lazy bf16  # only show what is said of these models
"""

from __future__ import annotations

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


def faults(cells: Row) -> list[str]:
    """What is neither right nor refused by name."""
    return [
        f"{cell.verdict} in {family}, {name}: {cell.said}"
        for family, found in cells.items()
        for name, cell in found.items()
        if cell.verdict in ("raw", "wrong")
    ]


def table(rows: dict[str, Row]) -> str:
    """The whole table, and its sum in words."""
    counts = Counter(
        c.verdict for r in rows.values() for cells in r.values() for c in cells.values()
    )
    lines = [f"| model | {' | '.join(FAMILIES)} |", "| --- |" + " --- |" * len(FAMILIES)]
    lines += [line(who, cells) for who, cells in rows.items()]
    told = ", ".join(f"{n:,} {verdict}" for verdict, n in counts.most_common())
    return "\n".join([*lines, "", f"{len(rows)} models, {counts.total():,} cells: {told}."])


def main(names: list[str]) -> None:
    rows = {who: row(who) for who in names or ZOO}
    for who, cells in rows.items():
        for family, found in cells.items():
            for name, cell in found.items():
                if cell.said and (names or cell.verdict != "refused"):
                    print(f"{who} · {family} · {name}: {cell.verdict}: {cell.said}")
    made = table(rows)
    print(made)
    if not names:
        sys.path.insert(0, str(ROOT / "tools"))
        import marks

        def matrix() -> str:
            return made

        marks.write(PAGE, lambda text: marks.fill(text, [matrix], PAGE.name), check=False)


if __name__ == "__main__":
    main(sys.argv[1:])
