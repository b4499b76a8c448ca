"""What every loss does before and after its formula: checks, dtypes, masks and the final mean.

Two kinds of checks. *Shape* checks (shapes, dtypes, devices, options) cost nothing and are always
on. *Value* checks (a finite teacher, labels in range) read the tensors, so a GPU has to wait for
them: ``with unchecked_values():`` turns them off, and so does ``torch.compile``. Inside
``torch.func.vmap`` they are impossible; use ``unchecked_values`` there too.
"""

import math
import numbers
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

REDUCTIONS = ("mean", "none")
UNLABELLED = -1
LEAST_TEMPERATURE, MOST_TEMPERATURE = 1e-3, 1e9

_CHECKED: ContextVar[bool] = ContextVar("kdlab_values_are_checked", default=True)


class SampleWeights:
    """What `weighted_samples` hands to every loss inside it.

    Attributes:
        weights: ``[B]``, at least 0.
        used: how many losses have taken their mean with them.
    """

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights
        self.used = 0


_WEIGHTS: ContextVar[SampleWeights | None] = ContextVar("kdlab_sample_weights", default=None)


@contextmanager
def weighted_samples(weights: Tensor, *, detach: bool = True) -> Iterator[SampleWeights]:
    """Let every comparison with a teacher inside the block weigh its samples: Σ w_i · value_i / B.

    This is how a gate reaches into any method. The loss on the hard labels is not weighed, and
    ``reduction="none"`` gives the values as they are. A sample of weight 0 gets a gradient of
    exactly 0 from what is computed for it alone; a relation between samples loses only its row.

    Args:
        weights: ``[B]``, at least 0.
        detach: False lets the losses train whatever made the weights, which then closes where it
            costs least. Only lesson 05 wants that, to show why not.

    Raises:
        ValueError: in a loss, if it has another number of samples.
    """
    given = SampleWeights(weights.detach() if detach else weights)
    token = _WEIGHTS.set(given)
    try:
        yield given
    finally:
        _WEIGHTS.reset(token)


@contextmanager
def unchecked_values() -> Iterator[None]:
    """Turn the value checks off inside the block, in this thread; shape checks stay."""
    token = _CHECKED.set(False)
    try:
        yield
    finally:
        _CHECKED.reset(token)


def values_are_checked() -> bool:
    """Whether a loss that is called here may read its tensors to check them."""
    return not torch.compiler.is_compiling() and _CHECKED.get()


def check_kind(name: str, value: object, kind: Any, expected: str) -> None:
    """Raise ValueError unless ``value`` is an instance of ``kind``; ``expected`` says what that is.

    For what is easily mixed up, where Python's own error would come late and name something else.
    """
    if not isinstance(value, kind):
        raise ValueError(f"{name}: a {type(value).__name__} came, expected {expected}")


def check_reduction(reduction: str) -> None:
    """Raise ValueError unless ``reduction`` is "mean" or "none"."""
    if reduction not in REDUCTIONS:
        raise ValueError(f'reduction: {reduction!r}, expected "mean" or "none"')


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is a finite number above 0 (a temperature)."""
    if not isinstance(value, numbers.Real) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name}: {value!r}, expected a finite number above 0")


def check_temperature(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is a temperature at which T² and logits / T keep digits."""
    check_positive(name, value)
    if not LEAST_TEMPERATURE <= value <= MOST_TEMPERATURE:
        raise ValueError(
            f"{name}: {value!r}, expected a number from {LEAST_TEMPERATURE:g} to "
            f"{MOST_TEMPERATURE:g}: beyond, single precision has no digits left; from 1000 on a "
            "higher one changes next to nothing"
        )


def check_weight(name: str, value: float, highest: float = math.inf) -> None:
    """Raise ValueError unless ``value`` is a finite number in [0, highest]."""
    if not isinstance(value, numbers.Real) or not math.isfinite(value) or not 0 <= value <= highest:
        at_most = "" if highest == math.inf else f" and at most {highest:g}"
        raise ValueError(f"{name}: {value!r}, expected a finite number of at least 0{at_most}")


def check_count(name: str, value: int, least: int = 1) -> None:
    """Raise ValueError unless ``value`` is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name}: {value!r}, expected a whole number of at least {least}")


def check_logits(name: str, logits: Tensor, dims: tuple[int, ...] = (2,)) -> None:
    """Raise ValueError unless ``logits`` is a floating [B, C] (or [B, N, C]) with no empty side."""
    if not torch.is_floating_point(logits):
        raise ValueError(f"{name}: dtype {logits.dtype}, expected floating-point logits")
    if logits.dim() not in dims:
        forms = " or ".join({2: "[B, C]", 3: "[B, N, C]"}[dim] for dim in dims)
        raise ValueError(f"{name}: shape {list(logits.shape)}, expected logits {forms}")
    if 0 in logits.shape:
        raise ValueError(
            f"{name}: shape {list(logits.shape)}, expected at least one sample and one class: "
            "the mean of an empty batch does not exist, skip such a batch"
        )


def check_pair(student: Tensor, teacher: Tensor, dims: tuple[int, ...] = (2,)) -> None:
    """Raise ValueError unless both are logits of one shape on one device."""
    check_logits("student", student, dims)
    if not torch.is_floating_point(teacher):
        raise ValueError(f"teacher: dtype {teacher.dtype}, expected floating-point logits")
    if teacher.shape != student.shape:
        cause = (
            "do both see the same batch?"
            if teacher.shape[-1:] == student.shape[-1:]
            else "do both predict the same classes? If not, there is ClassMapping(method, ...)"
        )
        raise ValueError(
            f"teacher: shape {list(teacher.shape)}, "
            f"expected student's {list(student.shape)}: {cause}"
        )
    if teacher.device != student.device:
        raise ValueError(
            f"teacher: on {teacher.device}, expected student's {student.device}: "
            "move one of them with .to(device)"
        )


def check_mask(mask: Tensor, logits: Tensor) -> None:
    """Raise ValueError unless ``mask`` is bool, [B] or (with logits [B, N, C]) [B, N]."""
    if mask.dtype != torch.bool:
        raise ValueError(f"mask: dtype {mask.dtype}, expected torch.bool (True = takes part)")
    allowed = [list(logits.shape[:dims]) for dims in range(1, logits.dim())]
    if list(mask.shape) not in allowed:
        forms = " or ".join(map(str, allowed))
        raise ValueError(
            f"mask: shape {list(mask.shape)}, expected {forms} for logits {list(logits.shape)}"
        )


def check_targets(targets: Tensor, logits: Tensor, *, unlabelled: bool, why: str = "") -> None:
    """Raise ValueError unless ``targets`` are int64 [B] labels of the classes of ``logits``.

    With ``unlabelled``, -1 is allowed; without, the message ends with ``why`` labels are needed.
    """
    if targets.dtype != torch.int64:
        raise ValueError(f"targets: dtype {targets.dtype}, expected torch.int64 class numbers")
    if targets.shape != logits.shape[:1]:
        raise ValueError(
            f"targets: shape {list(targets.shape)}, expected {list(logits.shape[:1])}, "
            "one class number per sample"
        )
    if not values_are_checked():
        return
    lowest, highest, classes = int(targets.min()), int(targets.max()), logits.shape[-1]
    if highest >= classes or lowest < UNLABELLED:
        raise ValueError(
            f"targets: values from {lowest} to {highest}, expected 0 to {classes - 1}"
            + (f" (or {UNLABELLED} for unlabelled)" if unlabelled else "")
        )
    if lowest == UNLABELLED and not unlabelled:
        raise ValueError(
            f"targets: {UNLABELLED} (unlabelled) among them, expected 0 to {classes - 1}: {why}"
        )


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; read only where `values_are_checked`."""
    # The sum takes a fortieth of the time. It may overflow, and says nothing then.
    total = float(tensor.detach().sum(dtype=compute_dtype(tensor)))
    return math.isfinite(total) or bool(torch.isfinite(tensor).all())


def check_teacher_values(teacher: Tensor) -> None:
    """Raise ValueError if a logit of the teacher is NaN or infinite."""
    if values_are_checked() and not all_finite(teacher):
        raise ValueError(
            "teacher: NaN or infinite logits, expected finite ones: look at the teacher's weights "
            "and at its inputs, or compute it in float32"
        )


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype to compute in: float64 if any tensor is, float32 otherwise."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def prepare(student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both logits in the computing dtype, the teacher's detached, what is masked out set to 0.

    Replacing the logits *before* anything is computed is what makes the gradient of a masked
    position exactly 0, even where its logits are NaN. ``mask`` has the leading dims of the logits.
    """
    dtype = compute_dtype(student, teacher)
    student, teacher = student.to(dtype), teacher.detach().to(dtype)
    if mask is not None:
        while mask.dim() < student.dim():
            mask = mask.unsqueeze(-1)
        student, teacher = student.where(mask, 0.0), teacher.where(mask, 0.0)
    check_teacher_values(teacher)
    return student, teacher


def reduce(
    values: Tensor, takes_part: Tensor | None, reduction: str, *, weighted: bool = True
) -> Tensor:
    """``values`` [B] of the samples, 0 for who takes no part ("none"), or their mean ("mean").

    ``takes_part`` is bool [B], None for all. The mean is over those; it is 0 if there are none.
    Inside `weighted_samples` each value is weighed first, unless ``weighted`` is False.
    """
    if takes_part is not None:
        values = values.where(takes_part, 0.0)
    if reduction == "none":
        return values
    # a compiled graph cannot read the context: there nobody weighs, and `used` tells so
    given = None if torch.compiler.is_compiling() else _WEIGHTS.get()
    if given is not None and weighted:
        if given.weights.shape != values.shape:
            raise ValueError(
                f"weights: shape {list(given.weights.shape)}, expected {list(values.shape)}, one "
                "for each sample of the loss"
            )
        given.used += 1
        values = values.where(given.weights > 0, 0.0) * given.weights.to(values.dtype)
    if takes_part is None:
        return values.mean()
    return values.sum() / takes_part.sum().clamp(min=1)


FORMS = {2: "[B, d]", 3: "[B, N, d]", 4: "[B, c, h, w]"}


def check_features(name: str, features: Tensor, dims: tuple[int, ...] = (4,)) -> None:
    """Raise ValueError unless ``features`` are floating, of one of these ranks, and not empty."""
    if not torch.is_floating_point(features):
        raise ValueError(f"{name}: dtype {features.dtype}, expected floating-point features")
    if features.dim() not in dims:
        forms = " or ".join(FORMS[dim] for dim in dims)
        raise ValueError(f"{name}: shape {list(features.shape)}, expected features {forms}")
    if 0 in features.shape:
        raise ValueError(
            f"{name}: shape {list(features.shape)}, expected no side of 0: "
            "the mean of an empty batch does not exist, skip such a batch"
        )


def prepare_features(
    student: Tensor, teacher: Tensor, dims: tuple[int, ...] = (4,), *, any_channels: bool = False
) -> tuple[Tensor, Tensor]:
    """Check a pair of features; return both in the computing dtype, the teacher's detached.

    With ``any_channels`` maps may differ in c, not in B, h, w.

    Raises:
        ValueError: not floating, a rank that is not in ``dims``, an empty side, different shapes or
            devices, NaN or infinite features of the teacher.
    """
    check_features("student", student, dims)
    check_features("teacher", teacher, dims)
    mine, theirs = list(student.shape), list(teacher.shape)
    if any_channels and len(mine) == len(theirs):
        theirs[1] = mine[1]
    if mine != theirs:
        but = " but for the channels" if any_channels else ""
        raise ValueError(
            f"teacher: shape {list(teacher.shape)}, expected student's {list(student.shape)}{but}: "
            "adapt one of them first (the distillers do so)"
        )
    if teacher.device != student.device:
        raise ValueError(
            f"teacher: on {teacher.device}, expected student's {student.device}: "
            "move one of them with .to(device)"
        )
    dtype = compute_dtype(student, teacher)
    teacher = teacher.detach()
    if values_are_checked() and not all_finite(teacher):
        raise ValueError(
            "teacher: NaN or infinite features, expected finite ones: look at the teacher's "
            "weights and at its inputs, or compute it in float32"
        )
    return student.to(dtype), teacher.to(dtype)


def unit(values: Tensor, dim: int) -> Tensor:
    """``values`` divided by their L2 length along ``dim``; all 0, with gradient 0, where that is 0.

    A length counts as 0 when no entry exceeds 1e-12: below it the gradient, 1 / length, would
    overflow. Dividing by the largest entry first changes neither value nor gradient (the result
    has no scale), but keeps the squares in range.
    """
    peak = values.detach().abs().amax(dim, keepdim=True)
    nothing = peak <= 1e-12
    scaled = values / peak.masked_fill(nothing, torch.inf)
    square = scaled.square().sum(dim, keepdim=True)
    return scaled * square.masked_fill(nothing, 1.0).rsqrt()
