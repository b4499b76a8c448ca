"""What every figure has: a style, a size, an alt text, and one way to become PNG bytes.

The alt text is the figure's label: one sentence that says what is seen and holds no measured
number, so that it is the same on every machine.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from IPython import get_ipython
from IPython.display import display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.ticker import LogFormatter
from PIL import Image

WIDTH = 7.0  # inches; 700 px at the default dpi, the width of a notebook cell
DPI = 100

# Okabe and Ito, "Color Universal Design", 2008: told apart in all common colour vision types.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#000000")
BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, YELLOW, BLACK = PALETTE
GREY = "#8A8A8A"

# Names in other scripts, as far as this machine has letters for them; the first one draws all else.
FALLBACKS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Noto Sans JP", "Source Han Sans SC",
    "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "PingFang SC", "Hiragino Sans GB", "Hiragino Sans",
    "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "SimHei", "Arial Unicode MS", "Noto Sans",
    "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai", "Noto Emoji", "Symbola",
    "Segoe UI Emoji", "Segoe UI Symbol", "Unifont",
)  # fmt: skip
INSTALLED = frozenset(get_font_names())

STYLE: Any = {
    "font.family": ["DejaVu Sans", *(name for name in FALLBACKS if name in INSTALLED)],
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 11.0,
    "axes.titlesize": 12.0,
    "axes.titlelocation": "left",
    "axes.labelsize": 11.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "legend.frameon": False,
    "xtick.labelsize": 10.0,
    "ytick.labelsize": 10.0,
    "lines.linewidth": 2.0,
    "image.cmap": "viridis",
    "svg.hashsalt": "kdlab",
}
# In what is drawn here a $ in the name of a class is a $; a reader's own figures may have formulas.
styled = matplotlib.rc_context(
    {**STYLE, "text.parse_math": False}
)  # as a decorator: the style inside, the reader's own outside


@styled
def new_figure(height: float = 3.0, width: float = WIDTH) -> Figure:
    """Return an empty figure, ``width`` × ``height`` inches; its parts make room for each other."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def alt_text(figure: Figure) -> str:
    """Return the sentence that says what ``figure`` shows ("" when it has none)."""
    return str(figure.get_label() or "")


@matplotlib.rc_context(STYLE)
def png(figure: Figure, dpi: float = DPI, colors: int | None = None) -> bytes:
    """Return the figure as PNG bytes, the same for figures made alike (no version, no date).

    ``savefig`` draws twice to find the size; the size is known here, so one drawing is enough.
    With ``colors`` the picture is reduced to so many, which makes the file half as large and takes
    as long again: for pictures that are stored.
    """
    stream, canvas, usual_dpi = io.BytesIO(), figure.canvas, figure.get_dpi()
    try:
        figure.set_dpi(dpi)
        _allow_powers(figure)
        agg = FigureCanvasAgg(figure)
        with warnings.catch_warnings():  # a box stands for a letter that no font has
            warnings.filterwarnings("ignore", "Glyph .* missing")
            agg.draw()
        picture = Image.fromarray(np.asarray(agg.buffer_rgba())).convert("RGB")
        if colors:
            picture = picture.quantize(colors, dither=Image.Dither.NONE)
        picture.save(stream, format="png", optimize=bool(colors))
    finally:
        figure.set_dpi(usual_dpi)
        figure.set_canvas(canvas)
    return stream.getvalue()


def _allow_powers(figure: Figure) -> None:
    """Let the numbers of logarithmic axes be formulas, such as 10², wherever they were made."""
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if isinstance(axis.get_major_formatter(), LogFormatter):
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                tick.label1.set_parse_math(True)
                tick.label2.set_parse_math(True)


def show(figure: Figure, alt: str | None = None, *, dpi: float = DPI) -> None:
    """Display a figure with its alt text, which notebook tests compare and screen readers speak.

    Args:
        figure: any matplotlib figure.
        alt: a sentence that says what is seen, without numbers that differ between machines;
            by default the figure's own.
        dpi: pixels per inch.

    Raises:
        ValueError: the figure has no alt text and none was given.
    """
    sentence = alt or alt_text(figure)
    if not sentence:
        raise ValueError("alt is missing: give a sentence that says what the figure shows")
    if get_ipython() is None:
        print(sentence)
        return
    picture = base64.b64encode(png(figure, dpi, colors=128)).decode()
    display(
        {"image/png": picture, "text/plain": sentence},
        metadata={"image/png": {"alt": sentence}},
        raw=True,
    )


def labelled(figure: Figure, alt: str) -> Figure:
    """Give a figure its alt text."""
    figure.set_label(alt)
    return figure


def one_each(argument: str, names: Sequence[Any] | None, expected: int, of: str) -> None:
    """Raise if ``names`` are given, but not ``expected`` many."""
    if names is not None and len(names) != expected:
        raise ValueError(
            f"{argument} has {len(names)} entries; expected {expected}, one for each {of}"
        )
