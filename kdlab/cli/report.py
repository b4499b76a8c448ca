"""What the swept parameters did to the results: means, intervals, figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kdlab.cli import runs
from kdlab.cli.gathering import parameter_names, recorded_names
from kdlab.words import check_known, short

if TYPE_CHECKING:
    import pandas as pd

BOUNDS = {"n", "low", "high"}  # of an interval that a lesson recorded: no results by themselves
SEEDS = ("record_seed", "seed")
LINES = 8  # that a figure can tell apart


def swept(table: pd.DataFrame) -> list[str]:
    """Return the parameters that differ between runs, without the seed."""
    return [n for n in parameter_names(table) if n != "seed" and table[n].nunique(dropna=False) > 1]


def measures(
    table: pd.DataFrame, metrics: list[str] | None = None
) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """Yield (lesson, record, metric, rows) for all that was measured in runs that are done.

    Args:
        table: as ``gather`` gives it.
        metrics: only these columns or records; default: every column of numbers.

    Raises:
        ValueError: nothing of that name was recorded.
    """
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    known = set()
    done = table[(table["status"] == runs.DONE) & table["record"].notna()]
    for (lesson, record), rows in done.groupby(["lesson", "record"], sort=False):
        for name in recorded_names(table):
            column = rows[name]
            if is_bool_dtype(column) or not is_numeric_dtype(column) or column.isna().all():
                continue
            known |= {name, str(record)}
            wanted = {name, str(record)} & set(metrics or [])
            if wanted or (not metrics and name not in BOUNDS and name not in SEEDS):
                yield str(lesson), str(record), name, rows[column.notna()]
    for name in metrics or []:
        check_known("metric", name, sorted(known))


def lines_of(rows: pd.DataFrame, x: str) -> tuple[list[str], list[str]]:
    """Return the columns whose combinations are the lines of a figure over ``x``, and the others.

    They are what was recorded as text (as a rule the setting), then the swept parameters, as long
    as a figure can tell all their combinations apart.
    """
    kept: list[str] = []
    others: list[str] = []
    for name in [*_texts(rows), *(name for name in swept(rows) if name != x)]:
        few = len(rows[[*kept, name]].drop_duplicates()) <= LINES
        (kept if few else others).append(name)
    return kept, others


def per_seed(rows: pd.DataFrame, metric: str, columns: list[str]) -> pd.DataFrame:
    """Return one mean of ``metric`` for each setting and seed: what an interval may count as one.

    A lesson that trains with several seeds records them; runs whose seeds follow one another then
    hold the same training twice. It counts once. Without a seed in the record the run's own holds.

    Args:
        rows: of one measure, as ``measures`` gives them.
        metric: column of numbers.
        columns: that tell the settings apart; all others are averaged over.
    """
    known = (name for name in SEEDS if name in rows and rows[name].notna().all())
    unit = next(known, "run")
    return rows.groupby([*columns, unit], sort=False, dropna=False)[metric].mean().reset_index()


def summary(table: pd.DataFrame, metrics: list[str] | None = None) -> pd.DataFrame:
    """Return mean, low and high (95 % interval, Student's t) and n of each measure and setting.

    Args:
        table: as ``gather`` gives it.
        metrics: as in ``measures``.

    Returns:
        Columns lesson, record, metric, setting, mean, low, high, n (seeds).
    """
    import pandas as pd

    from kdlab.metrics import mean_interval

    lines = []
    for lesson, record, metric, rows in measures(table, metrics):
        columns = [*_texts(rows), *swept(rows)]
        means = per_seed(rows, metric, columns)
        for setting, group in means.groupby(named(means, columns, table), sort=False):
            i = mean_interval(group[metric])
            lines.append((lesson, record, metric, setting, i.mean, i.low, i.high, i.n))
    columns = ["lesson", "record", "metric", "setting", "mean", "low", "high", "n"]
    return pd.DataFrame(lines, columns=columns)


def named(frame: pd.DataFrame, columns: list[str], table: pd.DataFrame) -> pd.Series:
    """Return one text for each row: ``hints, temperature=4``; "all" without columns.

    Args:
        frame: has the columns.
        columns: to be told.
        table: as ``gather`` gives it; its parameters are told with their names.
    """
    import pandas as pd

    names = parameter_names(table)
    texts = [
        ", ".join(
            f"{name}={short(value)}" if name in names else short(value)
            for name, value in zip(columns, line, strict=True)
        )
        for line in frame[columns].itertuples(index=False)
    ]
    return pd.Series([text or "all" for text in texts], index=frame.index, name="setting")


def figures(table: pd.DataFrame, metrics: list[str] | None = None) -> Iterator[Any]:
    """Yield one figure for each measure and swept parameter: means with 95 % intervals.

    Lines are what was recorded as text and the other swept parameters; where they would be more
    than eight, the last are averaged over, and the alt text says so.

    Args:
        table: as ``gather`` gives it.
        metrics: as in ``measures``.
    """
    from kdlab import plots

    for _, record, metric, rows in measures(table, metrics):
        for x in swept(rows):
            columns, others = lines_of(rows, x)
            means = per_seed(rows, metric, [x, *columns])
            means["line"] = named(means, columns, table)
            by = "line" if columns else None
            label = (record if metric == "value" else f"{record}: {metric}").replace("_", " ")
            figure = plots.swept_points(means, metric, x=x, by=by, label=label)
            if others:
                figure.set_label(f"{plots.alt_text(figure)} Averaged over {', '.join(others)}.")
            yield figure


def _texts(rows: pd.DataFrame) -> list[str]:
    """Return the first recorded column of texts that names a few settings, if there is one."""
    from pandas.api.types import is_string_dtype

    texts = [name for name in recorded_names(rows) if is_string_dtype(rows[name])]
    return [name for name in texts if 1 < rows[name].nunique() <= LINES][:1]
