"""The exercises of lesson 01b: five wrong distillers, and the five checks that find them.

Each has a classic bug. All five train without an error and reach a plausible accuracy. Do not
read on if you want to find the bugs yourself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.datasets import Data, Split
from kdlab.distillers import Distiller, Outputs
from kdlab.distillers.base import teacher_logits
from kdlab.exercises import Exercise, Verdict, choice
from kdlab.losses import hard_label_loss, soft_target_loss
from kdlab.training import fit

Soft = Callable[[Tensor, Tensor], Tensor]  # logits of student and teacher [B, C] to a scalar

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

    def __init__(self, steps: int, temperature: float = 4.0, alpha: float = 0.9) -> None:
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

    def prepare(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        train: Split,
    ) -> None:
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


def admit(name: str, data: Data, batch_size: int = 128, **options: float) -> Patient:
    """Return patient ``name`` (A to E), ready for one ``fit`` on ``data``.

    Args:
        name: of the patient.
        data: what it will be trained on.
        batch_size: as given to ``fit``.
        options: ``temperature`` and ``alpha``.

    Raises:
        ValueError: no such patient.
    """
    if name not in PATIENTS:
        raise ValueError(f"name: {name!r} came, expected one of {', '.join(PATIENTS)}")
    if name == "D":
        return PatientD(len(data.train) // min(batch_size, len(data.train)), **options)
    return PATIENTS[name](**options)


def knows_who_teaches(soft: Soft) -> bool:
    """Roles: sure where the teacher is torn costs no less than torn where the teacher is sure.

    A sure student of a teacher that is torn between two classes leaves one out. KL(teacher ‖
    student) punishes that; KL(student ‖ teacher) would let it pass.
    """
    torn, sure = torch.tensor([[99.0, 99.0, -99.0]]), torch.tensor([[99.0, -99.0, -99.0]])
    return bool(soft(sure, torn) >= soft(torn, sure) - 1e-3)


def listens(soft: Soft) -> bool:
    """Same logits: another answer of the teacher gives another loss."""
    student = torch.tensor([[1.0, 2.0, 3.0]])
    return not torch.allclose(soft(student, student), soft(student, student.flip(1)))


def has_the_right_size(soft: Soft) -> bool:
    """Size: twenty classes more that both sides rule out change nothing."""
    student, teacher = torch.tensor([[4.0, 8.0, 12.0]]), torch.tensor([[12.0, 4.0, 8.0]])
    ruled_out = torch.full((1, 20), -1e4)
    wider = soft(torch.cat([student, ruled_out], 1), torch.cat([teacher, ruled_out], 1))
    return torch.allclose(wider, soft(student, teacher), rtol=1e-4, atol=1e-5)


def follows_the_shuffle(soft: Soft) -> bool:
    """Cache: a batch keeps its loss, in whatever order the batches come (up to 500 an epoch)."""
    batches = [(torch.eye(4) * size, torch.eye(4).roll(size, 0) * size) for size in (1, 2, 3)]
    at_first = [soft(*batch) for batch in batches]
    order = torch.randint(3, (500,), generator=torch.Generator().manual_seed(0)).tolist()
    return all(torch.allclose(soft(*batches[number]), at_first[number]) for number in order)


def leaves_the_teacher_alone(distiller: Distiller, data: Data, teacher: nn.Module) -> bool:
    """Frozen: after training, whoever was asked is still the teacher, to the last bit."""
    before = copy.deepcopy(teacher.state_dict())
    trained, student = copy.deepcopy(distiller), copy.deepcopy(teacher)
    fit(
        student, data, trained, teacher=teacher, device="cpu",
        epochs=2, batch_size=32, lr=0.01, validate=False,
    )  # fmt: skip
    asked = (teacher, getattr(trained, "teacher", teacher))
    return all(torch.equal(model.state_dict()[k], v) for model in asked for k, v in before.items())


CHECKS: dict[str, Callable[[Soft], bool]] = dict(
    zip(BUGS, (knows_who_teaches, listens, has_the_right_size, follows_the_shuffle), strict=False)
)


def examine(distiller: Distiller, data: Data, teacher: nn.Module) -> dict[str, bool]:
    """Return for each classic bug whether ``distiller`` is free of it.

    Roles and size are laws of soft targets; a method of another kind need not obey them.

    Args:
        distiller: any method that compares logits; it is not changed. One that keeps a teacher of
            its own calls it ``teacher``.
        data: a little data, for the one check that trains.
        teacher: asked in that check; a copy of it plays the student.
    """
    found = {bug: check(soft_part(distiller)) for bug, check in CHECKS.items()}
    return found | {BUGS[-1]: leaves_the_teacher_alone(distiller, data, teacher)}


def soft_part(distiller: Distiller) -> Soft:
    """Return what ``distiller`` adds to the labels' loss, as a function of made-up logits."""
    fresh = copy.deepcopy(distiller)
    fresh.teacher = nn.Identity()  # one that asks by itself gets the made-up answers, too

    def soft(student: Tensor, answers: Tensor) -> Tensor:
        labels = torch.zeros(len(student), dtype=torch.int64)
        terms = fresh(Outputs(student, inputs=answers), Outputs(answers), labels)
        return torch.stack([v.detach() for name, v in terms.items() if name != "hard"]).sum()

    return soft


def _without_square(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return soft_target_loss(student, teacher, temperature) / temperature**2


def _without_one(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return soft_target_loss(student, teacher, temperature) / temperature


def _check_size_test(answer: Any) -> Verdict:
    """Hold the learner's test against a sound loss and against two that lost a factor."""
    if not callable(answer):
        return Verdict("wrong", "expected a function that takes a loss")
    passed = answer(soft_target_loss)
    if passed is None or passed is ...:
        return Verdict("not yet", "not yet: replace the ...")
    if not bool(passed):
        return Verdict("wrong", "it turns a healthy loss away")
    if bool(answer(_without_square)):
        return Verdict("wrong", "it lets a loss without T² pass")
    if bool(answer(_without_one)):
        return Verdict("close", "it finds a missing T², but lets T instead of T² pass")
    return Verdict("right")


_HINTS = {
    "A": (
        "The soft term falls as it should. Look at the distance between student and teacher.",
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
        "The soft term never falls. Could the student obey this teacher at all?",
        "Each epoch shuffles the images anew. What does the kept list know of that?",
        "From the second epoch on each image gets the answer for another image.",
    ),
    "E": (
        "The soft term falls sooner than the healthy one. Has the student come all the way?",
        "A module that is stored in a distiller trains with the student, in train mode.",
        "The teacher moves towards the student: nobody froze it.",
    ),
}
EXERCISES = [
    *(
        Exercise(f"patient {name}", choice(bug, BUGS), _HINTS[name])
        for name, bug in zip(PATIENTS, BUGS, strict=True)
    ),
    Exercise(
        "a test of size",
        _check_size_test,
        (
            "What may not change with the temperature, as long as the logits are small?",
            "Ask soft twice: the same small logits, say a tenth, at T = 1 and at T = 8.",
            "torch.isclose(soft(student, teacher, 1.0), soft(student, teacher, 8.0), rtol=0.1)",
        ),
    ),
]
