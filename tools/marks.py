"""Pages of which a part is written by a tool: what stands between a mark and its end."""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path


def fill(text: str, makers: Sequence[Callable[[], str]], page: str) -> str:
    """Return the text with what is between the marks made anew; a maker's name is its mark.

    Raises:
        ValueError: a mark is missing, or there twice.
    """
    for make in makers:
        name = make.__name__
        filled = f"<!-- {name} -->\n{make()}\n<!-- /{name} -->"
        pattern = re.compile(f"<!-- {name} -->.*?<!-- /{name} -->", re.S)
        text, found = pattern.subn(lambda _, filled=filled: filled, text)
        if found != 1:
            raise ValueError(f"{page}: {found} places for {name}, expected one")
    return text


def write(page: Path, render: Callable[[str], str], check: bool) -> int:
    """Write the page anew, or with ``check`` only return 1 if it is stale."""
    before = page.read_text(encoding="utf-8")
    after = render(before)
    if check:
        return int(before != after)
    page.write_text(after, encoding="utf-8")
    return 0


def parser(description: str) -> argparse.ArgumentParser:
    """Return a command line that knows ``--check``."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
    return made
