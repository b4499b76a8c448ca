"""A small student, teacher and data for any method, and how a method is asked without `fit`."""

from collections import OrderedDict

import torch
from torch import nn

from kdlab.datasets import Split
from kdlab.distillers import Outputs, build
from kdlab.losses.checks import compute_dtype
from kdlab.models import Committee, Taps, build_for, logits_of
from kdlab.models.modes import inputs_for

CLASSES = 4


def cnn(width, seed=0, classes=CLASSES):
    """Maps of three sizes, an embedding, logits; smooth, and without norms that relate images."""
    torch.manual_seed(seed)
    widths = {"stem": (1, width), "stage1": (width, width), "stage2": (width, 2 * width)}
    widths["stage3"] = (2 * width, 2 * width)
    parts = {
        name: nn.Sequential(nn.Conv2d(*sizes, 3, 1 if name == "stem" else 2, 1), nn.SiLU())
        for name, sizes in widths.items()
    }
    parts["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    parts["head"] = nn.Linear(2 * width, classes)
    with torch.no_grad():
        parts["head"].weight.mul_(20)  # so that images get different answers
    return nn.Sequential(OrderedDict(parts)).eval()


def vit(width, seed=0, classes=CLASSES):
    sizes = {"width": width, "depth": 2, "heads": 2, "patch": 4}
    return build_for("vit", (1, 16, 16), classes, seed=seed, **sizes).eval()


OPTIONS = {
    "channel_gated_hints": {"steps": 2},
    "factor_transfer": {"epochs": 1},
    "sobolev": {"directions": None},
}
ATTENTION = ("attention_distributions", "self_attention_relations")


def pair(name):
    """A student and a teacher that this method can compare."""
    if name in ATTENTION:
        return vit(8, 1), vit(12, 2)
    teacher = cnn(6, 2)
    return cnn(4, 1), Committee(
        [teacher, cnn(5, 3)]
    ).eval() if name == "gated_teachers" else teacher


def images(n=12, dtype=torch.float32):
    x = torch.randn(n, 1, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    return Split(x, torch.arange(n) % CLASSES)


def prepared(method, student, teacher, train):
    torch.manual_seed(1)
    with torch.no_grad():
        method.prepare(student, teacher, train)
    return method


def make(name, **options):
    return build(name, **{**OPTIONS.get(name, {}), **options})


def outputs(net, taps, x, index=None, graph=True, by_input=False):
    x = x.clone().requires_grad_(by_input)
    with Taps(net, taps) as read, torch.set_grad_enabled(graph or by_input):
        logits = logits_of(net(inputs_for(net, x)))  # as `fit` asks a model
        logits = logits.to(compute_dtype(logits))
        return Outputs(logits, {path: read[path] for path in read}, x, index)


def ask(method, student, teacher, train, index):
    """The terms for the images at `index`."""
    slopes = method.needs_input_gradients
    x, y = train.x[index], train.y[index]
    said = None
    if method.needs_teacher:
        said = outputs(teacher, method.teacher_taps, x, index, graph=False, by_input=slopes)
    mine = outputs(student, method.student_taps, x, index, by_input=slopes)
    return method(mine, said, y)
