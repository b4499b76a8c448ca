"""What a table of models holds: costs and qualities with names, units and intervals. Lesson 06."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kdlab.metrics import mean_interval


class Amount(NamedTuple):
    """How a cost is told: its name and unit, what that is, and how many digits are certain."""

    name: str
    unit: str
    by: float
    digits: int = 3  # what a clock or a meter measured has but one

    def text(self, value: float) -> str:
        """A cost with its unit; coarse where it differs from run to run."""
        about = "about " if self.digits == 1 else ""
        return f"{about}{float(f'{value / self.by:.{self.digits}g}'):,.10g} {self.unit}"


class Score(NamedTuple):
    """How a quality is told: its name, whether it is a share, and whether less is better."""

    name: str
    share: bool = True
    less: bool = False

    def text(self, value: float) -> str:
        """A quality, as percentage if it is a share."""
        return f"{value:.1%}" if self.share else f"{value:.2f}"


COSTS = {
    "bytes": Amount("file", "kB", 1e3),
    "parameters": Amount("parameters", "thousand", 1e3),
    "flops": Amount("FLOPs of one sample", "million", 1e6),
    "latency_ms": Amount("latency", "ms", 1, 1),
    "memory_bytes": Amount("memory", "kB", 1e3),
    "energy_joules": Amount("energy of one sample", "mJ", 1e-3, 1),
}
QUALITIES = {
    "accuracy": Score("test accuracy"),
    "agreement": Score("agreement with the teacher"),
    "ece": Score("calibration error", less=True),
    "nll": Score("negative log-likelihood", share=False, less=True),
    "kl_to_teacher": Score("KL from the teacher", share=False, less=True),
}


@dataclass(frozen=True)
class Models:
    """A table of models, one row each.

    Attributes:
        costs: column → how it is told; those that are known of some model.
        qualities: likewise.
        means: a row for each model, its name as index: ``made_by``, ``seeds`` (how many),
            ``val_accuracy``, and the columns of ``costs`` and ``qualities``.
        bounds: quality → ``low`` and ``high`` of its 95 % interval, NaN with one seed; rows as in
            ``means``.
    """

    costs: dict[str, Amount]
    qualities: dict[str, Score]
    means: pd.DataFrame
    bounds: dict[str, pd.DataFrame]

    def cheapest_first(self, cost: str) -> list[str]:
        """All names in the order of a cost; those of which it is not known come last."""
        return list(self.means.sort_values(cost, kind="stable").index)

    def describe(self, name: str) -> str:
        """All numbers of one model in one line."""
        row: Any = self.means.loc[name]
        told = [
            f"{score.name} {score.text(row[column])}" + self._interval(column, name)
            for column, score in self.qualities.items()
            if not math.isnan(row[column])
        ]
        told += [
            f"{amount.name} {amount.text(row[column])}"
            for column, amount in self.costs.items()
            if not math.isnan(row[column])
        ]
        of = f"{row['seeds']} seeds" if row["seeds"] > 1 else "one seed"
        return f"{name} ({row['made_by']}, {of}), {', '.join(told)}"

    def _interval(self, quality: str, name: str) -> str:
        low, high = self.bounds[quality].to_numpy()[self.means.index.get_loc(name)]
        score = self.qualities[quality]
        return "" if math.isnan(low) else f" [{score.text(low)}, {score.text(high)}]"


def read_models(table: pd.DataFrame) -> Models:
    """Average a table with a row for each model and seed.

    Raises:
        ValueError: what `ParetoExplorer` raises.
    """
    if missing := [c for c in ("model", "made_by", "accuracy", "val_accuracy") if c not in table]:
        raise ValueError(f"table: column {', '.join(missing)} is missing")
    if table.empty:
        raise ValueError("table has no rows; expected one for each model")
    columns = [c for c in ("val_accuracy", *QUALITIES, *COSTS) if c in table]
    numbers = table[columns].astype(float)  # what was None is NaN now
    known = [c for c in columns if numbers[c].notna().any()]
    costs = known_costs(table, known)
    if not costs:
        raise ValueError(f"table: no cost is known; expected a column of {', '.join(COSTS)}")
    table = pd.concat([table[["model", "made_by"]].astype(str), numbers[known]], axis=1)
    _check(table, costs)
    groups = {str(name): rows for name, rows in table.groupby("model", sort=False)}
    index = pd.Index(groups, name="model")
    means = pd.DataFrame(
        [
            {"made_by": rows["made_by"].iloc[0], "seeds": len(rows)}
            | {column: rows[column].mean(skipna=False) for column in known}
            for rows in groups.values()
        ],
        index=index,
    )
    qualities = {name: score for name, score in QUALITIES.items() if name in known}
    bounds = {}
    for column in qualities:
        found = [mean_interval(rows[column]) for rows in groups.values()]
        bounds[column] = pd.DataFrame([(i.low, i.high) for i in found], index, ["low", "high"])
    return Models(costs, qualities, means, bounds)


def pareto_front(cost: pd.Series, quality: pd.Series) -> list[str]:
    """Names of those that are better than all that cost no more, cheapest first.

    Args:
        cost: by name; less is better.
        quality: of the same names; more is better.
    """
    front: list[str] = []
    order = np.lexsort([-quality.to_numpy(), cost.to_numpy()])
    for name in cost.index[order]:
        if not front or quality[name] > quality[front[-1]]:
            front.append(str(name))
    return front


def known_costs(table: pd.DataFrame, known: Iterable[str]) -> dict[str, Amount]:
    """The costs among the columns; their names say of how many samples, and what is a guess."""
    costs = {name: amount for name, amount in COSTS.items() if name in known}
    if "latency_ms" in costs and "batch" in table and table["batch"].nunique() == 1:
        batch = int(table["batch"].iloc[0])
        of = "one sample" if batch == 1 else f"{batch} samples"
        costs["latency_ms"] = costs["latency_ms"]._replace(name=f"latency of {of}")
    sources = table["energy_from"].astype(str) if "energy_from" in table else pd.Series(dtype=str)
    if "energy_joules" in costs and sources.str.startswith("estimate").any():
        amount = costs["energy_joules"]
        costs["energy_joules"] = amount._replace(name=f"estimated {amount.name}")
    return costs


def _check(table: pd.DataFrame, costs: Iterable[str]) -> None:
    """Refuse numbers that cannot be, and models of two kinds."""
    shares = [name for name, score in QUALITIES.items() if score.share and name in table]
    for column in ("val_accuracy", *shares):
        wrong = ~table[column].between(0, 1)
        if column not in ("accuracy", "val_accuracy"):
            wrong &= table[column].notna()
        if wrong.any():
            row = table[wrong].iloc[0]
            raise ValueError(
                f"table: {column} of {row['model']!r} is {row[column]:g}; expected 0 to 1"
            )
    for column in costs:
        wrong = ~(table[column] > 0) & table[column].notna() | np.isinf(table[column])
        if wrong.any():
            row = table[wrong].iloc[0]
            raise ValueError(
                f"table: {column} of {row['model']!r} is {row[column]:g}; expected a cost above 0, "
                "or NaN where it is not known"
            )
    kinds = table.groupby("model", sort=False)["made_by"].nunique()
    if (kinds > 1).any():
        raise ValueError(
            f"table: {kinds.idxmax()!r} has several made_by; expected one for each model"
        )
