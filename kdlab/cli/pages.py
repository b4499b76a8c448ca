"""Lessons as HTML pages that need no network: pictures inside, formulas drawn, no script fetched.

nbconvert's own page loads MathJax and more from the net. Here matplotlib draws each formula as
SVG; what its mathtext does not know (matrices, underbraces) stays readable as LaTeX.
"""

import base64
import html
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PAGE = """\
{% extends 'lab/index.html.j2' %}
{% block html_head_js %}{% endblock %}
{% block jupyter_widgets %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block html_head_css %}
<style>
main { max-width: 62rem; margin: 0 auto; }
.formula-row { text-align: center; margin: 1em 0; }
</style>
{% endblock %}
"""
INDEX = """\
<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>kdlab</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .4em .6em; border-bottom: 1px solid #ccc; }}
td:last-child, th:last-child {{ text-align: right; }}
</style></head>
<body><h1>kdlab: learn knowledge distillation by trying it</h1>
<p>{note}</p>
<table><tr><th>lesson</th><th>state</th><th>seconds</th></tr>
{rows}
</table></body></html>
"""
CODE = re.compile(r"(```.*?```|~~~.*?~~~|`[^`\n]+`)", re.S)
MATH = re.compile(
    r"\$\$(?P<row>.+?)\$\$|(?<![\\$\w])\$(?P<inline>[^\s$](?:[^$\n]*[^\s$\\])?)\$(?![\d$])", re.S
)
LINK = re.compile(r"(\]\([^)\s]*?)\.ipynb((?:#[^)]*)?\))")
# what mathtext calls differently
SYNONYMS = {r"\\[lr]Vert": r"\\|", r"\\[lr]vert": "|", r"\\tfrac": r"\\frac"}
WRAPPING = re.compile(r"\\(?:begin|end)\{(?:aligned|align\*?|equation\*?|gathered)\}")


@dataclass(frozen=True)
class Row:
    """One line of the index: a lesson, its page, how it ended and how long it took."""

    title: str
    page: str
    state: str
    seconds: float


def write_page(notebook: Any, path: Path) -> None:
    """Write an executed notebook as one HTML file that shows everything offline."""
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    copy = notebook.copy()
    copy["cells"] = [_prepared(cell) for cell in notebook["cells"]]
    exporter = HTMLExporter(
        extra_loaders=[DictLoader({"offline.html.j2": PAGE})],
        template_file="offline.html.j2",
        embed_images=True,
    )
    resources = {"metadata": {"name": title_of(notebook), "path": str(path.parent)}}
    body, _ = exporter.from_notebook_node(copy, resources=resources)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(body, encoding="utf-8")


def write_index(rows: Iterable[Row], note: str, path: Path) -> None:
    """Write the table of contents: a link, a state and the measured seconds for each lesson."""
    lines = [
        f'<tr><td><a href="{html.escape(row.page)}">{html.escape(row.title)}</a></td>'
        f"<td>{html.escape(row.state)}</td><td>{row.seconds:.0f}</td></tr>"
        for row in rows
    ]
    page = INDEX.format(note=html.escape(note), rows="\n".join(lines))
    path.write_text(page, encoding="utf-8")


def title_of(notebook: Mapping[str, Any]) -> str:
    """Return the text of the first heading."""
    lines = (line for cell in notebook["cells"] for line in cell["source"].splitlines())
    return next((line[2:].strip() for line in lines if line.startswith("# ")), "lesson")


def prepare_markdown(text: str) -> str:
    """Draw the formulas of a markdown text and point its links at pages instead of notebooks."""
    parts = CODE.split(text)
    parts[::2] = [MATH.sub(_formula, LINK.sub(r"\1.html\2", part)) for part in parts[::2]]
    return "".join(parts)


def _prepared(cell: Any) -> Any:
    fresh = cell.copy()
    if cell["cell_type"] == "markdown":
        fresh["source"] = prepare_markdown(cell["source"])
    if cell["cell_type"] == "code":
        fresh["outputs"] = [_prepared_output(output) for output in cell["outputs"]]
    return fresh


def _prepared_output(output: Any) -> Any:
    data = output.get("data")
    if not data:
        return output
    fresh = output.copy()
    # a widget needs its kernel; the picture beside it does not
    fresh["data"] = {k: v for k, v in data.items() if "widget-view" not in k} or data
    if "text/markdown" in data:
        fresh["data"] = {**fresh["data"], "text/markdown": prepare_markdown(data["text/markdown"])}
    return fresh


def _formula(match: re.Match[str]) -> str:
    if match["inline"]:
        return _picture(match["inline"])
    lines = [WRAPPING.sub("", line).replace("&", "") for line in match["row"].split(r"\\")]
    pictures = [_picture(" ".join(line.split()), r"\dfrac") for line in lines if line.strip()]
    return "\n\n" + "".join(f'<div class="formula-row">{p}</div>' for p in pictures) + "\n\n"


@cache
def _picture(latex: str, fraction: str = r"\frac") -> str:
    from matplotlib import rc_context
    from matplotlib.mathtext import math_to_image

    drawable, svg = latex.replace(r"\frac", fraction), io.BytesIO()
    for theirs, ours in SYNONYMS.items():
        drawable = re.sub(theirs, ours, drawable)
    try:
        with rc_context({"svg.hashsalt": "kdlab", "font.size": 11.5, "mathtext.fontset": "cm"}):
            depth = math_to_image(f"${drawable}$", svg, format="svg")
    except ValueError:
        return f"<code>{html.escape(latex)}</code>"
    plain = re.sub(rb"<metadata>.*?</metadata>", b"", svg.getvalue(), flags=re.S)  # holds the date
    source = base64.b64encode(plain).decode()
    words = html.escape(latex, quote=True).replace("|", "&#124;")
    return (
        f'<img class="formula" style="vertical-align: -{depth:.1f}pt" alt="{words}" '
        f'src="data:image/svg+xml;base64,{source}">'
    )
