"""Write the tables of docs/scale.md, computed by the package; ``--check`` says if they are stale.

python tools/scale.py
"""

import sys
from pathlib import Path

import marks
from readme import table

from kdlab.training import cache_bytes

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
CLASSES = (10, 100, 1_000, 32_000)
SAMPLES = (50_000, 1_000_000, 100_000_000, 1_000_000_000)
UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")
CARD = 80 * 1000**3  # bytes of memory of a large GPU
IMAGE = 3 * 32 * 32  # numbers in a small photograph
FLOAT = 4  # bytes, as fit keeps the images


def human(count: float) -> str:
    """Return bytes in the largest unit of which there is at least one, to two digits or so."""
    power = 0
    while count >= 1000 and power < len(UNITS) - 1:
        count, power = count / 1000, power + 1
    return (
        f"{count:.0f} {UNITS[power]}" if count >= 10 or not power else f"{count:.1f} {UNITS[power]}"
    )


def cache() -> str:
    """What cached answers take, by samples and classes."""
    rows = [["one"] + [f"{cache_bytes(1, c):,} bytes" for c in CLASSES]]
    rows += [[f"{n:,}"] + [human(cache_bytes(n, c)) for c in CLASSES] for n in SAMPLES]
    return table(["samples", *(f"{c:,} classes" for c in CLASSES)], rows)


def fits() -> str:
    """How many samples one card holds: the answers alone, and with the images that fit keeps."""
    rows = []
    for name, image in (("answers alone", 0), ("with 32×32 photographs", IMAGE * FLOAT)):
        counts = [CARD / (cache_bytes(1, c) + image) for c in CLASSES]
        rows.append([name, *(f"{count / 1e6:,.1f} million" for count in counts)])
    return table([human(CARD), *(f"{c:,} classes" for c in CLASSES)], rows)


def render(text: str) -> str:
    """Return the page with its tables made anew."""
    return marks.fill(text, (cache, fits), PAGE.name)


def main(arguments: list[str] | None = None) -> int:
    options = marks.parser(__doc__).parse_args(arguments)
    return marks.write(PAGE, render, options.check)


if __name__ == "__main__":
    sys.exit(main())
