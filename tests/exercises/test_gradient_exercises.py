"""The exercises of lesson 03: right answers pass, the usual mistakes are told apart."""

import pytest
import torch
import torch.nn.functional as F

from kdlab.exercises import find
from kdlab.exercises import gradients as module


def verdict(name, answer):
    return find(name).judge(answer)


def slope(model, images, classes):
    images = images.requires_grad_()
    chosen = model(images).gather(1, classes.unsqueeze(1))
    return torch.autograd.grad(chosen.sum(), images, create_graph=True)[0]


def one_by_one(model, images, classes):
    """The same through torch.func, image by image, without touching the images."""

    def logit(image, label):
        return model(image.unsqueeze(0))[0].gather(0, label.unsqueeze(0)).squeeze(0)

    return torch.func.vmap(torch.func.grad(logit))(images, classes)


def no_graph(model, images, classes):
    return slope(model, images, classes).detach()


def kept_images_only(model, images, classes):
    """A graph to a copy of the weights: the value is right, the weights learn nothing from it."""
    value = no_graph(model, images, classes)
    return value + 0 * sum(p.sum() for p in model.parameters())


def of(output):
    def wrong(model, images, classes):
        images = images.requires_grad_()
        return torch.autograd.grad(output(model(images), classes), images, create_graph=True)[0]

    return wrong


@pytest.mark.parametrize("answer", [slope, one_by_one])
def test_a_right_slope_passes(answer):
    assert verdict("slope of a logit", answer).status == "right"


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (no_graph, "close", "weights cannot learn"),
        (kept_images_only, "close", "its gradient is not"),
        (of(lambda z, y: z.sum()), "wrong", "all logits"),
        (of(lambda z, y: z.gather(1, y[:, None]).mean()), "wrong", "B times too small"),
        (of(lambda z, y: F.cross_entropy(z, y, reduction="sum")), "wrong", "cross-entropy"),
        (of(lambda z, y: z.softmax(1).gather(1, y[:, None]).sum()), "wrong", "softmax out"),
        (of(lambda z, y: z.max(1).values.sum()), "wrong", "of the largest logit"),
        (of(lambda z, y: z.square().sum()), "wrong", "differs"),
        (lambda model, images, classes: model(images), "wrong", "shape (4, 3)"),
        (lambda model, images, classes: 3.0, "wrong", "got a float"),
        (lambda model, images, classes: ..., "not yet", "not yet"),
        (lambda images: images, "wrong", "raised TypeError"),
        (3, "wrong", "expected a function"),
    ],
)
def test_a_mistaken_slope_is_told_what_it_is(answer, status, said):
    given = verdict("slope of a logit", answer)
    assert given.status == status and said in given.message


def test_the_probe_tells_every_mistake_from_the_right_slope_and_from_each_other():
    images = module._IMAGES.clone().requires_grad_()
    rows = [
        f(module._net(), images, module._ASKED).detach()
        for f in (module._wanted, *(mistake for mistake, _ in module._MISTAKEN))
    ]
    for place, one in enumerate(rows):
        assert all((one - other).abs().max() > 1e-2 for other in rows[:place])


def matching(student, teacher):
    s, t = (g.flatten(1) / g.flatten(1).norm(dim=1, keepdim=True) for g in (student, teacher))
    return ((s - t) ** 2).sum(dim=1).mean()


def cosine(student, teacher):
    return (2 - 2 * F.cosine_similarity(student.flatten(1), teacher.flatten(1))).mean()


@pytest.mark.parametrize("answer", [matching, cosine])
def test_a_right_loss_passes(answer):
    assert verdict("jacobian matching", answer).status == "right"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda s, t: (s - t).square().flatten(1).sum(1).mean(), "length first"),
        (lambda s, t: ((s / s.norm() - t / t.norm()) ** 2).sum(), "of its own"),
        (lambda s, t: matching(s, t) / 9, "sum over the pixels"),
        (lambda s, t: matching(s, t) * 4, "B times too large"),
        (
            lambda s, t: (F.normalize(s.flatten(1)) - F.normalize(t.flatten(1))).norm(dim=1).mean(),
            "square",
        ),
        (lambda s, t: (1 - F.cosine_similarity(s.flatten(1), t.flatten(1))).mean(), "half of it"),
        (lambda s, t: matching(s, t) + 1, "differs"),
    ],
)
def test_a_mistaken_loss_is_told_what_it_is(answer, said):
    given = verdict("jacobian matching", answer)
    assert given.status == "wrong" and said in given.message


def test_a_loss_without_a_gradient_is_close():
    assert verdict("jacobian matching", lambda s, t: matching(s.detach(), t)).status == "close"


@pytest.mark.parametrize(
    ("answer", "status"), [(36, "right"), (36.0, "right"), (35, "close"), (1, "wrong")]
)
def test_backward_passes(answer, status):
    assert verdict("backward passes", answer).status == status


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"silu", "softplus", "tanh"}, "right"),
        (["tanh", "silu"], "close"),
        ({"relu", "silu"}, "wrong"),
        ("sine", "wrong"),
    ],
)
def test_activations(answer, status):
    assert verdict("activations that bend", answer).status == status


def test_the_right_activations_are_those_with_a_second_derivative():
    x = torch.linspace(-2, 2, 40, requires_grad=True)
    bends = set()
    for name in module.ACTIVATIONS:
        net = module.build("mlp", 2, in_features=1, activation=name, seed=0)
        (first,) = torch.autograd.grad(net.activation(x).sum(), x, create_graph=True)
        if first.requires_grad and torch.autograd.grad(first.sum(), x)[0].abs().max() > 1e-3:
            bends.add(name)
    assert verdict("activations that bend", bends).status == "right"
