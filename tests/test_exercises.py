"""The checking machinery: every answer gets a verdict, and none gets through as an error."""

import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdlab import exercises
from kdlab.exercises import Exercise, Verdict, choice, function, is_placeholder, number

HINTS = ("one", "two", "three")


@pytest.mark.parametrize("answer", [..., None, [1, ...], (None,), {"a": {"b": ...}}])
def test_placeholders_are_not_yet_answers(answer):
    assert is_placeholder(answer)
    verdict = Exercise("x", number(1), HINTS).judge(answer)
    assert verdict == Verdict("not yet", "not yet: replace the ...")


@pytest.mark.parametrize("answer", [0, "", [], {}, False, torch.zeros(3), np.zeros(2)])
def test_falsy_answers_are_answers(answer):
    assert not is_placeholder(answer)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (2.0, "right"), (2.04, "right"), (1.7, "close"), (2.3, "close"), (3, "wrong"),
        (-2, "wrong"), (torch.tensor(2.0), "right"), (torch.tensor([2.0]), "right"),
        (np.float32(2), "right"), (np.array(2), "right"), (float("nan"), "wrong"),
        (float("inf"), "wrong"), (True, "wrong"), ("2", "wrong"), (torch.zeros(2), "wrong"),
        (torch.tensor(True), "wrong"), ([2.0], "wrong"), (2 + 0j, "wrong"), (object(), "wrong"),
    ],
)  # fmt: skip
def test_number(answer, status):
    assert number(2, tolerance=0.05, close=0.4)(answer).status == status


def test_number_says_the_side_and_the_kind_but_not_the_answer():
    check = number(2, close=0.4)
    assert check(3).message == "too large" and check(1.8).message == "a little too small"
    assert check("2").message == "expected one number, got a str"
    assert number(float("inf"))(float("inf")).status == "right"


def test_number_knows_usual_mistakes():
    check = number(8, tolerance=0.05, close=2, diagnoses={9: "one too many", 8.01: "never"})
    assert check(9.04) == Verdict("wrong", "one too many")
    assert check(8.01).status == "right" and check(9.1) == Verdict("close", "a little too large")


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("same logits", "right"), ("  Same   LOGITS ", "right"), (["same logits"], "right"),
        ("swapped roles", "wrong"), ("anything", "wrong"), (3, "wrong"), ([], "wrong"),
        ([3], "wrong"),
    ],
)  # fmt: skip
def test_choice(answer, status):
    assert choice("same logits", ["same logits", "swapped roles"])(answer).status == status


def test_choice_lists_the_options_when_the_answer_is_none_of_them():
    assert choice("a", ["a", "b"])("c").message == "choose from: a, b"
    assert choice("a", ["a", "b"])(7).message == "expected text, got a int"
    assert choice("a")("c").message == ""


@pytest.mark.parametrize(
    ("answer", "status"),
    [({"b", "a"}, "right"), (["a"], "close"), (["a", "c"], "wrong"), ("c", "wrong")],
)
def test_choice_of_several(answer, status):
    assert choice({"a", "b"}, ["a", "b", "c"])(answer).status == status


def test_choice_refuses_what_is_no_text():
    with pytest.raises(ValueError, match="expected texts"):
        choice(3)


def kd(student, teacher, t):
    log_p, q = F.log_softmax(student / t, -1), F.softmax(teacher.detach() / t, -1)
    return t * t * F.kl_div(log_p, q, reduction="batchmean")


def kd_mean(student, teacher, t):
    return kd(student, teacher, t) / student.shape[-1]


def kd_swapped(student, teacher, t):
    return kd(teacher, student, t)


PROBES = [
    (torch.randn(4, 5, generator=torch.Generator().manual_seed(s)),
     torch.randn(4, 5, generator=torch.Generator().manual_seed(s + 9)), t)
    for s, t in ((0, 1.0), (1, 4.0))
]  # fmt: skip
CHECK = function(
    kd, PROBES, diagnoses=[(kd_mean, "5 times too small: sum over classes"), (kd_swapped, "roles")]
)


def from_scratch(student, teacher, t):
    """The learner's own way to write ``kd``."""
    q = (teacher / t).softmax(-1)
    return t**2 * (q * (q.log() - (student / t).log_softmax(-1))).sum(-1).mean()


def raises(*arguments):
    raise KeyError("weights")


def exits(*arguments):
    sys.exit(3)


def todo(*arguments):
    raise NotImplementedError


def in_place(student, teacher, t):
    value = from_scratch(student, teacher, t)
    student.zero_()
    teacher.zero_()
    return value


def three_times(student, teacher, t):
    return 3 * from_scratch(student, teacher, t)


def detached(student, teacher, t):
    return kd(student.detach(), teacher, t)


def as_float(student, teacher, t):
    return kd(student, teacher, t).item()


def other_gradient(student, teacher, t):
    return detached(student, teacher, t) + (student - student.detach()).sum()


def per_sample(student, teacher, t):
    return student.sum(-1)


def nan(student, teacher, t):
    return kd(student, teacher, t) * float("nan")


NOT_YET = Verdict("not yet", "not yet: replace the ...")
DIFFERS = Verdict("wrong", "the value differs from the reference")
NO_GRADIENT = Verdict("close", "the value is right, but no gradient flows through it")


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (from_scratch, Verdict("right")),
        (kd_mean, Verdict("wrong", "5 times too small: sum over classes")),
        (kd_swapped, Verdict("wrong", "roles")),
        (three_times, DIFFERS),
        (nan, DIFFERS),
        (detached, NO_GRADIENT),
        (as_float, NO_GRADIENT),
        (other_gradient, Verdict("close", "the value is right, its gradient is not")),
        (per_sample, Verdict("wrong", "the result has shape (4,); expected ()")),
        (lambda *_: ..., NOT_YET),
        (lambda *_: None, NOT_YET),
        (todo, NOT_YET),
        (raises, Verdict("wrong", "your answer raised KeyError: 'weights'")),
        (exits, Verdict("wrong", "your answer raised SystemExit: 3")),
        (3, Verdict("wrong", "expected a function, got a int")),
    ],
)
def test_function(answer, verdict):
    assert CHECK(answer) == verdict


def test_function_with_another_signature():
    verdict = CHECK(lambda student: student)
    assert verdict.status == "wrong"
    assert verdict.message.startswith("your answer raised TypeError: ")


def test_function_hands_out_clones_each_time():
    before = [[tensor.clone() for tensor in probe[:2]] for probe in PROBES]
    with torch.no_grad():
        CHECK(in_place)
    for clones, probe in zip(before, PROBES, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(clones, probe[:2], strict=True))


def test_function_sees_a_mistake_that_only_some_probes_show():
    def without_square(student, teacher, t):
        return kd(student, teacher, t) / t**2

    assert torch.equal(without_square(*PROBES[0]), kd(*PROBES[0]))  # T = 1 hides it
    assert CHECK(without_square).status == "wrong"


def test_function_works_where_gradients_are_off():
    with torch.no_grad():
        assert CHECK(from_scratch).status == "right"


def test_function_needs_probes():
    with pytest.raises(ValueError, match="probes is empty"):
        function(kd, [])


@pytest.mark.parametrize("hints", [(), ("a", "b"), ("a", "b", "")])
def test_an_exercise_needs_three_hints(hints):
    with pytest.raises(ValueError, match="expected three"):
        Exercise("x", number(1), hints)


def test_judge_survives_a_hostile_answer_and_shortens_its_message():
    class Hostile:
        def __getattr__(self, name):
            raise RuntimeError("no\n\n" + "x" * 500)

    verdict = Exercise("x", number(1), HINTS).judge(Hostile())
    assert verdict.status == "wrong"
    assert verdict.message.startswith("your answer raised RuntimeError: no xxx")
    assert "\n" not in verdict.message and len(verdict.message) < 250


@pytest.fixture
def registry(monkeypatch):
    """Lesson files ``one`` and ``two`` as if they lay in the folder."""
    monkeypatch.setattr(
        exercises.pkgutil,
        "iter_modules",
        lambda path: [types.SimpleNamespace(name=n) for n in modules],
    )
    modules = {
        "one": [Exercise("temperature", number(4), HINTS)],
        "two": [Exercise("bug", choice("x"), HINTS)],
    }
    for name in modules:
        module = types.ModuleType(f"kdlab.exercises.{name}")
        module.EXERCISES = modules[name]
        monkeypatch.setitem(sys.modules, module.__name__, module)
    exercises._registry.cache_clear()
    yield modules
    exercises._registry.cache_clear()


def test_registry_collects_one_file_per_lesson(registry):
    assert exercises.available() == ("temperature", "bug")
    assert exercises.find("bug").hints == HINTS
    assert exercises.find("nothing") is None


def test_two_exercises_of_one_name_are_refused(registry):
    registry["two"].append(Exercise("temperature", number(1), HINTS))
    with pytest.raises(ValueError, match="two exercises are called 'temperature'"):
        exercises.available()


def test_the_real_folder_can_be_read():
    exercises._registry.cache_clear()
    assert all(exercises.find(name).name == name for name in exercises.available())


def test_a_function_that_is_not_to_be_differentiated_is_judged_by_its_values():
    def whole(x):
        return x.round()

    check = function(whole, [(torch.tensor([0.2, 1.7]),)], gradients=False)
    assert check(lambda x: torch.tensor([0.0, 2.0])).status == "right"
    assert check(lambda x: x + (x.round() - x)).status == "right"
    assert check(lambda x: x).status == "wrong"
    strict = function(whole, [(torch.tensor([0.2, 1.7]),)])
    assert strict(lambda x: x.round().detach()).status == "close"
