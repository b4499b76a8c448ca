"""What a gate did: how much it let through, and whether it closed on the teacher's mistakes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from kdlab.losses.gates import gate_counts
from kdlab.metrics.quality import Array


@dataclass(frozen=True)
class GateReport:
    """What a gate did with the samples of a teacher; a soft gate counts in parts.

    Attributes:
        open: mean weight.
        mistakes: fraction of the samples that are labelled and that the teacher gets wrong.
        precision: of what was held back, the fraction that was a mistake. A gate without sense has
            ``mistakes`` here, where all are labelled. NaN if nothing was held back.
        recall: of the mistakes, the fraction that was held back. A gate without sense has
            1 − ``open`` here. NaN if there were none.
    """

    open: float
    mistakes: float
    precision: float
    recall: float


def gate_report(gate: Array, teacher_logits: Array, targets: Array) -> GateReport:
    """Return how much a gate let through, and its precision and recall on the teacher's mistakes.

    Args:
        gate: weights ``[N]`` from 0 to 1.
        teacher_logits: ``[N, C]``.
        targets: ``[N]``, -1 unlabelled; such samples count in ``open`` alone.

    Raises:
        ValueError: shapes that do not fit, no samples, or weights outside [0, 1].

    Lesson 05.
    """
    weights, logits, y = (
        torch.as_tensor(values).detach().cpu() for values in (gate, teacher_logits, targets)
    )
    if weights.dim() != 1 or len(weights) == 0:
        raise ValueError(f"gate: shape {list(weights.shape)}, expected [N], one weight per sample")
    if logits.dim() != 2 or len(logits) != len(weights):
        raise ValueError(
            f"teacher_logits: shape {list(logits.shape)}, expected [{len(weights)}, C]"
        )
    if y.shape != weights.shape:
        raise ValueError(f"targets: shape {list(y.shape)}, expected [{len(weights)}]")
    weights = weights.double()
    if not bool(((weights >= 0) & (weights <= 1)).all()):
        raise ValueError("gate: weights outside [0, 1] or NaN came, expected 0 to 1")
    counts = gate_counts(weights, logits, y)
    return gate_report_of({name: float(value) for name, value in counts.items()})


def gate_report_of(row: Mapping[str, float]) -> GateReport:
    """Return the same of one epoch, from its row of a history.

    Args:
        row: such as ``run.history.last``, of a run with a `Gated` method.

    Raises:
        ValueError: a row without what `Gated` measures.
    """
    if "gate_open" not in row:
        raise ValueError(
            f"row: no gate_open among {', '.join(row) or 'nothing'}; expected a row of the history "
            "of a Gated method"
        )

    def ratio(part: float, whole: float) -> float:
        return part / whole if whole > 0 else math.nan

    return GateReport(
        open=row["gate_open"],
        mistakes=row["teacher_wrong"],
        precision=ratio(row["gate_caught"], row["gate_closed"]),
        recall=ratio(row["gate_caught"], row["teacher_wrong"]),
    )
