"""What every method is: named, weighted loss terms from the outputs of student and teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass(frozen=True)
class Outputs:
    """What one model said about one batch.

    Attributes:
        logits: ``[B, C]`` float32.
        taps: inner tensors by module path, as asked for in ``student_taps`` or ``teacher_taps``.
        inputs: the images that the model saw, ``[B, c, h, w]``.
    """

    logits: Tensor
    taps: Mapping[str, Tensor] = field(default_factory=dict)
    inputs: Tensor | None = None


class Distiller(nn.Module):
    """A distillation method.

    A subclass stores its options, builds its adapters in ``prepare`` (they train with the student)
    and returns named, weighted terms from ``forward``. ``fit`` adds the terms up and logs each by
    its name. Two methods combine with ``+``.

    Attributes:
        student_taps: module paths to read in the student.
        teacher_taps: module paths to read in the teacher.
        needs_teacher: False for a control that works without one.
    """

    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    needs_teacher: bool = True

    @property
    def needs_only_logits(self) -> bool:
        """True when the teacher's logits can be computed once and cached."""
        return not self.teacher_taps

    def prepare(self, student: nn.Module, teacher: nn.Module | None, example: Tensor) -> None:
        """Build adapters from one example batch ``[B, c, h, w]``.

        Called once, before training, with both models in eval mode on the example's device and
        without gradients.
        """

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return ``{name: weighted scalar term}``; ``targets`` is ``[B]`` int64, -1 unlabelled."""
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    def extra_repr(self) -> str:
        """Show the options, so that a printed distiller says what it does."""
        hidden = {"training"}
        options = {k: v for k, v in vars(self).items() if not k.startswith("_") and k not in hidden}
        return ", ".join(f"{name}={value!r}" for name, value in options.items())

    def __add__(self, other: Distiller) -> Sum:
        return Sum(self, other)


class Sum(Distiller):
    """Several methods at once: their terms side by side, equal names told apart by a number."""

    def __init__(self, *parts: Distiller) -> None:
        super().__init__()
        leaves: list[Distiller] = []
        for part in parts:
            leaves += part._parts if isinstance(part, Sum) else [part]
        self.parts = nn.ModuleList(leaves)
        self.student_taps = tuple({tap: None for part in leaves for tap in part.student_taps})
        self.teacher_taps = tuple({tap: None for part in leaves for tap in part.teacher_taps})
        self.needs_teacher = any(part.needs_teacher for part in leaves)

    @property
    def _parts(self) -> list[Distiller]:
        return [part for part in self.parts if isinstance(part, Distiller)]

    @property
    def needs_only_logits(self) -> bool:
        """True when that holds for every part."""
        return all(part.needs_only_logits for part in self._parts)

    def prepare(self, student: nn.Module, teacher: nn.Module | None, example: Tensor) -> None:
        """Prepare each part."""
        for part in self._parts:
            part.prepare(student, teacher, example)

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms of all parts."""
        terms: dict[str, Tensor] = {}
        for number, part in enumerate(self._parts, start=1):
            for name, value in part(student, teacher, targets).items():
                terms[f"{name}_{number}" if name in terms else name] = value
        return terms

    def extra_repr(self) -> str:
        """Nothing to add: the parts show themselves."""
        return ""


def teacher_logits(teacher: Outputs | None, who: Distiller) -> Tensor:
    """Return the teacher's logits, or say kindly that there is no teacher."""
    if teacher is None:
        raise ValueError(
            f"teacher: {type(who).__name__} needs the teacher's logits and got no teacher; "
            "give one, as in fit(student, data, distiller, teacher=teacher)"
        )
    return teacher.logits


def check_fraction(name: str, value: float) -> float:
    """Return ``value`` if it lies in [0, 1]; raise ValueError that names it otherwise."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}: {value} came, expected a weight from 0 to 1")
    return float(value)
