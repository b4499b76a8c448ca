"""The notebook of a report: what its page shows, as cells from which a person goes on."""

from typing import Any

from kdlab.cli.gathering import MARK

CELLS = [
    (
        "markdown",
        """\
# Report

The records of many runs in one table, and what each swept parameter did to the results. Change the
parameters, or go on below with cells of your own; `kdlab report` writes this file anew, so save
your own version under another name.""",
    ),
    ("parameters", ""),
    (
        "code",
        """\
from kdlab import plots
from kdlab.cli import report
from kdlab.cli.gathering import gather

table = gather(runs)
table.head(10)""",
    ),
    (
        "markdown",
        """\
Columns: about the run, then the parameters of the lesson, then what it recorded. A run has one row
for each record, and for each row of a record that is a table.""",
    ),
    (
        "code",
        """\
runs_seen = table.drop_duplicates("run")
failed = runs_seen[runs_seen["status"] == "failed"]
swept = ", ".join(report.swept(table)) or "nothing"
print(f"{len(runs_seen)} runs, {len(failed)} failed; swept: {swept}.")""",
    ),
    ("code", 'failed[["run", *report.swept(table), "error"]]'),
    ("code", "report.conditions(table)"),
    (
        "markdown",
        """\
## Claims

What the lessons found with their own parameters, and in how many of these runs it held.""",
    ),
    ("code", "report.claims(table)"),
    (
        "markdown",
        """\
## Results

Means over the runs of one setting, with 95 % intervals (Student's t). `n` counts runs, or the seeds
with which a run trains where the run's own seed changes nothing in these trainings. Intervals that
overlap do not say that there is no difference; runs with the same seeds may be compared seed by
seed (`kdlab.metrics.paired_difference`).""",
    ),
    (
        "code",
        """\
summary = report.summary(table, metrics)
summary""",
    ),
    (
        "code",
        """\
for figure in report.figures(table, metrics):
    plots.show(figure)""",
    ),
    (
        "markdown",
        """\
## Go on

`report.measures(table)` gives each measure with its rows; `table` is an ordinary DataFrame. The
highest mean of each measure, for a start. To choose a setting by it, measure the choice on
validation data and the winner once on test data.""",
    ),
    (
        "code",
        """\
best = summary.sort_values("mean", ascending=False).drop_duplicates(["lesson", "record", "metric"])
best""",
    ),
]


def notebook(runs: str, metrics: list[str]) -> Any:
    """Return the notebook, not yet executed.

    Args:
        runs: path of the folder with the runs, from where the notebook will lie.
        metrics: as in ``report.measures``.
    """
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    made = new_notebook(metadata={MARK: True})
    for number, (kind, source) in enumerate(CELLS):
        make = new_markdown_cell if kind == "markdown" else new_code_cell
        cell = make(source, id=f"report-{number:02d}")
        if kind == "parameters":
            cell.metadata["tags"] = ["parameters"]
            cell.source = (
                f"runs: str = {runs!r}  # the folder with the runs, seen from here\n"
                f"metrics: list[str] = {metrics!r}  # only these columns or records; none: all"
            )
        made.cells.append(cell)
    return made
