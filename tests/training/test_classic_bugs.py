"""The five classic bugs of distillation, each as a plausible mutant.

Every check is a statement about meaning. The real thing passes it and the mutant fails it.
"""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import Readable, make_cnn, make_data, make_mlp
from torch import Tensor

from kdlab.datasets.views import Augmentation
from kdlab.distillers import Distiller, Outputs, SoftTargets
from kdlab.training import TeacherOutputs, fit
from kdlab.training.asking import LiveTeacher

DATA = make_data()
AUGMENTATIONS = {
    "cached": {},
    "views": {"augment": Augmentation(2), "views": 3},
    "live": {"augment": Augmentation(2)},
}


def soft(distiller: Distiller, student: Tensor, teacher: Tensor) -> Tensor:
    targets = torch.full((len(student),), -1)
    return distiller(Outputs(student), Outputs(teacher), targets)["soft"]


def logits(seed: int, classes: int = 10, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(64, classes, generator=generator)


# --- meanings -----------------------------------------------------------------------------------


def punishes_what_the_student_denies(distiller: Distiller) -> None:
    """KL(teacher ‖ student) grows without bound where the student denies what the teacher says."""
    teacher, denies, invents = (
        distiller.temperature * torch.tensor([row])
        for row in ([0.0, 0.0, -50.0], [0.0, -50.0, -50.0], [0.0, 0.0, 0.0])
    )
    assert soft(distiller, denies, teacher) > 3 * soft(distiller, invents, teacher)


def moves_the_student_towards_the_teacher(distiller: Distiller) -> None:
    student, teacher = logits(0).requires_grad_(), logits(1).requires_grad_()
    loss = soft(distiller, student, teacher)
    assert loss > 0.1
    loss.backward()
    assert teacher.grad is None or not teacher.grad.any()
    with torch.no_grad():
        assert soft(distiller, student - 5 * student.grad, teacher) < loss


def has_the_gradient_of_hinton(distiller: Distiller) -> None:
    """At any temperature, ∂loss/∂z = T (q − p) / B; at high T this is (z − v) / (C B)."""
    student, teacher = logits(0).requires_grad_(), logits(1)
    soft(distiller, student, teacher).backward()
    t = distiller.temperature
    q, p = ((z.detach() / t).softmax(1) for z in (student, teacher))
    torch.testing.assert_close(student.grad, t * (q - p) / len(q), rtol=1e-4, atol=1e-6)


def answers_belong_to_the_pictures(options: dict) -> None:
    """In every step of every epoch, the answers are those about the very pictures shown."""
    teacher, gaps = Readable(DATA), []

    class Witness(SoftTargets):
        def forward(self, student, answers, targets):
            right = teacher.of(student.inputs).detach()
            gaps.append(float((answers.logits - right).abs().max()))
            assert (right - right.roll(1, 0)).abs().amax(1).min() > 0.5  # the pictures differ
            return super().forward(student, answers, targets)

    fit(
        make_mlp(DATA),
        DATA,
        Witness(),
        teacher=teacher,
        epochs=7,
        batch_size=24,
        lr=0.01,
        **options,
    )
    assert len(gaps) == 1 + 7 * 4  # the rehearsal, too
    assert max(gaps) < 0.02  # what float16 costs


def labels_belong_to_the_pictures(options: dict) -> None:
    rows = {tuple(np.round(x.flatten().tolist(), 4)): int(y) for x, y in zip(*parts(), strict=True)}

    class Witness(SoftTargets):
        def forward(self, student, answers, targets):
            for x, y in zip(student.inputs, targets, strict=True):
                assert rows[tuple(np.round(x.flatten().tolist(), 4))] == int(y)
            return super().forward(student, answers, targets)

    fit(make_mlp(DATA), DATA, Witness(), teacher=Readable(DATA), epochs=2, batch_size=24, **options)


def parts() -> tuple[Tensor, Tensor]:
    return DATA.train.x, DATA.train.y


def teacher_stays_as_it_is(options: dict) -> None:
    """Two questions about one picture get one answer, and no weight or statistic moves."""
    teacher = make_cnn(DATA, seed=9, dropout=0.5).train()
    before, answers = copy.deepcopy(teacher.state_dict()), []

    class Witness(SoftTargets):
        def forward(self, student, teacher_says, targets):
            quiet = copy.deepcopy(teacher).eval()
            with torch.no_grad():
                right = quiet(student.inputs)
            assert not teacher_says.logits.requires_grad
            answers.append(float((teacher_says.logits - right).abs().max()))
            return super().forward(student, teacher_says, targets)

    fit(make_mlp(DATA), DATA, Witness(), teacher=teacher, epochs=3, batch_size=24, **options)
    assert max(answers) < 0.01
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())


# --- the real thing -----------------------------------------------------------------------------

LOSSES = (
    punishes_what_the_student_denies,
    moves_the_student_towards_the_teacher,
    has_the_gradient_of_hinton,
)


@pytest.mark.parametrize("check", LOSSES)
@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_soft_targets_mean_what_they_should(check, temperature):
    check(SoftTargets(temperature, alpha=1.0))


@pytest.mark.parametrize("options", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
@pytest.mark.parametrize("check", [answers_belong_to_the_pictures, teacher_stays_as_it_is])
def test_the_loop_means_what_it_should(check, options):
    check(options)


def test_labels_belong_to_the_pictures():
    labels_belong_to_the_pictures({})
    labels_belong_to_the_pictures({"augment": Augmentation(shift=0)})


# --- the mutants --------------------------------------------------------------------------------


class Mutant(SoftTargets):
    """Soft targets with another formula."""

    def forward(self, student, teacher, targets):
        return {"soft": self.formula(student.logits, teacher.logits, self.temperature)}


class SwappedRoles(Mutant):
    @staticmethod
    def formula(s, t, temperature):
        p, log_q = F.softmax(s / temperature, 1), F.log_softmax(t / temperature, 1)
        return temperature**2 * F.kl_div(log_q, p, reduction="batchmean")


class SameLogitsOnBothSides(Mutant):
    @staticmethod
    def formula(s, t, temperature):
        log_q, p = F.log_softmax(s / temperature, 1), F.softmax(s / temperature, 1)
        return temperature**2 * F.kl_div(log_q, p, reduction="batchmean")


class MeanOverClasses(Mutant):
    @staticmethod
    def formula(s, t, temperature):
        log_q, p = F.log_softmax(s / temperature, 1), F.softmax(t / temperature, 1)
        return temperature**2 * F.kl_div(log_q, p, reduction="none").mean()


class LostSquare(Mutant):
    @staticmethod
    def formula(s, t, temperature):
        log_q, p = F.log_softmax(s / temperature, 1), F.softmax(t / temperature, 1)
        return F.kl_div(log_q, p, reduction="batchmean")


@pytest.mark.parametrize(
    ("mutant", "check"),
    [
        (SwappedRoles, punishes_what_the_student_denies),
        (SwappedRoles, has_the_gradient_of_hinton),
        (SameLogitsOnBothSides, moves_the_student_towards_the_teacher),
        (MeanOverClasses, has_the_gradient_of_hinton),
        (LostSquare, has_the_gradient_of_hinton),
    ],
)
def test_a_wrong_loss_fails(mutant, check):
    with pytest.raises(AssertionError):
        check(mutant(4.0, alpha=1.0))


@pytest.mark.parametrize("name", ["cached", "views"])
@pytest.mark.parametrize("kind", ["shifted by one", "in the order of the step", "another view"])
def test_a_cache_out_of_step_fails(monkeypatch, name, kind):
    right = TeacherOutputs.__call__
    if kind == "another view" and name == "cached":
        pytest.skip("there is one view only")
    wrong = {
        "shifted by one": lambda cache, index, view: right(cache, (index + 1) % 96, view),
        "in the order of the step": lambda cache, index, view: right(
            cache, torch.arange(len(index)), view
        ),
        "another view": lambda cache, index, view: right(cache, index, view + 1),
    }[kind]
    monkeypatch.setattr(TeacherOutputs, "__call__", wrong)
    with pytest.raises(AssertionError):
        answers_belong_to_the_pictures(AUGMENTATIONS[name])


class UnfrozenTeacher(LiveTeacher):
    """Forgets eval mode and the graph."""

    def __call__(self, images, index, view):
        return Outputs(self.forward(images), {}, images)


class LearningTeacher(LiveTeacher):
    """Remembers the graph, forgets eval mode: the statistics of the batch norms move."""

    def __call__(self, images, index, view):
        with torch.no_grad():
            self.forward.model.train()
            return Outputs(self.forward(images), {}, images)


@pytest.mark.parametrize("wrong", [UnfrozenTeacher, LearningTeacher])
def test_a_teacher_that_is_not_frozen_fails(monkeypatch, wrong):
    monkeypatch.setattr("kdlab.training.asking.LiveTeacher", wrong)
    with pytest.raises((AssertionError, ValueError), match=r"(?i)assert"):  # or by `fit`
        teacher_stays_as_it_is(AUGMENTATIONS["live"])
