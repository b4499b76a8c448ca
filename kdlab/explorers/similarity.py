"""Which teacher stage each student stage resembles: CKA heat maps to leaf through. Lesson 02."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from kdlab import plots
from kdlab.explorers.base import Explorer


@dataclass(frozen=True)
class Likeness:
    """How one stage of one student resembles the teacher's stages.

    Attributes:
        student: its name.
        stage: of the student.
        values: CKA with each stage of the teacher.
        reference: the same stage of the first student, as a rule the one before training.
        best: the teacher's stage with the largest value.
    """

    student: str
    stage: str
    values: pd.Series
    reference: pd.Series
    best: str

    @property
    def value(self) -> float:
        """CKA with the teacher's stage that is resembled most."""
        return float(self.values[self.best])

    @property
    def change(self) -> float:
        """That value minus the first student's for the same pair of stages."""
        return self.value - float(self.reference[self.best])


class CKAExplorer(Explorer):
    """Choose a student and one of its stages; see how it resembles each stage of the teacher.

    Args:
        matrices: student → table of CKA, one row per stage of the student, one column per stage of
            the teacher (``metrics.cka_matrix(student, teacher)``). The first is what the others are
            compared with: as a rule the student before training.
        goal: what to find out, shown above the controls.

    Raises:
        ValueError: no tables, an empty one, other stages than in the first, a stage twice, or
            values that are not from -1 to 1.
    """

    def __init__(self, matrices: Mapping[str, pd.DataFrame], *, goal: str = "") -> None:
        self.matrices = {
            name: table.rename(index=str, columns=str) for name, table in matrices.items()
        }
        self._check()
        self.first = next(iter(self.matrices))
        stages = list(self.matrices[self.first].index)
        super().__init__(
            {
                "student": widgets.Dropdown(options=list(self.matrices), description="student"),
                "stage": widgets.SelectionSlider(options=stages, description="student's stage"),
            },
            goal=goal,
            size=(plots.WIDTH, 1.35 + 0.42 * max(4, len(stages))),
        )

    def compute(self, state: dict[str, Any]) -> Likeness:
        """Look the row of ``state["student"]`` and ``state["stage"]`` up."""
        student, stage = state["student"], state["stage"]
        values = self.matrices[student].loc[stage]
        return Likeness(
            student, stage, values, self.matrices[self.first].loc[stage], str(values.idxmax())
        )

    def draw(self, figure: Figure, result: Likeness) -> None:
        """Draw the heat map with the chosen row on the left, that row as a line on the right."""
        new = not figure.axes
        if new:
            figure.subplots(1, 2, width_ratios=(1.7, 1))
        left, right = figure.axes
        left.clear()
        right.clear()
        table = self.matrices[result.student]
        plots.draw_heat_map(
            left, table, row=result.stage, cell=(result.stage, result.best), low=0.0, high=1.0
        )
        left.set_title(f"CKA: {result.student}")
        left.set_xlabel("stage of the teacher")
        left.set_ylabel("stage of the student")
        places = np.arange(len(result.values))
        right.plot(places, result.reference, "o--", color=plots.GREY, lw=1.5, label=self.first)
        if result.student != self.first:
            right.plot(places, result.values, "o-", color=plots.VERMILION, label=result.student)
        names = [str(name) for name in result.values.index]
        right.set_xticks(places, names)
        if sum(map(len, names)) > 24:  # characters that fit side by side
            right.tick_params(axis="x", rotation=90)
        right.set_xlim(-0.4, len(places) - 0.6)
        right.set_ylim(min(-0.05, self._lowest() - 0.05), 1.35)  # with room for the legend
        right.set_yticks(np.linspace(0, 1, 6))
        right.grid(axis="y")
        right.set_title(f"CKA of {result.stage}")
        right.set_xlabel("stage of the teacher")
        right.legend(loc="upper right", fontsize=9)
        if new:
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # the places are found: nothing jumps from now on

    def describe(self, result: Likeness) -> str:
        """Return the teacher's stage that is resembled most, its value, and what has changed."""
        told = (
            f"{result.student} | {result.stage} resembles the teacher's {result.best} most: "
            f"CKA {result.value:z.2f}"
        )
        if result.student == self.first:
            return told
        return f"{told} | {result.change:+z.2f} against {self.first}"

    def _lowest(self) -> float:
        return min(float(table.to_numpy().min()) for table in self.matrices.values())

    def _check(self) -> None:
        if not self.matrices:
            raise ValueError("matrices is empty: give at least one student → table of CKA")
        first, expected = next(iter(self.matrices.items()))
        for name, table in self.matrices.items():
            if table.empty:
                raise ValueError(f"matrices[{name!r}] is empty; expected a table of CKA")
            if not (table.index.is_unique and table.columns.is_unique):
                raise ValueError(f"matrices[{name!r}] has a stage twice; expected different names")
            if not (table.index.equals(expected.index) and table.columns.equals(expected.columns)):
                given, wanted = (
                    f"{list(t.index)} (rows) and {list(t.columns)}" for t in (table, expected)
                )
                raise ValueError(
                    f"matrices[{name!r}] has the stages {given}; expected those of {first!r}: "
                    f"{wanted}"
                )
            values = table.to_numpy(dtype=float)
            if not (np.abs(values) <= 1 + 1e-9).all():
                raise ValueError(
                    f"matrices[{name!r}] has values from {values.min():g} to {values.max():g}; "
                    "expected CKA, from -1 to 1 and no NaN"
                )
