"""What a study is told wrongly is refused in kind words, before anything is trained."""

import re
import sys

import numpy as np
import pytest
from tiny import make_data, make_mlp

from kdlab.distillers import SoftTargets
from kdlab.training import Setting, fit, study

DATA = make_data()
MODEL = make_mlp(DATA)
METHOD = "a method such as SoftTargets() (not the class, not a name)"


@pytest.fixture(autouse=True)
def nothing_trains(monkeypatch):
    def trains(*args, **options):
        raise AssertionError("it trained")

    for name in ("fit", "fit_stacked", "_ask_each_teacher_once"):
        monkeypatch.setattr(sys.modules["kdlab.training.study"], name, trains)


def refuses(message, student="mlp", data=DATA, settings=None, **options):
    """The message begins so and, after "...", goes on so."""
    pattern = ".*".join(map(re.escape, message.split("...")))
    settings = {"labels": None} if settings is None else settings
    with pytest.raises(ValueError, match=f"(?s)^{pattern}"):
        study(student, data, settings, **options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "settings: {} came, expected at least one method by the name to show"),
        ([SoftTargets()], "settings: [SoftTargets(...came, expected at least one method"),
        ({"a": SoftTargets}, f"distiller: <class ... came in setting 'a', expected {METHOD}"),
        ({"a": "soft_targets"}, f"distiller: 'soft_targets' came in setting 'a', ...{METHOD}"),
        ({"a": Setting(SoftTargets)}, f"distiller: <class ... came in setting 'a', ...{METHOD}"),
        ({"a": Setting(data="glyphs")}, "data: 'glyphs' came in setting 'a', expected a data set"),
        ({"a": Setting(teacher="cnn")}, "teacher: 'cnn' came in setting 'a', expected a trained"),
        ({"a": Setting(options=["lr"])}, "options: ['lr'] came in setting 'a', expected arguments"),
        ({"a": None, "b": SoftTargets()}, "teacher: SoftTargets needs one...for setting 'b'"),
        ({"a": None, "b": Setting(options={"epochs": 0})}, "epochs: 0 came"),
        (
            {"a": Setting(options={"rate": 1.0})},
            "unknown argument 'rate' in setting 'a'; known: ep",
        ),
        ({"a": Setting(options={"workers": 2})}, "unknown argument 'workers' in setting 'a'"),
        (
            {"a": Setting(options={"teacher": MODEL})},
            "teacher: it came in setting 'a', but...Setting(teacher=...)",
        ),
        ({"a": None, "b": Setting(student="mpl")}, "unknown model 'mpl' (did you mean 'mlp'?)"),
    ],
)
def test_settings(settings, message):
    refuses(message, settings=settings)


@pytest.mark.parametrize(
    "student", [MODEL, None, 3, ("mlp",), ("mlp", 3), ("mlp", {}, {})], ids=str
)
def test_a_student_that_is_none(student):
    refuses("student: ... came in setting 'labels', expected a name of models.available()", student)


@pytest.mark.parametrize("student", [lambda seed: MODEL, lambda seed: "mlp"], ids=["one", "name"])
def test_a_function_that_makes_no_new_model(student):
    refuses("student: the function of setting 'labels' gave ...expected a new model", student)


@pytest.mark.parametrize("data", [None, "glyphs", DATA.train])
def test_data(data):
    refuses("data: ... came in setting 'labels', expected a data set", data=data)


@pytest.mark.parametrize(
    "seeds",
    [0, -1, 2.0, True, None, "3", [], [-1], [0, 1.5], [True], ["0"], [1, 1], np.array([2, 0, 2])],
)
def test_seeds(seeds):
    refuses("seeds: ... came, expected how many, such as 5, or a list of different", seeds=seeds)


@pytest.mark.parametrize("workers", ["two", 0, -1, 1.0, True])
def test_workers(workers):
    refuses(f"workers: {workers!r} came, expected a whole number from 1 on", workers=workers)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("learning_rate", "unknown argument 'learning_rate' in a call of study; known: seeds, "),
        ("epoch", "unknown argument 'epoch' in a call of study (did you mean 'epochs'?)"),
        ("worker", "unknown argument 'worker' in a call of study (did you mean 'workers'?)"),
        ("seed", "seed: it came in a call of study, but...give seeds=..."),
        ("teacher_outputs", "teacher_outputs: it came...leave it out: a study asks each teacher"),
        ("checkpoint", "checkpoint: it came in a call of study, but ... `kdlab sweep`"),
    ],
)
def test_other_arguments(name, message):
    refuses(message, **{name: 1})


@pytest.mark.parametrize("seeds", [np.int64(2), range(2), np.arange(2), (1, 0)], ids=str)
def test_numbers_of_other_kinds_are_as_good(monkeypatch, seeds):
    module = sys.modules["kdlab.training.study"]
    monkeypatch.setattr(module, "fit", fit)
    monkeypatch.setattr(module, "_ask_each_teacher_once", lambda lines: lines)
    results = study("cnn_tiny", DATA, {"a": None}, seeds=seeds, epochs=1, workers=np.int64(1))
    assert list(results.seed) == [0, 1]


def test_a_function_without_a_seed_is_named():
    with pytest.raises(ValueError, match=r"^student: got a function that does not take a seed"):
        study(lambda: make_mlp(DATA), DATA, {"labels": None}, seeds=1, epochs=1)
