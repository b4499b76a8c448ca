"""The page of a report: one HTML file, its figures inside, for bright and dark screens."""

from __future__ import annotations

import html
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from kdlab.cli import report, runs
from kdlab.files import safe_name
from kdlab.words import counted

if TYPE_CHECKING:
    import pandas as pd

MOST_LINES = 400  # of one of the page's tables; the files have all
SHOWN_ERROR = 300  # characters
INK, GRID = "#000000", "#dddddd"  # of a figure's words and axes; no line of a figure has them

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #ccc; --quiet: #555; --bad: #b00020; --link: #0060a0; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; color: #111; background: #fff; }}
h1, h2, h3, h4 {{ line-height: 1.25; overflow-wrap: break-word; }}
h2 {{ margin-top: 2.5em; }} h3 {{ margin-top: 2em; }}
a, summary {{ color: var(--link); }}
summary {{ cursor: pointer; }}
table {{ border-collapse: collapse; font-size: .9em; margin: 1em 0; }}
th, td {{ text-align: left; padding: .3em .8em .3em 0; border-bottom: 1px solid var(--line);
         vertical-align: top; }}
td:first-child {{ min-width: 9em; }}
td.error {{ overflow-wrap: anywhere; min-width: 18em; }}
.number {{ text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }}
.whole {{ white-space: nowrap; }}
.wide {{ overflow-x: auto; }}
.bad, td.error {{ color: var(--bad); }}
figure {{ margin: 1.5em 0; }}
figure svg {{ display: block; width: 100%; max-width: 44rem; min-width: 34rem; height: auto; }}
figure svg * {{ stroke-linejoin: round; stroke-linecap: butt; }}
figure svg text {{ fill: currentColor; font-family: system-ui, sans-serif !important; }}
figcaption, .quiet {{ color: var(--quiet); font-size: .9em; max-width: 44rem; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --line: #444; --quiet: #aaa; --bad: #ff8a8a; --link: #8ecbff; }}
  body {{ color: #e6e6e6; background: #121212; }}
}}
</style></head>
<body><h1>{title}</h1>
<p>{counts}</p>
<nav>{contents}</nav>
{body}
<footer><h2>Files</h2><p>{files}</p></footer>
</body></html>
"""
ABOUT_N = (
    "Means with 95 % intervals (Student's t). n counts runs, or seeds: those with which a run "
    "trains, where the run's own seed changes nothing in these trainings."
)


@dataclass(frozen=True)
class Picture:
    """A figure of a report: ``figure`` shows ``measure`` over the parameter ``x``."""

    measure: report.Measure
    x: str
    figure: Any

    @property
    def name(self) -> str:
        """For a file: the same for the same measure and parameter."""
        m = self.measure
        metric = [] if m.metric == "value" else [m.metric]
        words = [m.lesson, m.record, *metric, f"over_{self.x}"]
        return safe_name("--".join(words))


def in_order(table: pd.DataFrame, metrics: list[str] | None = None) -> list[report.Measure]:
    """Return all measures by lesson and record; what is looked for first comes first."""
    found = list(report.measures(table, metrics))
    lessons = list(dict.fromkeys(m.lesson for m in found))
    first = {(m.lesson, m.record) for m in found if is_first(m, metrics)}
    records = list(dict.fromkeys(m.record for m in found))

    def place(m: report.Measure) -> tuple[int, bool, int, bool]:
        about = (m.lesson, m.record) not in first, records.index(m.record)
        return lessons.index(m.lesson), *about, not is_first(m, metrics)

    return sorted(found, key=place)


def is_first(measure: report.Measure, metrics: list[str] | None) -> bool:
    """Say whether a measure is what is looked for first: what was asked for, else accuracy."""
    return bool(metrics) or "accuracy" in f"{measure.record} {measure.metric}".lower()


def page(
    table: pd.DataFrame,
    folder: Path,
    source: Path,
    ordered: list[report.Measure],
    pictures: list[Picture],
    left_out: int,
    metrics: list[str] | None = None,
) -> str:
    """Return the report as one HTML page.

    Args:
        table: as ``gather`` gives it.
        folder: where the page will lie.
        source: the folder of the runs, which the page links to.
        ordered: as ``in_order`` gives them.
        pictures: the figures that the page shows.
        left_out: how many more there would be.
        metrics: as in ``report.measures``.
    """
    ends = table.drop_duplicates("run")
    failed = ends[ends["status"] == runs.FAILED]
    counts = (
        f"{counted(len(ends), 'run')} of {', '.join(ends['lesson'].unique())}, "
        f"{len(failed)} failed. "
        f"Swept: {', '.join(report.swept(table)) or 'nothing but the seed'}. {ABOUT_N}"
    )
    contents: list[tuple[int, str, str]] = []

    def heading(level: int, words: str) -> str:
        contents.append((level, f"part-{len(contents)}", words))
        return f'<h{level} id="part-{len(contents) - 1}">{html.escape(words)}</h{level}>'

    parts = [heading(2, "Conditions"), *_conditions(table)]
    if len(failed):
        columns = ["run", "error", *report.swept(table), *_seed(failed)]
        parts += [heading(2, "Failed"), _html_table(failed[columns])]
    claims = report.claims(table)
    for lesson in ends["lesson"].unique():
        parts.append(heading(2, lesson))
        stated = claims[claims["lesson"] == lesson]
        if len(stated):
            parts += [heading(3, "Claims"), *_claims(stated)]
        here = [m for m in ordered if m.lesson == lesson]
        for record in dict.fromkeys(m.record for m in here):
            parts.append(heading(3, record.replace("_", " ")))
            parts += _record([m for m in here if m.record == record], table, pictures, metrics)
        if not here:
            parts.append("<p>Nothing was recorded that is a number.</p>")
    if left_out:
        words = f"{counted(left_out, 'more figure')}: choose with <code>--metric NAME</code>."
        parts.append(f'<p class="quiet">{words}</p>')
    parts += [heading(2, "Runs"), _list_of_runs(ends, folder, source)]
    title = f"Report on {source.resolve().name}"
    body = "\n".join(parts)
    return PAGE.format(
        title=html.escape(title),
        counts=html.escape(counts),
        contents=_contents(contents),
        body=body,
        files="All rows: {}, {}. To go on: {}.".format(
            *(f'<a href="report.{e}">report.{e}</a>' for e in ("csv", "parquet", "ipynb"))
        ),
    )


def inline_svg(figure: Any, number: int) -> str:
    """Return a figure as SVG for the page: transparent, words and axes in the page's own colour.

    ``number`` goes into the names of its parts, which two figures of a page may not share.
    """
    import matplotlib

    from kdlab import plots

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "kdlab"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].strip()
    for part in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r"<!--.*?-->"):
        text = re.sub(part, "", text, flags=re.DOTALL)
    start, rest = text.split(">", 1)
    (box,) = re.findall(r'viewBox="[^"]*"', start)
    rest = rest.replace("xlink:href", "href").replace(INK, "currentColor")
    rest = rest.replace(GRID, "var(--line)").replace(GRID.upper(), "var(--line)")
    rest = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>figure{number}-", rest)
    words = html.escape(plots.alt_text(figure), quote=True)
    return f'<svg role="img" aria-label="{words}" {box}>{rest}'


def _contents(contents: list[tuple[int, str, str]]) -> str:
    """Return links to all headings, those of records within their lesson's."""
    lines: list[str] = []
    for level, anchor, words in contents:
        link = f'<a href="#{anchor}">{html.escape(words)}</a>'
        if level == 2:
            lines.append(f"<li>{link}")
        else:
            lines[-1] += f"{' · ' if ' – ' in lines[-1] else ' – '}{link}"
    return "<ul>" + "</li>\n".join(lines) + "</li></ul>"


def _conditions(table: pd.DataFrame) -> Iterator[str]:
    lines = []
    for what, value, warning in report.conditions(table).itertuples(index=False):
        told = _words(value)
        if warning:
            told += f' <strong class="bad">{html.escape(warning)}</strong>'
        lines.append(f"<tr><th>{_words(what)}</th><td>{told}</td></tr>")
    yield '<div class="wide"><table>' + "\n".join(lines) + "</table></div>"


def _claims(stated: pd.DataFrame) -> Iterator[str]:
    import pandas as pd

    held = [
        f"{held} of {counted(count, 'run')}"
        for held, count in zip(stated["held"], stated["runs"], strict=True)
    ]
    shown = {"claim": stated["claim"].to_list(), "held in": held}
    if any(stated["not_with"]):
        shown["not with"] = stated["not_with"].to_list()
    yield _html_table(pd.DataFrame(shown))


def _record(
    here: list[report.Measure],
    table: pd.DataFrame,
    pictures: list[Picture],
    metrics: list[str] | None,
) -> Iterator[str]:
    """Yield what was measured in one record: what is looked for, then the rest, folded away."""
    first = [m for m in here if is_first(m, metrics)] or here[:1]
    others = [m for m in here if m not in first]
    for m in first:
        yield from _measure(m, table, pictures)
    if others:
        names = html.escape(", ".join(m.metric.replace("_", " ") for m in others))
        yield f"<details><summary>{counted(len(others), 'other measure')}: {names}</summary>"
        for m in others:
            yield from _measure(m, table, pictures)
        yield "</details>"


def _measure(m: report.Measure, table: pd.DataFrame, pictures: list[Picture]) -> Iterator[str]:
    from kdlab import plots

    if m.metric != "value":
        yield f"<h4>{html.escape(m.metric.replace('_', ' '))}</h4>"
    for number, picture in enumerate(pictures):
        if picture.measure is m:
            words = html.escape(plots.alt_text(picture.figure))
            drawn = inline_svg(picture.figure, number)
            yield (
                f'<figure><div class="wide">{drawn}</div><figcaption>{words}</figcaption></figure>'
            )
    summary = report.summary_of(m, table)
    counts = [counted(n, m.counts) for n in summary["n"]]
    yield _html_table(summary[["setting", "mean", "low", "high"]].assign(n=counts))


def _list_of_runs(ends: pd.DataFrame, folder: Path, source: Path) -> str:
    columns = ["run", "status", "seconds", *report.swept(ends), *_seed(ends)]
    links = {run: _link(run, folder, source) for run in ends["run"].head(MOST_LINES)}
    return _html_table(ends[columns], links)


def _seed(table: pd.DataFrame) -> list[str]:
    return ["seed"] if "seed" in table else []


def _link(run: str, folder: Path, source: Path) -> str:
    """Return the address of a run's notebook, from where the page lies."""
    place = source / run
    notebook = next(iter(sorted(place.glob("*.ipynb"))), place) if place.is_dir() else place
    address = os.path.relpath(notebook.resolve(), folder.resolve())
    return quote(Path(address).as_posix(), errors="surrogateescape")


def _html_table(frame: pd.DataFrame, links: dict[str, str] | None = None) -> str:
    """Return a frame as an HTML table; ``links`` are addresses for texts in the column run."""
    from pandas.api.types import is_numeric_dtype

    counts = ("n", "held in")
    kinds = [' class="number"' if is_numeric_dtype(frame[c]) or c in counts else "" for c in frame]
    head = "".join(
        f"<th{kind}>{html.escape(str(c))}</th>" for kind, c in zip(kinds, frame, strict=True)
    )
    lines = [f"<tr>{head}</tr>"]
    for line in frame.head(MOST_LINES).itertuples(index=False):
        cells = []
        for name, kind, value in zip(frame, kinds, line, strict=True):
            text = html.escape(_shown(value)) if name == "error" else _words(_shown(value))
            if name == "run" and links and value in links:
                text = f'<a href="{html.escape(links[value], quote=True)}">{text}</a>'
            bad = ' class="error"' if name == "error" else ""
            bad = ' class="bad"' if name == "status" and value == runs.FAILED else bad
            cells.append(f"<td{bad or kind}>{text}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    more = len(frame) - MOST_LINES
    note = f'<p class="quiet">{counted(more, "more line")}: see report.csv.</p>' if more > 0 else ""
    return f'<div class="wide"><table>{chr(10).join(lines)}</table></div>{note}'


def _words(text: str) -> str:
    """Return a text for the page; words do not break at their hyphens, as in dates and minus."""
    words = html.escape(text).split(" ")
    return " ".join(f'<span class="whole">{word}</span>' if "-" in word else word for word in words)


def _shown(value: object) -> str:
    if value is None or value != value:
        return "–"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= SHOWN_ERROR else text[:SHOWN_ERROR] + "…"
