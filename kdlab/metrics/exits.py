"""What early exits are worth: the accuracy of each, and accuracy against mean cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kdlab.metrics.quality import Array, accuracy

THRESHOLDS = (*np.linspace(0.0, 1.0, 51).tolist(), math.inf)  # the last: nobody leaves early


@dataclass(frozen=True)
class ExitCurve:
    """What each confidence threshold gives.

    Attributes:
        thresholds: ``[T]``, ascending.
        accuracy: fraction correct, ``[T]``.
        cost: mean cost of a sample, ``[T]``, in the unit of the exits' costs.
        shares: fraction of the samples that leave at each exit, ``[T, E]``.
    """

    thresholds: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    cost: NDArray[np.float64]
    shares: NDArray[np.float64]


def exit_accuracies(logits: Array, targets: Array) -> tuple[float, ...]:
    """Accuracy of each exit if it answered for all.

    Args:
        logits: ``[N, E, C]``, as of ``predict(with_exits(model, heads), images)``.
        targets: ``[N]``.

    Raises:
        ValueError: logits of another rank, and what `accuracy` raises.
    """
    return tuple(accuracy(each, targets) for each in _by_exit(logits))


def first_sure_exit(logits: Array, threshold: float) -> NDArray[np.int64]:
    """The first exit of each sample ``[N]`` whose confidence is at least ``threshold``.

    Confidence is the largest probability. The last exit answers for those that no exit is sure of,
    so 0 takes the first exit for all and a threshold above 1 the last.

    Args:
        logits: ``[N, E, C]``.
        threshold: of the confidence.

    Raises:
        ValueError: logits of another rank.
    """
    sure = torch.stack([z.double().softmax(-1).amax(-1) >= threshold for z in _by_exit(logits)], 1)
    sure[:, -1] = True
    return sure.int().argmax(1).numpy()


def exit_curve(
    logits: Array,
    targets: Array,
    costs: Sequence[float],
    thresholds: Sequence[float] = THRESHOLDS,
) -> ExitCurve:
    """Accuracy and mean cost for each threshold, every sample leaving at its first sure exit.

    Args:
        logits: ``[N, E, C]``.
        targets: ``[N]``.
        costs: of one sample up to each exit, such as ``EarlyExits.costs`` counts them.
        thresholds: of the confidence.

    Raises:
        ValueError: logits of another rank, other than E costs, no threshold, and what `accuracy`
            raises.
    """
    exits = _by_exit(logits)
    if len(costs) != len(exits):
        raise ValueError(f"costs: {len(costs)} came, expected one for each of {len(exits)} exits")
    if len(thresholds) == 0:
        raise ValueError("thresholds: none came, expected at least one")
    answers, rows = torch.stack(exits, 1), []
    for threshold in sorted(thresholds):
        chosen = first_sure_exit(answers, threshold)
        share = np.bincount(chosen, minlength=len(exits)) / len(chosen)
        right = accuracy(answers[torch.arange(len(chosen)), chosen], targets)
        rows.append((threshold, right, float(share @ np.asarray(costs, float)), share))
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return ExitCurve(*columns)


def choose_threshold(curve: ExitCurve, at_least: float) -> float:
    """The threshold that is cheapest of those with an accuracy of ``at_least``.

    Give the curve of validation data, and measure on test data with what came out. Of equally
    cheap thresholds the most accurate is taken, of equally accurate ones the highest.

    Args:
        curve: of validation data.
        at_least: the accuracy that is wanted, such as the last exit's less half a point.

    Raises:
        ValueError: no threshold reaches it.
    """
    good = np.flatnonzero(curve.accuracy >= at_least)
    if len(good) == 0:
        raise ValueError(
            f"at_least: {at_least} came, but no threshold reaches more than "
            f"{curve.accuracy.max():.4f}; ask for less"
        )
    best = min(good, key=lambda k: (curve.cost[k], -curve.accuracy[k], -curve.thresholds[k]))
    return float(curve.thresholds[best])


def _by_exit(logits: Array) -> list[torch.Tensor]:
    z = torch.as_tensor(logits).detach().cpu()
    if z.dim() != 3 or 0 in z.shape:
        raise ValueError(
            f"logits: shape {list(z.shape)}, expected [N, E, C]: N samples, E exits, C classes"
        )
    return list(z.unbind(1))
