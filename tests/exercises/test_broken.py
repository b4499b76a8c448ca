"""The clinic of lesson 01b: each patient has exactly its own bug, and looks well enough."""

import copy
import math

import pytest
import torch
from torch import nn

from kdlab import datasets, models, training
from kdlab.distillers import (
    Decoupled,
    Dist,
    Outputs,
    SoftTargets,
    StandardizedSoftTargets,
    TransformedTeacher,
)
from kdlab.exercises import broken, find
from kdlab.losses import soft_target_loss
from kdlab.metrics import accuracy
from kdlab.training.teachers import load_teacher

DATA = datasets.load("digits").subset(150, seed=0)
BUG_OF = dict(zip(broken.PATIENTS, broken.BUGS, strict=True))
ROLES, SAME, SIZE, CACHE, FROZEN = broken.BUGS
BUDGET = {"epochs": 40, "batch_size": 32, "lr": 0.05, "device": "cpu", "validate": False}
OPTIONS = [(1.0, 0.2), (3.0, 0.5), (4.0, 0.9), (20.0, 1.0)]

patients = pytest.mark.parametrize("name", broken.PATIENTS)
options = pytest.mark.parametrize(("temperature", "alpha"), OPTIONS)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """So small a model is trained fastest by one, above all when others use the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def teacher():
    return load_teacher(datasets.load("digits"))[0]


def found(distiller, teacher) -> list[str]:
    return [bug for bug, free in broken.examine(distiller, DATA, teacher).items() if not free]


def admit(name, temperature=3.0, alpha=0.5):
    return broken.admit(name, DATA, 32, temperature=temperature, alpha=alpha)


def trained(distiller, teacher):
    student = models.build_for("mlp", DATA.shape, DATA.num_classes, seed=0, hidden=(16,))
    return training.fit(student, DATA, distiller, teacher=teacher, **BUDGET)


# --- the patients -------------------------------------------------------------------------------


@patients
@options
def test_a_patient_fails_its_own_check_and_no_other(name, temperature, alpha, teacher):
    assert found(admit(name, temperature, alpha), teacher) == [BUG_OF[name]]


@patients
def test_a_patient_trains_and_looks_well(name, teacher):
    run = trained(admit(name), teacher)
    assert all(math.isfinite(value) for row in run.history.rows for value in row.values())
    assert accuracy(training.predict(run.model, DATA.test.x), DATA.test.y) > 0.8


def test_the_symptoms_of_the_lesson(teacher):
    before = copy.deepcopy(teacher.state_dict())
    ward = {name: admit(name) for name in broken.PATIENTS} | {"healthy": SoftTargets(3.0, 0.5)}
    soft = {
        name: trained(patient, teacher).history.frame()["soft"] for name, patient in ward.items()
    }
    healthy = soft["healthy"]
    assert healthy.iloc[-1] < 0.05 * healthy.iloc[0]
    assert soft["A"].iloc[-1] < 0.05 * soft["A"].iloc[0]  # nothing to be seen in this one
    assert soft["B"].abs().max() < 1e-5
    assert soft["C"].iloc[0] == pytest.approx(healthy.iloc[0] / (10 * 3.0**2), rel=0.05)
    assert soft["D"].min() > 0.8 * healthy.iloc[0]
    assert soft["E"].iloc[5] < 0.2 * healthy.iloc[5]
    kept = ward["E"].teacher.eval()
    assert accuracy(training.predict(kept, DATA.test.x), DATA.test.y) < 0.6
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())


def test_the_cached_answers_are_right_in_the_first_epoch_only():
    patient, sound = admit("D"), SoftTargets(3.0, 0.5)
    generator = torch.Generator().manual_seed(0)
    batches = [5 * torch.randn(2, 32, 10, generator=generator) for _ in range(8)]  # 2 epochs
    gaps = []
    for student, answers in batches:
        batch = Outputs(student), Outputs(answers), torch.zeros(32, dtype=torch.int64)
        gaps.append(float((patient(*batch)["soft"] - sound(*batch)["soft"]).abs()))
    assert max(gaps[:4]) < 1e-4 and max(gaps[4:]) > 0.1


def test_a_new_patient_of_a_known_name_only():
    with pytest.raises(ValueError, match="'F' came, expected one of A, B, C, D, E"):
        broken.admit("F", DATA)


# --- the checks ---------------------------------------------------------------------------------


@options
def test_soft_targets_pass_every_check(temperature, alpha, teacher):
    assert found(SoftTargets(temperature, alpha), teacher) == []


@pytest.mark.parametrize(
    "method",
    [
        Decoupled(),
        Dist(),
        TransformedTeacher(),
        StandardizedSoftTargets(),
        SoftTargets() + TransformedTeacher(),
    ],
    ids=lambda method: type(method).__name__,
)
def test_other_methods_pass_the_checks_that_hold_for_all(method, teacher):
    # roles and size are laws of soft targets: DKD knows the label, DIST and z-scores the row
    assert not {SAME, CACHE, FROZEN} & set(found(method, teacher))


class LostSquare(SoftTargets):
    """Sums over the classes, but has no T²: the gap that exercise 6 is about."""

    def forward(self, student, teacher, targets):
        terms = super().forward(student, teacher, targets)
        return terms | {"soft": terms["soft"] / self.temperature**2}


def test_a_lost_square_slips_through_the_check_of_size(teacher):
    assert found(LostSquare(), teacher) == []


class Remembers(SoftTargets):
    """Keeps the first answers it ever got."""

    first = None

    def forward(self, student, teacher, targets):
        self.first = self.first or teacher
        return super().forward(student, self.first, targets)


class Updating(SoftTargets):
    """Holds a teacher whose weights are frozen: `fit` then holds its statistics, too."""

    def prepare(self, student, teacher, train):
        self.teacher = copy.deepcopy(teacher).requires_grad_(False)

    def forward(self, student, teacher, targets):
        return super().forward(student, Outputs(self.teacher(student.inputs)), targets)


class Thawed(Updating):
    """The same, but for a norm that is trained."""

    def prepare(self, student, teacher, train):
        super().prepare(student, teacher, train)
        self.teacher[1].requires_grad_(True)


def test_checks_find_bugs_of_other_shapes(teacher):
    assert not broken.listens(broken.soft_part(Remembers()))
    assert found(Updating(), teacher) == []
    in_batches = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
    assert found(Updating(), in_batches) == [] == found(SoftTargets(), in_batches)
    assert found(Thawed(), in_batches) == [FROZEN]


def test_an_examination_changes_neither_distiller_nor_teacher(teacher):
    before = copy.deepcopy(teacher.state_dict())
    for name in broken.PATIENTS:
        patient = admit(name)
        shown = repr(patient)
        assert found(patient, teacher) == found(patient, teacher)
        assert repr(patient) == shown
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())


# --- the exercises ------------------------------------------------------------------------------


@patients
def test_only_the_right_diagnosis_is_right(name):
    exercise = find(f"patient {name}")
    verdicts = {bug: exercise.judge(bug).status for bug in broken.BUGS}
    assert verdicts == {bug: "right" if bug == BUG_OF[name] else "wrong" for bug in broken.BUGS}
    assert exercise.judge(f"  {BUG_OF[name].upper()} ").status == "right"
    assert exercise.judge(...).status == "not yet"
    assert exercise.judge(3).status == "wrong"
    assert all(bug in exercise.judge("a cold").message for bug in broken.BUGS)


@patients
def test_no_hint_is_the_diagnosis_itself(name):
    hints = find(f"patient {name}").hints
    assert not any(bug in hint for bug in broken.BUGS for hint in hints)


def tiny(soft, t):
    return soft(torch.tensor([[0.1, 0.0, -0.1]]), torch.tensor([[-0.1, 0.1, 0.0]]), t)


def good(soft):
    return torch.isclose(tiny(soft, 1.0), tiny(soft, 8.0), rtol=0.1)


def lenient(soft):
    return bool(tiny(soft, 8.0) > 0.06 * tiny(soft, 1.0))


def exact(soft):
    z = torch.tensor([[3.0, 0.0, -3.0]])
    return torch.isclose(soft(z, z.flip(1), 1.0), soft(z, z.flip(1), 8.0))


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (good, "right", ""),
        (lambda soft: tiny(soft, 4.0).isclose(tiny(soft_target_loss, 4.0)), "right", ""),
        (lenient, "close", "T instead of T²"),
        (lambda soft: True, "wrong", "lets a loss without T² pass"),
        (exact, "wrong", "turns a healthy loss away"),
        (lambda soft: False, "wrong", "turns a healthy loss away"),
        (lambda soft: ..., "not yet", "replace the ..."),
        (lambda soft: None, "not yet", "replace the ..."),
        (..., "not yet", "replace the ..."),
        (lambda: True, "wrong", "TypeError"),
        (lambda soft: soft.mean(), "wrong", "AttributeError"),
        (lambda soft: torch.zeros(3), "wrong", "RuntimeError"),
        (True, "wrong", "expected a function"),
    ],
)
def test_a_test_of_size(answer, status, words):
    verdict = find("a test of size").judge(answer)
    assert verdict.status == status and words in verdict.message
