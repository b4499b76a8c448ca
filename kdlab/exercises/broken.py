"""Five wrong distillers, each with a classic bug, and the five checks that find them.

All five train without an error, and all five give a plausible accuracy. Do not read on if you
want to find the bugs yourself in lesson 01b.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.datasets import Data
from kdlab.distillers import Distiller, Outputs
from kdlab.distillers.base import teacher_logits
from kdlab.exercises import Exercise, choice
from kdlab.losses import hard_label_loss
from kdlab.training import fit

BUGS = (
    "the roles are swapped",
    "the same logits on both sides",
    "the loss has the wrong size",
    "the cache is out of step",
    "the teacher is not frozen",
)


class Patient(Distiller):
    """A distiller that means to be ``SoftTargets``; each subclass gets ``soft`` wrong.

    Args:
        temperature: T > 0.
        alpha: weight of the soft term.
    """

    def __init__(self, temperature: float = 4.0, alpha: float = 0.9) -> None:
        super().__init__()
        self.temperature = temperature
        self.alpha = alpha

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms ``hard`` and ``soft``."""
        return {
            "hard": (1 - self.alpha) * hard_label_loss(student.logits, targets),
            "soft": self.alpha * self.soft(student, teacher_logits(teacher, self)),
        }

    def soft(self, student: Outputs, answers: Tensor) -> Tensor:
        """Return what is meant to be T² · KL(teacher ‖ student) for logits ``[B, C]``."""
        raise NotImplementedError


class PatientA(Patient):
    """Sum over classes, mean over samples, T²: all there."""

    def soft(self, student: Outputs, answers: Tensor) -> Tensor:
        """KL divergence between the softened answers."""
        log_teacher = F.log_softmax(answers / self.temperature, dim=1)
        log_student = F.log_softmax(student.logits / self.temperature, dim=1)
        kl = F.kl_div(log_teacher, log_student, reduction="batchmean", log_target=True)
        return self.temperature**2 * kl


class PatientB(Patient):
    """The same, after a small clean-up of the variable names."""

    def soft(self, student: Outputs, answers: Tensor) -> Tensor:
        """KL divergence between the softened answers."""
        answers = student.logits / self.temperature
        log_student = F.log_softmax(student.logits / self.temperature, dim=1)
        p = F.softmax(answers, dim=1)
        kl = F.kl_div(log_student, p, reduction="batchmean")
        return self.temperature**2 * kl


class PatientC(Patient):
    """Written out from the formula, without any library function."""

    def soft(self, student: Outputs, answers: Tensor) -> Tensor:
        """KL divergence between the softened answers."""
        log_p = F.log_softmax(answers / self.temperature, dim=1)
        log_q = F.log_softmax(student.logits / self.temperature, dim=1)
        return (log_p.exp() * (log_p - log_q)).mean()


class PatientD(Patient):
    """Saves time: the teacher's answers of the first epoch are kept, batch by batch."""

    def __init__(self, temperature: float = 4.0, alpha: float = 0.9, steps: int = 1) -> None:
        super().__init__(temperature, alpha)
        self.steps = steps
        self._kept: list[Tensor] = []
        self._calls = 0

    def soft(self, student: Outputs, answers: Tensor) -> Tensor:
        """KL divergence between the softened answers."""
        if len(self._kept) < self.steps:
            self._kept.append(answers)
        answers = self._kept[self._calls % self.steps]
        self._calls += 1
        log_student = F.log_softmax(student.logits / self.temperature, dim=1)
        p = F.softmax(answers / self.temperature, dim=1)
        return self.temperature**2 * F.kl_div(log_student, p, reduction="batchmean")


class PatientE(Patient):
    """Keeps the teacher at hand and asks it itself."""

    def prepare(self, student: nn.Module, teacher: nn.Module | None, example: Tensor) -> None:
        """Take the teacher in."""
        self.teacher = copy.deepcopy(teacher)

    def soft(self, student: Outputs, answers: Tensor) -> Tensor:
        """KL divergence between the softened answers."""
        assert isinstance(self.teacher, nn.Module)
        log_student = F.log_softmax(student.logits / self.temperature, dim=1)
        p = F.softmax(self.teacher(student.inputs) / self.temperature, dim=1)
        return self.temperature**2 * F.kl_div(log_student, p, reduction="batchmean")


PATIENTS: dict[str, type[Patient]] = {
    "A": PatientA,
    "B": PatientB,
    "C": PatientC,
    "D": PatientD,
    "E": PatientE,
}


def admit(name: str, data: Data, batch_size: int = 128) -> Patient:
    """Return patient ``name`` (A to E), ready for ``fit`` on ``data``.

    Raises:
        ValueError: no such patient.
    """
    if name not in PATIENTS:
        raise ValueError(f"name: {name!r} came, expected one of {', '.join(PATIENTS)}")
    if name == "D":
        return PatientD(steps=len(data.train) // min(batch_size, len(data.train)))
    return PATIENTS[name]()


def knows_who_teaches(soft: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Roles: a class that the teacher rules out may cost the student little, but not the reverse.

    The student is sure of one class, the teacher torn between two. KL(teacher ‖ student) punishes
    what the student misses; KL(student ‖ teacher) would let it pass.
    """
    torn, sure = torch.tensor([[9.0, 9.0, -9.0]]), torch.tensor([[9.0, -9.0, -9.0]])
    return bool(soft(sure, torn) > 2 * soft(torn, sure))


def listens(soft: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Same logits: another answer of the teacher gives another loss."""
    student = torch.tensor([[1.0, 2.0, 3.0]])
    return not torch.allclose(soft(student, student), soft(student, student.flip(1)))


def has_the_right_size(soft: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Size: twenty impossible classes more change nothing."""
    student, teacher = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[3.0, 1.0, 2.0]])
    ruled_out = torch.full((1, 20), -1e4)
    wider = soft(torch.cat([student, ruled_out], 1), torch.cat([teacher, ruled_out], 1))
    return torch.allclose(wider, soft(student, teacher), rtol=1e-4)


def follows_the_shuffle(soft: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Cache: two batches, asked about again in the other order, get the losses they had."""
    first = torch.eye(4) * 5, torch.eye(4) * 3
    second = torch.eye(4) * 2, torch.eye(4).flip(0) * 6
    before = soft(*first), soft(*second)
    after = soft(*second), soft(*first)
    return torch.allclose(before[0], after[1]) and torch.allclose(before[1], after[0])


def leaves_the_teacher_alone(distiller: Distiller, data: Data, teacher: nn.Module) -> bool:
    """Frozen: after training, whatever was asked is still the teacher, to the last bit."""
    before = copy.deepcopy(teacher.state_dict())
    student = copy.deepcopy(teacher)
    fit(student, data, distiller, teacher=teacher, epochs=1, lr=0.01, validate=False)
    asked = [teacher, *(m for m in distiller.children() if type(m) is type(teacher))]
    return all(torch.equal(model.state_dict()[k], v) for model in asked for k, v in before.items())


CHECKS: dict[str, Callable[[Callable[[Tensor, Tensor], Tensor]], bool]] = dict(
    zip(BUGS, (knows_who_teaches, listens, has_the_right_size, follows_the_shuffle), strict=False)
)


def examine(distiller: Distiller, data: Data, teacher: nn.Module) -> dict[str, bool]:
    """Return for each classic bug whether ``distiller`` is free of it.

    A distiller that asks a teacher of its own cannot be handed made-up answers: for it only the
    last check says something, and the others pass.

    Args:
        distiller: any method whose terms depend on the logits and include ``soft``.
        data: a little data, two batches of 128, for the one check that trains.
        teacher: asked in that check; a copy of it plays the student.
    """
    trained = copy.deepcopy(distiller)
    frozen = leaves_the_teacher_alone(trained, data, teacher)
    found = {bug: True for bug in BUGS}
    if not any(type(module) is type(teacher) for module in trained.children()):
        found |= {bug: check(_soft_term(distiller)) for bug, check in CHECKS.items()}
    return found | {BUGS[-1]: frozen}


def _soft_term(distiller: Distiller) -> Callable[[Tensor, Tensor], Tensor]:
    fresh = copy.deepcopy(distiller)

    def soft(student: Tensor, answers: Tensor) -> Tensor:
        labels = torch.zeros(len(student), dtype=torch.int64)
        return fresh(Outputs(student), Outputs(answers), labels)["soft"].detach()

    return soft


_HINTS = {
    "A": (
        "Look at the agreement with the teacher and at the order of the arguments of kl_div.",
        "F.kl_div(a, b) is KL(b ‖ a): the first argument is the one that learns.",
        "The teacher stands where the student should.",
    ),
    "B": (
        "Look at the soft term over the epochs: which value does it have, always?",
        "A loss that is 0 from the first step has nothing to teach.",
        "Read the first line of soft: what does answers hold after it?",
    ),
    "C": (
        "Compare the size of the soft term with the healthy one, epoch by epoch.",
        "Count the factors: a sum over classes, a mean over samples, T².",
        "mean() divides by samples and classes, and the T² is lost.",
    ),
    "D": (
        "The soft term falls in the first epoch; what happens then?",
        "Each epoch shuffles the images anew. What does the kept list know of that?",
        "From the second epoch on each image gets the answer for another image.",
    ),
    "E": (
        "Who else has changed after training? Ask the teacher that the distiller holds.",
        "A module that is stored in a distiller trains with the student, in train mode.",
        "The teacher moves towards the student: nobody froze it.",
    ),
}
EXERCISES = [
    Exercise(f"patient {name}", choice(bug, BUGS), _HINTS[name])
    for name, bug in zip(PATIENTS, BUGS, strict=True)
]
