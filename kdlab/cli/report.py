"""What the swept parameters did to the results: means, intervals, figures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdlab.cli import runs
from kdlab.cli.gathering import column_of, parameter_names, recorded_names
from kdlab.words import check_known, counted, short

if TYPE_CHECKING:
    import pandas as pd

BOUNDS = {"n", "low", "high"}  # of an interval that a lesson recorded: no results by themselves
SEEDS = ("record_seed", "seed")
ALIKE = 1e-6  # relative: two trainings that come so near to each other are the same one
LINES = 6  # that can be told apart in a panel
PANELS = 12  # of a figure
LARGEST = 1e100  # that an axis can show


def swept(table: pd.DataFrame) -> list[str]:
    """Return the parameters that differ between runs of one lesson, without the seed."""
    names = [name for name in parameter_names(table) if name != "seed"]
    most = table.groupby("lesson")[names].nunique(dropna=False).max()
    return [name for name in names if most[name] > 1]


@dataclass(frozen=True)
class Measure:
    """One column of numbers of one record.

    Attributes:
        lesson, record: where it was recorded.
        metric: the column.
        keys: recorded columns that tell the rows of one run apart: the setting, the layer, ....
        rows: of ``gather``'s table, all that have a number.
        unit: the column whose values are independent of one another, of which ``n`` are counted.
    """

    lesson: str
    record: str
    metric: str
    keys: list[str]
    rows: pd.DataFrame
    unit: str

    @property
    def counts(self) -> str:
        """What ``n`` counts, in the singular: seed (of the lesson's own trainings) or run."""
        return "seed" if self.unit == SEEDS[0] else "run"


def measures(table: pd.DataFrame, metrics: list[str] | None = None) -> Iterator[Measure]:
    """Yield all that was measured in runs that are done.

    Args:
        table: as ``gather`` gives it.
        metrics: only these columns or records; default: every column of numbers.

    Raises:
        ValueError: nothing of that name was recorded.
    """
    known = set()
    done = table[(table["status"] == runs.DONE) & table["record"].notna() & table["claim"].isna()]
    for (lesson, record), mixed in done.groupby(["lesson", "record"], sort=False):
        rows, _ = _of_one_kind(mixed)
        keys = _keys(rows)
        for name in recorded_names(table):
            if name in keys or not _is_number(rows[name]) or rows[name].isna().all():
                continue
            known |= {name, str(record)}
            wanted = {name, str(record)} & set(metrics or [])
            if wanted or (not metrics and name not in BOUNDS and name not in SEEDS):
                there = rows[rows[name].notna()]
                unit = _unit(there, name, [*keys, *swept(there)])
                yield Measure(str(lesson), str(record), name, keys, there, unit)
    for name in metrics or []:
        check_known("metric", name, sorted(known))


def _of_one_kind(rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, list[Any]]]:
    """Return the rows of a record with columns of one kind each, and the values left out for it.

    Of a column that has numbers too the rest is left out, as an "n/a" is; but what every run has
    alike, as the layers "stem", 1, 2, tells rows apart and becomes text.
    """
    made, left = {}, {}
    for name in [name for name in recorded_names(rows) if rows[name].dtype == object]:
        values = list(rows[name])
        column = column_of(values, mixed=True)
        if column.dtype == object:
            numbers = [v if isinstance(v, int | float) and not isinstance(v, bool) else None
                       for v in values]  # fmt: skip
            is_measure = any(v is not None for v in numbers) and not _is_alike(rows, name)
            column = column_of(numbers if is_measure else values, mixed=False)
            if is_measure:
                pairs = zip(values, numbers, strict=True)
                left[name] = [v for v, n in pairs if n is None and v is not None and v == v]
        made[name] = column.set_axis(rows.index)
    return rows.assign(**made), left


def lines_of(measure: Measure, x: str) -> tuple[list[str], list[str]]:
    """Return the columns whose combinations are the lines of a figure over ``x``, and the others.

    They are the keys, always, then the swept parameters, as long as a figure has room for all
    their combinations. Only a parameter is averaged over, never what the lesson compares.
    """
    kept, others = list(measure.keys), list[str]()
    for name in swept(measure.rows):
        if name != x:
            more = [*kept, name]
            _, columns = in_panels(measure.rows, more)
            panels = len(measure.rows[columns].drop_duplicates()) if columns else 1
            lines = len(measure.rows[more].drop_duplicates())
            fits = panels <= PANELS and lines <= PANELS * LINES
            (kept if fits else others).append(name)
    return kept, others


def in_panels(frame: pd.DataFrame, columns: list[str]) -> tuple[list[str], list[str]]:
    """Return which columns name the lines of a panel, at most six, and which the panels.

    As many of the first columns as can be, else of the last; where both are too many, all columns
    name lines, and panels get six lines each.
    """
    parts = [(columns[:end], columns[end:]) for end in range(len(columns), 0, -1)]
    parts += [(columns[start:], columns[:start]) for start in range(1, len(columns))]
    for lines, panels in parts:
        if len(frame[lines].drop_duplicates()) <= LINES:
            return lines, panels
    return columns, []


def per_unit(measure: Measure, columns: list[str]) -> pd.DataFrame:
    """Return one mean for each setting and unit: what an interval may count as one.

    Where a lesson trains with several seeds and the run's own seed changes nothing in these
    trainings, runs whose seeds follow one another hold the same training twice: the unit is the
    lesson's seed (``n`` counts seeds). Where trainings with one such seed differ between runs, the
    run's seed draws something that they share, as the images: the unit is the run (``n`` counts
    runs), and the mean over its trainings is one measurement. So it is too where a lesson records
    no seeds. Runs with the same seed count once.

    Args:
        measure: one of ``measures``.
        columns: that tell the settings apart; all others are averaged over.
    """
    return _means(measure.rows, measure.metric, [*columns, measure.unit])


def summary(table: pd.DataFrame, metrics: list[str] | None = None) -> pd.DataFrame:
    """Return mean, low and high (95 % interval, Student's t) and n of each measure and setting.

    Args:
        table: as ``gather`` gives it.
        metrics: as in ``measures``.

    Returns:
        Columns lesson, record, metric, setting, mean, low, high, n, counted: what n counts,
        "seeds" of the lesson's own trainings or "runs" (see ``per_unit``).
    """
    import pandas as pd

    parts = [summary_of(m, table) for m in measures(table, metrics)]
    columns = ["lesson", "record", "metric", "setting", "mean", "low", "high", "n", "counted"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def summary_of(measure: Measure, table: pd.DataFrame) -> pd.DataFrame:
    """Return the lines of one measure, as ``summary`` does."""
    import pandas as pd

    from kdlab.metrics import mean_interval

    m = measure
    columns = [*m.keys, *swept(m.rows)]
    means = per_unit(m, columns)
    lines = []
    for setting, group in means.groupby(named(means, columns, table), sort=False):
        i = mean_interval(group[m.metric])
        lines.append((setting, i.mean, i.low, i.high, i.n))
    frame = pd.DataFrame(lines, columns=["setting", "mean", "low", "high", "n"])
    for place, name in enumerate(("lesson", "record", "metric")):
        frame.insert(place, name, getattr(m, name))
    return frame.assign(counted=f"{m.counts}s")


def claims(table: pd.DataFrame) -> pd.DataFrame:
    """Return what the lessons claimed, and in how many runs it held.

    A run that failed over a claim counts as one in which it did not hold.

    Args:
        table: as ``gather`` gives it.

    Returns:
        Columns lesson, claim, held (in so many), runs (of so many), not_with: settings of runs in
        which it did not hold, the first three.
    """
    import pandas as pd

    stated = table[table["claim"].notna()]
    lines = []
    for (lesson, claim), rows in stated.groupby(["lesson", "claim"], sort=False):
        holds = rows["holds"].astype(bool).groupby(rows["run"], sort=False).all()
        broken = rows[~rows["run"].map(holds).astype(bool)].drop_duplicates("run")
        differ = [*swept(table[table["lesson"] == lesson]), *(n for n in SEEDS[1:] if n in table)]
        where = list(named(broken, differ, table))
        more = [f"and {len(where) - 3} more"] if len(where) > 3 else []
        lines.append((lesson, claim, holds.sum(), len(holds), "; ".join(where[:3] + more)))
    return pd.DataFrame(lines, columns=["lesson", "claim", "held", "runs", "not_with"])


def conditions(table: pd.DataFrame) -> pd.DataFrame:
    """Return under which conditions the runs were made: what, value, warning ("" if all is well).

    Args:
        table: as ``gather`` gives it.
    """
    import pandas as pd

    ends = table.drop_duplicates("run")
    lines = []
    for lesson, rows in ends.groupby("lesson", sort=False):
        names = parameter_names(table)
        alike = [n for n in names if rows[n].notna().all() and rows[n].nunique() == 1]
        told = named(rows.head(1), alike, table).iloc[0] if alike else "no parameter is alike"
        lines.append((f"{lesson}: all runs", told, ""))
        lines.append((f"{lesson}: notebook", *_versions(rows["source"])))
        lines += [(f"{lesson}: {path}", *found) for path, found in _data(table, rows)]
        lines += _left_out(table[table["lesson"] == lesson])
    lines += [(name, *_versions(ends[name])) for name in ("kdlab", "torch")]
    lines += [(name, _versions(ends[name])[0], "") for name in ("machine", "threads")]
    dates = ends["started"].dropna()
    first_last = dict.fromkeys([] if dates.empty else [dates.min(), dates.max()])
    lines.append(("started", " to ".join(first_last) or "not known", ""))
    skipped = table.attrs.get("skipped", {}).items()
    lines += [(f"skipped: {path}", why, "it is no run") for path, why in skipped]
    return pd.DataFrame(lines, columns=["what", "value", "warning"])


def _data(table: pd.DataFrame, ends: pd.DataFrame) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield paths of data whose content differs between runs, with a warning."""
    known = [table.attrs.get("data", {}).get(run, {}) for run in ends["run"]]
    for path in sorted({path for one in known for path in one}):
        contents = column_of([one[path] for one in known if path in one], mixed=False)
        if contents.nunique() > 1:
            yield path, _versions(contents)


def _left_out(rows: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    """Yield what stands among the numbers of a record and is none."""
    for record, part in rows.groupby("record", sort=False):
        for name, values in _of_one_kind(part)[1].items():
            told = ", ".join(dict.fromkeys(str(value)[:40] for value in values[:5]))
            yield f"{record}: {name}", told, f"left out of means: {counted(len(values), 'value')}"


def _versions(column: pd.Series) -> tuple[str, str]:
    """Return all values of a column, and a warning if there are several."""
    known = list(dict.fromkeys(map(short, column.dropna())))
    warning = f"the runs are of {len(known)} versions" if len(known) > 1 else ""
    return ", ".join(known) or "not known", warning


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

    Lines are the keys of the record (as a rule the setting) and the other swept parameters. More
    than six lines come in several panels. Where a parameter has more values than panels have room
    for, it is averaged over, and the title says so. What is the same everywhere gets no figure.

    Args:
        table: as ``gather`` gives it.
        metrics: as in ``measures``.
    """
    for m in measures(table, metrics):
        yield from (figure for _, figure in figures_of(m, table))


def figures_of(measure: Measure, table: pd.DataFrame) -> Iterator[tuple[str, Any]]:
    """Yield (parameter, figure) of one measure, as ``figures`` does."""
    from kdlab import plots

    m = measure
    drawable = m.rows[m.metric].nunique() > 1 and m.rows[m.metric].abs().max() < LARGEST
    for x in swept(m.rows) if drawable else []:
        columns, others = lines_of(m, x)
        means = per_unit(m, [x, *columns])
        lines, panels = in_panels(means, columns)
        if len(means[columns].drop_duplicates()) > PANELS * LINES:
            continue  # nobody could read it
        means["line"] = named(means, lines, table)
        means["panel"] = named(means, panels, table)
        if columns and not panels:
            order = {line: number for number, line in enumerate(means["line"].unique())}
            each = math.ceil(len(order) / math.ceil(len(order) / LINES))
            means["panel"] = means["line"].map(order) // each
        label = m.record if m.metric == "value" else f"{m.record}: {m.metric}"
        figure = plots.swept_points(
            means,
            m.metric,
            x=x,
            by="line" if columns else None,
            panels="panel" if means["panel"].nunique() > 1 else None,
            label=label.replace("_", " "),
            title=f"Averaged over {', '.join(others)}." if others else None,
        )
        yield x, figure


def _unit(rows: pd.DataFrame, metric: str, setting: list[str]) -> str:
    """Return the column whose values are independent measurements of one setting."""
    inner, own = SEEDS
    if inner in rows and rows[inner].notna().all():
        each = _means(rows, metric, [*setting, inner, "run"])
        groups = each.groupby([*setting, inner], dropna=False)[metric]
        low, high = groups.min(), groups.max()
        if (high - low <= ALIKE * abs(low).combine(abs(high), max)).all():
            return inner
    return own if own in rows and rows[own].notna().all() else "run"


def _means(rows: pd.DataFrame, metric: str, columns: list[str]) -> pd.DataFrame:
    return rows.groupby(columns, sort=False, dropna=False)[metric].mean().reset_index()


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
