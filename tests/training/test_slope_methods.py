"""The methods of lesson 03: what they are, what they may spend, and how their places are chosen."""

import pandas as pd
import pytest

from kdlab.distillers import SoftTargets, available
from kdlab.training import slope_methods
from kdlab.training.slope_methods import BATCH, METHODS, STEPS, slope_setting, tuned_slopes

SLOPES = {
    "Jacobian": "jacobian_matching",
    "Sobolev": "sobolev",
    "gradient attention": "gradient_attention",
}


def parts(setting):
    return list(setting.distiller.parts)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("images", [20, 100, 300, 1000])
def test_every_size_gets_the_same_number_of_steps(method, images):
    options = slope_setting(method, 1.0, 0.3, images).options
    steps_per_epoch = max(1, images // BATCH)
    more = {"soft targets, same time": 5, "noise, same time": 2.5}.get(method, 1)
    assert 0 <= options["epochs"] * steps_per_epoch - more * STEPS < steps_per_epoch
    assert options["lr"] == 0.3


@pytest.mark.parametrize(("method", "name"), SLOPES.items())
def test_slopes_come_on_top_of_soft_targets_with_the_given_weight(method, name):
    soft, slope = parts(slope_setting(method, 7.0, 0.1, 300))
    assert isinstance(soft, SoftTargets) and isinstance(slope, available()[name])
    assert slope.weight == 7.0


@pytest.mark.parametrize("method", ["noise", "noise, same time"])
def test_noise_is_a_view_of_the_images_and_moves_nothing(method):
    setting = slope_setting(method, 0.4, 0.1, 300)
    augment = setting.options["augment"]
    assert (augment.noise, augment.shift, augment.flip) == (0.4, 0, False)
    assert isinstance(setting.distiller, SoftTargets)


def test_the_others_see_the_images_as_they_are():
    for method in METHODS:
        assert ("augment" in slope_setting(method, 0.4, 0.1, 300).options) == ("noise" in method)
    assert slope_setting("labels", 0.0, 0.1, 300).distiller is None


def test_the_place_is_the_best_mean_on_validation_images(monkeypatch):
    rows = [
        {"method": method, "strength": strength, "lr": lr, "val_accuracy": value}
        for method in METHODS
        for strength, lr, values in (
            (1.0, 0.1, (0.9, 0.1)),  # one lucky seed
            (2.0, 0.2, (0.6, 0.7)),
            (3.0, 0.4, (0.5, 0.5)),
        )
        for value in values
    ]
    monkeypatch.setattr(slope_methods, "reference_results", lambda name: (pd.DataFrame(rows), {}))
    tuned = tuned_slopes(300)
    assert list(tuned) == list(METHODS)
    assert all(setting.options["lr"] == 0.2 for setting in tuned.values())
    assert parts(tuned["Sobolev"])[1].weight == 2.0


def test_the_stored_choice_has_every_method():
    assert list(tuned_slopes(300)) == list(METHODS)
