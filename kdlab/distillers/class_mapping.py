"""Class mapping: a teacher of other classes, for any method."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.distillers.base import Distiller, Outputs, Wrapper, checked_teacher
from kdlab.distillers.connectors import given
from kdlab.distillers.soft_targets import SoftTargets
from kdlab.losses import map_classes
from kdlab.losses.logits import Classes, class_groups
from kdlab.models import WithOutput, logits_of


class ClassMapping(Wrapper):
    """A method whose teacher's probabilities are summed into the student's classes.

    ``ClassMapping(SoftTargets(), [4, (0, 2), 1])``: the student's class 0 is the teacher's 4, its
    class 1 the teacher's 0 and 2 together, its class 2 the teacher's 1; the teacher's class 3 is
    left out. So the student's classes may be a selection, a grouping or another order of the
    teacher's: p_S's target is p_T summed over each group, given that it is one of them. The method
    sees the teacher's answer as log Σ_group exp z, the logits of that distribution, and applies
    its temperature to it. Inner layers stay as they are. The labels are the student's. By names:
    ``[teacher_names.index(name) for name in data.classes]``.

    Put it outermost, as in ``ClassMapping(Gated(SoftTargets()), ...)``: what lies outside sees the
    teacher's own classes. Other code that asks the teacher needs ``kdlab.models.WithOutput(teacher,
    lambda z: kdlab.losses.map_classes(z, classes))``, which is such a teacher itself.

    The sum over the classes of a group is that of any probability; there is no paper to name.

    Args:
        method: any method with a teacher; None is `SoftTargets`.
        classes: for each of the student's classes a class number of the teacher, or several; a
            list, or a mapping from the student's class numbers. None takes the teacher's own.

    Raises:
        ValueError: as `kdlab.losses.logits.class_groups`; before the first step, more or fewer
            entries than the student has classes, or a class that the teacher does not have.
    """

    in_tournament = False

    def __init__(self, method: Distiller | None = None, classes: Classes | None = None) -> None:
        super().__init__(SoftTargets() if method is None else method)
        self.classes = None if classes is None else class_groups(classes)

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Prepare the method, with a teacher that answers about the student's classes."""
        if not isinstance(given(teacher), nn.Module) or isinstance(teacher, torch.jit.ScriptModule):
            # It takes no hook, and has no layers that a method could read.
            return super().prepare(student, WithOutput(given(teacher), self._mapped), train)
        hook = given(teacher).register_forward_hook(lambda _, inputs, said: self._mapped(said))
        try:
            super().prepare(student, teacher, train)
        finally:
            hook.remove()

    def _mapped(self, returned: object) -> Any:
        try:
            return self.map(logits_of(returned, "teacher"))
        except ValueError:
            return returned  # nobody may want logits here; `forward` says what is wrong

    def map(self, logits: Tensor) -> Tensor:
        """Return the teacher's logits ``[B, C_T]`` as those of the student's classes ``[B, C]``."""
        return logits if self.classes is None else map_classes(logits, self.classes)

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the method's terms."""
        teacher, have = checked_teacher(teacher, self), student.logits.shape[-1]
        if self.classes is not None and have != len(self.classes):
            raise ValueError(
                f"classes: got {len(self.classes)} entries, expected {have}, one for each class of "
                "the student"
            )
        (method,) = self._parts
        mapped = replace(teacher, logits=self.map(teacher.logits))
        return self.side_by_side([method(student, mapped, targets)])
