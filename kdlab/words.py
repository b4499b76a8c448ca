"""Words for messages that several families share."""

import difflib
from collections.abc import Iterable


def nearest(word: object, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" with the nearest known word, "" when none is near."""
    words = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(word).lower(), words, n=1)
    return f" (did you mean {words[close[0]]!r}?)" if close else ""


def check_known(what: str, name: object, known: Iterable[str], where: str = "") -> None:
    """Raise ValueError, with the nearest name and all others, unless ``name`` is a known one."""
    names = list(known)
    if name not in names:
        there_are = ", ".join(names) or "none"
        raise ValueError(
            f"unknown {what} {name!r}{where}{nearest(name, names)}; known: {there_are}"
        )


def short(value: object) -> str:
    """Return a parameter's value as it is typed: ``4`` for 4.0, ``none`` for what is missing."""
    if value is None or value != value:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def counted(number: int, noun: str) -> str:
    """Return ``1 run``, ``2 runs``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
