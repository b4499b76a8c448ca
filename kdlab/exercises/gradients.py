"""The exercises of lesson 03."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.exercises import NOT_YET, Exercise, Verdict, choice, function, is_placeholder, number
from kdlab.losses import input_gradient, jacobian_matching_loss
from kdlab.models import build

CLASSES = 36  # of the glyphs
ACTIVATIONS = ("relu", "leaky_relu", "silu", "softplus", "tanh")

_PROBES = torch.Generator().manual_seed(3)
_STUDENT, _TEACHER = (torch.randn(4, 1, 3, 3, generator=_PROBES) for _ in range(2))
_IMAGES = torch.randn(4, 6, generator=_PROBES)
_ASKED = torch.tensor([2, 0, 1, 2])


def _net() -> nn.Module:
    return build("mlp", 3, in_features=6, hidden=(8,), activation="tanh", seed=3)


def _wanted(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    asked = F.one_hot(classes, 3)
    return input_gradient(model(images), images, asked, create_graph=True)


def _of_all(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    return input_gradient(model(images), images, torch.ones(3), create_graph=False)


def _of_mean(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    return _wanted(model, images, classes) / len(images)


def _of_loss(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    errors = F.cross_entropy(model(images), classes, reduction="none")
    return input_gradient(errors, images, create_graph=False)


def _of_probability(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    chances = model(images).softmax(dim=-1)
    return input_gradient(chances, images, F.one_hot(classes, 3), create_graph=False)


def _of_largest(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    return input_gradient(model(images).amax(dim=-1), images, create_graph=False)


_MISTAKEN = (
    (_of_all, "that is the slope of all logits together: pick each image's own class"),
    (_of_mean, "it is B times too small: add the logits of the batch up, do not average them"),
    (_of_loss, "that is the slope of the cross-entropy: take the logit itself"),
    (_of_probability, "that is the slope of the probability: leave the softmax out"),
    (_of_largest, "that is the slope of the largest logit: take that of the class asked for"),
)


def _check_slope(answer: Any) -> Verdict:
    """Compare the learner's slope, and what the weights learn from it, with the package's."""
    if not callable(answer):
        return Verdict("wrong", "expected a function of a model, images and classes")
    net = _net()
    given = answer(net, _IMAGES.clone(), _ASKED.clone())
    if is_placeholder(given):
        return Verdict("not yet", NOT_YET)
    if not isinstance(given, Tensor):
        return Verdict("wrong", f"expected a tensor, got a {type(given).__name__}")
    if given.shape != _IMAGES.shape:
        shapes = f"{tuple(given.shape)}; expected that of the images, {tuple(_IMAGES.shape)}"
        return Verdict("wrong", f"the result has shape {shapes}")
    images = _IMAGES.clone().requires_grad_()
    wanted = _wanted(net, images, _ASKED)
    if not torch.allclose(given, wanted, atol=1e-5):
        for mistake, hint in _MISTAKEN:
            if torch.allclose(given, mistake(net, images, _ASKED), atol=1e-5):
                return Verdict("wrong", hint)
        return Verdict("wrong", "the value differs from the reference")
    if not given.requires_grad:
        return Verdict("close", "the value is right, but the weights cannot learn from it")
    weight = next(net.parameters())
    mine, theirs = (
        torch.autograd.grad(slope.square().sum(), weight, retain_graph=True)[0]
        for slope in (given, wanted)
    )
    same = torch.allclose(mine, theirs, atol=1e-5)
    return Verdict("right") if same else Verdict("close", "the value is right, its gradient is not")


def _unit(slopes: Tensor) -> Tensor:
    return F.normalize(slopes.flatten(1), dim=1)


def _not_normalised(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).flatten(1).square().sum(dim=1).mean()


def _one_length(student: Tensor, teacher: Tensor) -> Tensor:
    gap = F.normalize(student.flatten(), dim=0) - F.normalize(teacher.flatten(), dim=0)
    return gap.square().sum()


def _mean_of_pixels(student: Tensor, teacher: Tensor) -> Tensor:
    return (_unit(student) - _unit(teacher)).square().mean()


def _sum_of_samples(student: Tensor, teacher: Tensor) -> Tensor:
    return (_unit(student) - _unit(teacher)).square().sum()


def _one_minus_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(student.flatten(1), teacher.flatten(1)).mean()


def _not_squared(student: Tensor, teacher: Tensor) -> Tensor:
    return (_unit(student) - _unit(teacher)).norm(dim=1).mean()


EXERCISES = [
    Exercise(
        "slope of a logit",
        _check_slope,
        (
            "torch.autograd.grad(y, x) differentiates a single number y by a tensor x.",
            "Pick each image's logit with gather and add them up: no image depends on another.",
            "torch.autograd.grad(..., images, create_graph=True)[0], where images.requires_grad_()",
        ),
    ),
    Exercise(
        "jacobian matching",
        function(
            jacobian_matching_loss,
            [(_STUDENT, _TEACHER), (5 * _STUDENT, _TEACHER), (_STUDENT, 0.2 * _TEACHER)],
            diagnoses=[
                (_not_normalised, "only directions count: divide each slope by its length first"),
                (_one_length, "each image has a length of its own: do not use that of the batch"),
                (_mean_of_pixels, "sum over the pixels of an image, average over the images only"),
                (_sum_of_samples, "it is B times too large: average over the images"),
                (_not_squared, "square the distance"),
                (_one_minus_cosine, "that is half of it: the squared distance is 2 − 2 · cosine"),
            ],
        ),
        (
            "Flatten each slope to one row per image: slopes.flatten(1).",
            "Divide each row by its length, then take the squared distance of the rows.",
            "F.normalize(student.flatten(1), dim=1) gives the rows; sum over dim 1, then mean.",
        ),
    ),
    Exercise(
        "backward passes",
        number(CLASSES, tolerance=0, close=1),
        (
            "One backward pass gives the gradient of one number.",
            "The Jacobian has one row for each output. How many classes are there?",
            "One pass for each class: data.num_classes.",
        ),
    ),
    Exercise(
        "activations that bend",
        choice({"silu", "softplus", "tanh"}, ACTIVATIONS),
        (
            "Which of them have a second derivative that is not zero?",
            "ReLU and its relatives are made of straight pieces; a straight line does not bend.",
            "Three of the five are smooth.",
        ),
    ),
]
