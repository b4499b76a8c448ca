"""The methods of lesson 03, as its stored comparison and its live one train them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from kdlab.datasets.views import Augmentation
from kdlab.distillers import Distiller, build
from kdlab.training.reference import reference_results
from kdlab.training.study import Setting

STEPS, BATCH = 200, 32
# One step with slopes takes about as long as five of soft targets, or two and a half with noise.
MORE_STEPS = {"soft targets, same time": 5.0, "noise, same time": 2.5}
STUDENT = ("cnn_tiny", {"activation": "silu"})
RELU = ("cnn_tiny", {"activation": "relu"})


def _plus(name: str) -> Callable[[float], Setting]:
    def setting(weight: float) -> Setting:
        return Setting(_soft() + build(name, weight=weight))

    return setting


def _soft() -> Distiller:
    return build("soft_targets")


def _noisy(sigma: float) -> Setting:
    return Setting(_soft(), options={"augment": Augmentation(shift=0, noise=sigma)})


# Name → what it is at a strength: a weight of slopes, or the noise's standard deviation.
METHODS: Mapping[str, Callable[[float], Setting]] = {
    "labels": lambda _: Setting(),
    "soft targets": lambda _: Setting(_soft()),
    "soft targets, same time": lambda _: Setting(_soft()),
    "noise": _noisy,
    "noise, same time": _noisy,
    "Jacobian": _plus("jacobian_matching"),
    "Sobolev": _plus("sobolev"),
    "gradient attention": _plus("gradient_attention"),
}


def slope_setting(method: str, strength: float, lr: float, images: int) -> Setting:
    """Return one of ``METHODS`` at a budget of ``STEPS`` steps on ``images`` training images.

    All but labels are added to soft targets. "same time" gets the steps that fit into the time of
    a method with slopes.
    """
    steps = round(STEPS * MORE_STEPS.get(method, 1.0))
    epochs = -(-steps // max(1, images // BATCH))
    setting = METHODS[method](strength)
    return replace(setting, options={"lr": lr, "epochs": epochs, **setting.options})


def tuned_slopes(images: int) -> dict[str, Setting]:
    """Return every method at the strength and rate that were best on validation images.

    The choice was made once, with 300 training images, and holds for all sizes.
    """
    table, _ = reference_results("gradient_choice")
    means = table.groupby(["method", "strength", "lr"])["val_accuracy"].mean()
    settings = {}
    for method in METHODS:
        strength, lr = means[method].idxmax()
        settings[method] = slope_setting(method, strength, lr, images)
    return settings
