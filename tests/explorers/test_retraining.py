"""The explorer that trains: eight students for each temperature."""

import numpy as np
import pytest

from kdlab.datasets import from_arrays, load
from kdlab.explorers import RetrainingExplorer
from kdlab.models import build_for
from kdlab.training import load_teacher


@pytest.fixture(scope="module")
def digits():
    data = load("digits")
    return data.subset(60), load_teacher(data, progress=False)[0]


def explorer(digits, **options):
    return RetrainingExplorer(*digits, **{"students": 4, "epochs": 20, **options})


def test_moving_the_slider_trains_anew_and_changes_the_picture(digits):
    shown = explorer(digits)
    before, picture = shown.result, shown.picture.value
    shown.controls["temperature"].value = 1.0
    assert shown.result.temperature == 1.0
    assert not np.array_equal(shown.result.accuracies, before.accuracies)
    assert shown.picture.value != picture
    assert repr(shown).startswith("<RetrainingExplorer T=1.0 | soft targets ")


def test_the_same_temperature_gives_the_same_students(digits):
    shown = explorer(digits)
    first = shown.result.accuracies
    shown.set(temperature=1.0)
    assert np.array_equal(shown.set(temperature=4.0).accuracies, first)


def test_every_student_starts_elsewhere(digits):
    assert len(set(explorer(digits, students=6).result.accuracies)) > 1


def test_tried_temperatures_stay(digits):
    shown = explorer(digits)
    shown.set(temperature=1.0)
    shown.set(temperature=8.0)
    assert sorted(shown.tried) == [1.0, 4.0, 8.0]


def test_baseline_sees_no_teacher(digits):
    data, _ = digits
    stranger = build_for("mlp", data.shape, data.num_classes, hidden=(8,), seed=5)
    taught_well, taught_badly = explorer(digits), explorer((data, stranger))
    assert np.array_equal(taught_well.baseline, taught_badly.baseline)
    assert not np.array_equal(taught_well.result.accuracies, taught_badly.result.accuracies)


def test_one_student_has_no_interval(digits):
    with pytest.raises(ValueError, match="students: 1 came"):
        explorer(digits, students=1)


def test_wide_images_do_not_diverge():
    """At the rate that suits 64 inputs, 3,072 of them end in NaN, which counts as 0 % right."""
    generator = np.random.default_rng(0)
    pixels = generator.random((140, 32, 32, 3), dtype=np.float32)
    labels = np.arange(140) % 2
    pixels[labels == 1] *= 0.5
    data = from_arrays(pixels[:80], labels[:80], pixels[80:], labels[80:])
    teacher = build_for("mlp", data.shape, 2, seed=1)
    shown = RetrainingExplorer(data, teacher, students=2, epochs=60)
    assert shown.baseline.min() > 0.4 and shown.result.accuracies.min() > 0.2
