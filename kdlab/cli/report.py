"""What the swept parameters did to the results: means, intervals, figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Measure:
    """One column of numbers of one record.

    Attributes:
        lesson, record: where it was recorded.
        metric: the column.
        keys: recorded columns that tell the rows of one run apart: the setting, the layer, ....
        rows: of ``gather``'s table, all that have a number.
    """

    lesson: str
    record: str
    metric: str
    keys: list[str]
    rows: pd.DataFrame


def measures(table: pd.DataFrame, metrics: list[str] | None = None) -> Iterator[Measure]:
    """Yield all that was measured in runs that are done.

    Args:
        table: as ``gather`` gives it.
        metrics: only these columns or records; default: every column of numbers.

    Raises:
        ValueError: nothing of that name was recorded.
    """
    known = set()
    done = table[(table["status"] == runs.DONE) & table["record"].notna()]
    for (lesson, record), rows in done.groupby(["lesson", "record"], sort=False):
        keys = _keys(rows)
        for name in recorded_names(table):
            if name in keys or not _is_number(rows[name]) or rows[name].isna().all():
                continue
            known |= {name, str(record)}
            wanted = {name, str(record)} & set(metrics or [])
            if wanted or (not metrics and name not in BOUNDS and name not in SEEDS):
                there = rows[rows[name].notna()]
                yield Measure(str(lesson), str(record), name, keys, there)
    for name in metrics or []:
        check_known("metric", name, sorted(known))


def lines_of(measure: Measure, x: str) -> tuple[list[str], list[str]]:
    """Return the columns whose combinations are the lines of a figure over ``x``, and the others.

    They are the keys, then the swept parameters, as long as a figure can tell all their
    combinations apart.
    """
    kept: list[str] = []
    others: list[str] = []
    for name in [*measure.keys, *(name for name in swept(measure.rows) if name != x)]:
        few = len(measure.rows[[*kept, name]].drop_duplicates()) <= LINES
        (kept if few else others).append(name)
    return kept, others


def per_seed(measure: Measure, columns: list[str]) -> pd.DataFrame:
    """Return one mean for each setting and seed: what an interval may count as one.

    A lesson that trains with several seeds records them; runs whose seeds follow one another then
    hold the same training twice. It counts once. Without a seed in the record the run's own holds.

    Args:
        measure: one of ``measures``.
        columns: that tell the settings apart; all others are averaged over.
    """
    rows = measure.rows
    unit = next((name for name in SEEDS if name in rows and rows[name].notna().all()), "run")
    groups = rows.groupby([*columns, unit], sort=False, dropna=False)
    return groups[measure.metric].mean().reset_index()


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
    for m in measures(table, metrics):
        columns = [*m.keys, *swept(m.rows)]
        means = per_seed(m, columns)
        for setting, group in means.groupby(named(means, columns, table), sort=False):
            i = mean_interval(group[m.metric])
            lines.append((m.lesson, m.record, m.metric, setting, i.mean, i.low, i.high, i.n))
    columns = ["lesson", "record", "metric", "setting", "mean", "low", "high", "n"]
    return pd.DataFrame(lines, columns=columns)


def named(frame: pd.DataFrame, columns: list[str], table: pd.DataFrame) -> pd.Series:
    """Return one text for each row: ``hints, layer=2, temperature=4``; "all" without columns.

    Args:
        frame: has the columns.
        columns: to be told.
        table: as ``gather`` gives it; its parameters, and numbers, are told with their names.
    """
    import pandas as pd

    names = parameter_names(table)
    texts = [
        ", ".join(
            f"{name}={short(value)}" if name in names or _is_number(frame[name]) else short(value)
            for name, value in zip(columns, line, strict=True)
        )
        for line in frame[columns].itertuples(index=False)
    ]
    return pd.Series([text or "all" for text in texts], index=frame.index, name="setting")


def figures(table: pd.DataFrame, metrics: list[str] | None = None) -> Iterator[Any]:
    """Yield one figure for each measure and swept parameter: means with 95 % intervals.

    Lines are the keys of the record (as a rule the setting) and the other swept parameters; where
    they would be more than eight, the last are averaged over, and the alt text says so.

    Args:
        table: as ``gather`` gives it.
        metrics: as in ``measures``.
    """
    from kdlab import plots

    for m in measures(table, metrics):
        for x in swept(m.rows):
            columns, others = lines_of(m, x)
            means = per_seed(m, [x, *columns])
            means["line"] = named(means, columns, table)
            by = "line" if columns else None
            label = m.record if m.metric == "value" else f"{m.record}: {m.metric}"
            label = label.replace("_", " ")
            figure = plots.swept_points(means, m.metric, x=x, by=by, label=label)
            if others:
                figure.set_label(f"{plots.alt_text(figure)} Averaged over {', '.join(others)}.")
            yield figure


def _keys(rows: pd.DataFrame) -> list[str]:
    """Return the columns that tell the rows of one record in one run apart.

    Texts first; then numbers that every run has alike, as the temperatures at which it measured.
    """
    from pandas.api.types import is_string_dtype

    names = recorded_names(rows)
    texts = [name for name in names if is_string_dtype(rows[name])]
    alike = [name for name in names if _is_number(rows[name]) and _is_alike(rows, name)]
    own = ["run", *(name for name in SEEDS[:1] if name in rows)]
    keys: list[str] = []
    count = len(rows[own].drop_duplicates())
    for name in [*texts, *alike]:
        more = len(rows[[*own, *keys, name]].drop_duplicates())
        if more > count:
            keys.append(name)
            count = more
    return keys


def _is_alike(rows: pd.DataFrame, name: str) -> bool:
    each = rows.groupby("run")[name].apply(tuple)
    return len(each) > 1 and each.nunique() == 1 and name not in BOUNDS and name not in SEEDS


def _is_number(column: pd.Series) -> bool:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return is_numeric_dtype(column) and not is_bool_dtype(column)
