"""Gated distillation: any method, listening to the teacher only where a gate lets it through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.distillers.base import Distiller, Outputs, Wrapper, checked_teacher, side_by_side
from kdlab.distillers.connectors import given
from kdlab.distillers.gates import (
    CollapsingGate,
    ConstantGate,
    FunctionGate,
    Gate,
    GateFunction,
    LearnedGate,
    RandomGate,
    ScheduledGate,
    as_gate,
)
from kdlab.distillers.soft_targets import SoftTargets
from kdlab.losses import weighted_samples
from kdlab.losses.checks import values_are_checked
from kdlab.losses.gates import gate_counts

__all__ = [
    "CollapsingGate",
    "ConstantGate",
    "FunctionGate",
    "Gate",
    "Gated",
    "LearnedGate",
    "RandomGate",
    "ScheduledGate",
    "controls",
]


class Gated(Wrapper):
    """A method whose comparison with the teacher is weighed per sample: 1/B · Σ_i g_i · value_i.

    The loss on the hard labels is not gated. A sample with g = 0 gets a gradient of exactly 0 from
    what is computed for it alone; of a relation between samples only its row is left out. The mean
    stays over the whole batch, so a gate that closes also makes the term weaker: compare it with
    `controls` of the same mean.

    The history gets the columns ``gate_open``, ``gate_closed``, ``teacher_wrong`` and
    ``gate_caught`` (`kdlab.losses.gate_counts`); ``kdlab.metrics.gate_report_of`` makes precision
    and recall on the teacher's mistakes of a row.

    Sources: each gate names its own, such as Minami, Hirakawa, Yamashita, Fujiyoshi, "Knowledge
    Transfer Graph for Deep Collaborative Learning", ACCV 2020, arXiv:1909.04286. Lesson 05.

    Args:
        method: any method with a teacher; None is `SoftTargets`.
        gate: a name of `kdlab.distillers.gates.NAMED`, a function ``(student_logits,
            teacher_logits, targets) -> [B]``, or a `Gate`.

    Raises:
        ValueError: an unknown gate; in training, a method in which nothing is compared with a
            teacher, weights of another shape, or weights outside [0, 1].
    """

    in_tournament = False

    def __init__(
        self, method: Distiller | None = None, gate: str | GateFunction | Gate = "correct"
    ) -> None:
        super().__init__(SoftTargets() if method is None else method)
        self.needs_teacher = True
        self.gate = as_gate(gate)
        self.relates_images = self.relates_images or self.gate.relates_images
        self._measured: dict[str, Tensor] = {}

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Prepare the method and then the gate."""
        super().prepare(student, teacher, train)
        self.gate.prepare(student, given(teacher), train)

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the method's terms, gated."""
        teacher = checked_teacher(teacher, self)
        weights = check_weights(self.gate(student, teacher, targets), len(targets))
        (method,) = self._parts
        with weighted_samples(weights, detach=self.gate.detached) as given:
            terms = self.side_by_side([method(student, teacher, targets)])
        if not given.used:
            raise ValueError(
                f"method: {type(method).__name__} compares nothing with a teacher here, so a gate "
                "has nothing to weigh; gate a method that does, as in Labels() + Gated(Hints())"
            )
        self._measured = gate_counts(weights, teacher.logits, targets)
        return terms

    def measures(self) -> dict[str, Tensor]:
        """Return what the gate did, and what the method measured."""
        return side_by_side([self._measured, super().measures()])


def check_weights(weights: Tensor, samples: int) -> Tensor:
    """Return a gate's weights if they are ``[samples]`` (and, where values are checked, in [0, 1]).

    Raises:
        ValueError: they are not.
    """
    if weights.shape != (samples,):
        raise ValueError(f"gate: weights {list(weights.shape)} came, expected [{samples}]")
    if values_are_checked() and not bool(((weights >= 0) & (weights <= 1)).all()):
        raise ValueError(
            f"gate: weights from {float(weights.min()):g} to {float(weights.max()):g} came, "
            "expected 0 to 1"
        )
    return weights


def controls(
    gated: Gated, history: Sequence[Mapping[str, float]], *, fresh: bool = True
) -> dict[str, Gated]:
    """Return the two controls of a gated run: the same strength, without the gate's choice.

    "random" opens for a random share of the samples, "constant" has one weight for all; both have
    the mean that the gate had over the run. A gate that is no better than both is only a weaker
    teacher.

    Args:
        gated: the method that ran.
        history: its ``run.history.rows``.
        fresh: as in `RandomGate`: False for the control of a gate that judges an image the same way
            every time.

    Raises:
        ValueError: a history without ``gate_open``.
    """
    opens = [row["gate_open"] for row in history if "gate_open" in row]
    if not opens:
        raise ValueError(
            "history: no row with gate_open came, expected run.history.rows of a run with this "
            "gated method"
        )
    mean = min(1.0, max(0.0, sum(opens) / len(opens)))
    (method,) = gated._parts
    return {
        "random": Gated(method, RandomGate(mean, fresh)),
        "constant": Gated(method, ConstantGate(mean)),
    }
