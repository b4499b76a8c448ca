"""One progress line: updated in place when somebody watches, plain lines when nobody does."""

from __future__ import annotations

import html
import sys
import time

from tqdm import tqdm


def in_notebook() -> bool:
    """Say whether a Jupyter kernel runs this code."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


class Progress:
    """A bar over ``total`` units of work; use it in a ``with`` block and call ``advance``.

    In a notebook it is one output that ends as the line it began with, so that a stored page is
    the same whatever the machine's speed. On a terminal it is tqdm's bar.
    """

    def __init__(self, total: int, label: str, shown: bool = True) -> None:
        self.total = max(total, 1)
        self.label = label
        self.shown = shown
        self.done = 0
        self._next = 0.0

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        self._bar: tqdm | None = None
        self._handle = None
        if self.shown and in_notebook():
            from IPython.display import HTML, display

            self._handle = display(HTML(self._line()), display_id=True)
        elif self.shown:
            self._bar = tqdm(total=self.total, desc=self.label, file=sys.stderr, leave=True)
        return self

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count ``units`` more as done and show it, at most four times a second."""
        self.done += units
        if self._bar is not None:
            self._bar.update(units)
            if note:
                self._bar.set_postfix_str(note, refresh=False)
        elif self._handle is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + 0.25
            from IPython.display import HTML

            self._handle.update(HTML(self._line(note, live=True)))

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._handle is not None:
            from IPython.display import HTML

            self._handle.update(HTML(self._line()))

    def _line(self, note: str = "", live: bool = False) -> str:
        label = html.escape(self.label, quote=False)  # it may name a file of somebody's
        if not live:
            return f"<span>{label}</span>"
        spent = time.monotonic() - self._started
        left = spent * (self.total - self.done) / max(self.done, 1)
        return (
            f"<span>{label} <progress max='{self.total}' value='{self.done}'></progress> "
            f"{100 * self.done / self.total:.0f} %, about {left:.0f} s left {note}</span>"
        )
