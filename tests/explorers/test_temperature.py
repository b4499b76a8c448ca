"""The temperature explorer: numbers against SciPy, the picture against the numbers."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from scipy.special import softmax
from scipy.stats import entropy

from kdlab import plots
from kdlab.explorers import TemperatureExplorer

RNG = np.random.default_rng(1)
CLASSES = list("0123456789ABCDEF")
IMAGES = RNG.random((6, 8, 8))
LOGITS = RNG.normal(0, 4, (6, 16))
TARGETS = LOGITS.argsort(1)[:, -2]  # the teacher is wrong on every image


@pytest.fixture
def explorer():
    return TemperatureExplorer(IMAGES, torch.tensor(LOGITS), CLASSES, torch.tensor(TARGETS))


@pytest.mark.parametrize("temperature", [0.25, 1, 4, 20])
@pytest.mark.parametrize("image", [0, 5])
def test_numbers_equal_scipy(explorer, image, temperature):
    result = explorer.set(image=image, temperature=temperature)
    p = softmax(LOGITS[image] / temperature)
    np.testing.assert_allclose(result.probabilities, p, rtol=1e-12)
    assert result.entropy == pytest.approx(entropy(p, base=2))
    assert result.effective_classes == pytest.approx(2 ** entropy(p, base=2))
    first, second = np.sort(p)[:-3:-1]
    assert result.ratio == pytest.approx(first / second)
    np.testing.assert_array_equal(result.order, np.argsort(-p))


def test_compute_is_pure(explorer):
    picture = explorer.picture.value
    first = explorer.compute({"image": 2, "temperature": 3.0})
    second = explorer.compute({"image": 2, "temperature": 3.0})
    np.testing.assert_array_equal(first.probabilities, second.probabilities)
    assert explorer.state["image"] == 0 and explorer.picture.value == picture


def test_readout_has_the_numbers(explorer):
    result = explorer.set(image=3, temperature=2)
    first, second = (CLASSES[i] for i in result.order[:2])
    assert repr(explorer) == (
        f"<TemperatureExplorer T=2.0 | image 3 | entropy {result.entropy:.2f} bits | "
        f"{first} : {second} = {result.ratio:.2g} : 1 | "
        f"{result.effective_classes:.1f} effective classes>"
    )
    assert (
        TemperatureExplorer(IMAGES, LOGITS, CLASSES).describe(explorer.result).startswith("T=2.0")
    )


def test_starts_at_one_and_covers_the_range(explorer):
    slider = explorer.controls["temperature"]
    assert "T=1.0" in explorer.readout.value
    assert 2**slider.min == pytest.approx(0.25) and 2**slider.max == pytest.approx(20)
    steps = slider.min / slider.step
    assert steps == round(steps), "T = 1 must be a stop of the slider"


def test_picture_shows_the_ten_likeliest_and_the_rest_summed(explorer):
    result = explorer.set(image=2, temperature=5)
    picture, bars = explorer.figure.axes
    np.testing.assert_array_equal(picture.images[0].get_array(), IMAGES[2])
    assert picture.get_title() == f"true class: {CLASSES[TARGETS[2]]}"
    heights = [patch.get_height() for patch in bars.patches]
    p = softmax(LOGITS[2] / 5)
    np.testing.assert_allclose(heights[:10], np.sort(p)[::-1][:10])
    assert sum(heights) == pytest.approx(1)
    names = [label.get_text() for label in bars.get_xticklabels()]
    assert names == [*(CLASSES[i] for i in result.order[:10]), "others"]
    colors = [to_hex(patch.get_facecolor()).upper() for patch in bars.patches]
    assert colors[1] == plots.ORANGE and colors[0] == plots.BLUE
    assert colors[-1] == plots.GREY.upper() and colors.count(plots.ORANGE) == 1


def test_a_frame_does_not_depend_on_the_way_to_it(explorer):
    straight = TemperatureExplorer(IMAGES, LOGITS, CLASSES, TARGETS)
    straight.set(image=4, temperature=8)
    for image, temperature in ((1, 0.25), (5, 20), (4, 8)):
        explorer.set(image=image, temperature=temperature)
    assert explorer.picture.value == straight.picture.value


def test_few_classes_need_no_rest_and_targets_are_optional():
    explorer = TemperatureExplorer(IMAGES, LOGITS[:, :3], ["airplane", "cat", "dog"])
    picture, bars = explorer.figure.axes
    assert len(bars.patches) == 3 and picture.get_title() == ""


@pytest.mark.parametrize("scale", [1e4, 1e300])
def test_extreme_logits_stay_finite_where_they_can(scale):
    explorer = TemperatureExplorer(IMAGES, LOGITS * scale, CLASSES)
    result = explorer.set(temperature=0.25)
    assert result.entropy == pytest.approx(0, abs=1e-9) and np.isfinite(result.probabilities).all()
    assert "more than 1000 : 1" in repr(explorer)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"images": IMAGES[0]}, r"images has shape \(8, 8\)"),
        ({"logits": LOGITS[:4]}, r"logits has shape \(4, 16\); expected \(6, 16\)"),
        ({"logits": LOGITS[:, :1], "classes": ["a"]}, "at least two classes"),
        ({"logits": LOGITS * np.nan}, "logits has NaN"),
        ({"targets": TARGETS[:2]}, r"targets has shape \(2,\); expected \(6,\)"),
        ({"targets": TARGETS + 99}, "targets must be from 0 to 15"),
        ({"targets": TARGETS - 99}, "targets must be from 0 to 15"),
    ],
)
def test_refuses(change, match):
    arguments = {"images": IMAGES, "logits": LOGITS, "classes": CLASSES, "targets": TARGETS}
    with pytest.raises(ValueError, match=match):
        TemperatureExplorer(**{**arguments, **change})
