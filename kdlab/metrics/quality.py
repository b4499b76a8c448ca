"""What we measure of a classifier: accuracy, calibration, and how well it obeys its teacher.

All take logits ``[N, C]`` and targets ``[N]``, as tensors or NumPy arrays on any device, and give
plain floats, computed in float64. A model that diverged gives no error but honest numbers: a row
with a NaN counts as wrong (or as disagreeing), and what needs its probabilities is NaN.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kdlab.losses import kl_divergence, multi_label_loss

Array = Tensor | NDArray


@dataclass(frozen=True)
class Reliability:
    """The table behind a reliability diagram, one row per bin of confidence.

    Attributes:
        edges: borders of the bins, ``[bins + 1]`` from 0 to 1; bin m is (edges[m], edges[m + 1]].
        confidence: mean confidence in each bin, ``[bins]``; NaN in an empty bin.
        accuracy: fraction correct in each bin, ``[bins]``; NaN in an empty bin.
        count: number of samples in each bin, ``[bins]``.
    """

    edges: NDArray[np.float64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]


def accuracy(logits: Array, targets: Array) -> float:
    """Fraction of samples whose largest logit is the target's, in [0, 1].

    Raises:
        ValueError: shapes or dtypes that do not fit, no samples, or targets that are not labels.
    """
    z, y = _labelled(logits, targets)
    return float(_correct(z, y).mean(dtype=torch.float64))


def negative_log_likelihood(logits: Array, targets: Array) -> float:
    """Mean of −log p(target), in nats; 0 is perfect, log C is what a uniform guess gets.

    Raises:
        ValueError: as `accuracy`.
    """
    z, y = _labelled(logits, targets)
    return float(F.cross_entropy(z, y))


def reliability(logits: Array, targets: Array, bins: int = 15) -> Reliability:
    """Confidence against accuracy, in bins of equal width.

    The confidence of a sample is its largest probability. Samples with NaN logits are in no bin.

    Raises:
        ValueError: as `accuracy`, or fewer than one bin.

    Source: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017,
    arXiv:1706.04599.
    """
    if not isinstance(bins, int) or bins < 1:
        raise ValueError(f"bins: {bins!r}, expected a whole number of at least 1")
    z, y = _labelled(logits, targets)
    confidence = F.softmax(z, dim=-1).amax(-1).numpy()
    known = ~np.isnan(confidence)
    confidence, correct = confidence[known], _correct(z, y).numpy()[known]
    edges = np.linspace(0.0, 1.0, bins + 1)
    index = np.searchsorted(edges, confidence, side="left") - 1
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 in an empty bin is the NaN that we want
        return Reliability(
            edges=edges,
            confidence=np.bincount(index, weights=confidence, minlength=bins) / count,
            accuracy=np.bincount(index, weights=correct, minlength=bins) / count,
            count=count,
        )


def expected_calibration_error(logits: Array, targets: Array, bins: int = 15) -> float:
    """ECE: mean over the samples of the gap |accuracy − confidence| of their bin, in [0, 1].

    Raises:
        ValueError: as `reliability`.

    Source: as `reliability`.
    """
    table = reliability(logits, targets, bins)
    if table.count.sum() < len(logits):
        return float("nan")
    filled = table.count > 0
    gaps = np.abs(table.accuracy[filled] - table.confidence[filled])
    return float(np.average(gaps, weights=table.count[filled]))


def agreement(student_logits: Array, teacher_logits: Array) -> float:
    """Fraction of samples on which student and teacher predict the same class, in [0, 1].

    Raises:
        ValueError: shapes or dtypes that do not fit, or no samples.
    """
    student, teacher = _pair(student_logits, teacher_logits)
    same = student.argmax(-1) == teacher.argmax(-1)
    seen = ~(student.isnan().any(-1) | teacher.isnan().any(-1))
    return float((same & seen).mean(dtype=torch.float64))


def kl_to_teacher(student_logits: Array, teacher_logits: Array) -> float:
    """Mean of KL(p_teacher ‖ p_student) at temperature 1, in nats; 0 is a perfect copy.

    Raises:
        ValueError: as `agreement`.
    """
    student, teacher = _pair(student_logits, teacher_logits)
    divergence = kl_divergence(F.log_softmax(teacher, dim=-1), F.log_softmax(student, dim=-1))
    return float(divergence.mean())


def evaluate(
    logits: Array, targets: Array, teacher_logits: Array | None = None
) -> dict[str, float]:
    """All of them by name: accuracy, nll, ece and, given a teacher, agreement and kl_to_teacher.

    Raises:
        ValueError: as `accuracy` and `agreement`. Targets must all be labelled: leave out
            unlabelled samples, nothing can be said of them.
    """
    results = {
        "accuracy": accuracy(logits, targets),
        "nll": negative_log_likelihood(logits, targets),
        "ece": expected_calibration_error(logits, targets),
    }
    if teacher_logits is not None:
        results["agreement"] = agreement(logits, teacher_logits)
        results["kl_to_teacher"] = kl_to_teacher(logits, teacher_logits)
    return results


def scores(task: str, outputs: Array, targets: Array) -> dict[str, float]:
    """What ``fit`` measures on validation data, by name.

    Args:
        task: as in ``kdlab.datasets.Data``. "classes": accuracy and nll; "labels": accuracy, the
            fraction of all labels that are on the right side of 0.5, and nll, the mean binary
            cross-entropy; "values": mse and r2, 1 − Σ squared errors / Σ squared deviations from
            the mean, over all values.
        outputs: ``[N, C]``.
        targets: ``[N]`` whole numbers, or ``[N, C]`` floating for the other tasks.
    """
    if task == "classes":
        return {
            "accuracy": accuracy(outputs, targets),
            "nll": negative_log_likelihood(outputs, targets),
        }
    z, y = torch.as_tensor(outputs), torch.as_tensor(targets)
    if task == "labels":
        right = (z > 0) == (y > 0.5)
        return {"accuracy": float(right.double().mean()), "nll": float(multi_label_loss(z, y))}
    error, spread = (z - y).double().square(), (y - y.mean(0)).double().square().sum()
    return {"mse": float(error.mean()), "r2": 1 - float(error.sum() / spread.clamp(min=1e-300))}


def _logits(name: str, logits: Array) -> Tensor:
    z = torch.as_tensor(logits).detach().cpu()
    if not torch.is_floating_point(z):
        raise ValueError(f"{name}: dtype {z.dtype}, expected floating-point logits")
    if z.dim() != 2 or 0 in z.shape:
        raise ValueError(
            f"{name}: shape {list(z.shape)}, expected [N, C] with at least one sample and class"
        )
    return z.double()


def _labelled(logits: Array, targets: Array) -> tuple[Tensor, Tensor]:
    z, y = _logits("logits", logits), torch.as_tensor(targets).detach().cpu()
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(f"targets: dtype {y.dtype}, expected whole class numbers")
    if y.shape != z.shape[:1]:
        raise ValueError(
            f"targets: shape {list(y.shape)}, expected [{len(z)}], one label per row of logits"
        )
    y = y.long()
    lowest, highest = int(y.min()), int(y.max())
    if lowest < 0 or highest >= z.shape[1]:
        raise ValueError(
            f"targets: values from {lowest} to {highest}, expected 0 to {z.shape[1] - 1}: "
            "measure on labelled samples only (-1 marks an unlabelled one)"
        )
    return z, y


def _pair(student_logits: Array, teacher_logits: Array) -> tuple[Tensor, Tensor]:
    student = _logits("student_logits", student_logits)
    teacher = _logits("teacher_logits", teacher_logits)
    if teacher.shape != student.shape:
        raise ValueError(
            f"teacher_logits: shape {list(teacher.shape)}, expected student's "
            f"{list(student.shape)}: the same samples and the same classes"
        )
    return student, teacher


def _correct(z: Tensor, y: Tensor) -> Tensor:
    return (z.argmax(-1) == y) & ~z.isnan().any(-1)
