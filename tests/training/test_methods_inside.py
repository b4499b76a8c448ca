"""Every method that looks inside a model, in one short run each, with a pair it has not chosen."""

import math

import pytest
import torch
from tiny import distance, make_data

from kdlab.distillers import SoftTargets, build, contestants
from kdlab.models import build_for
from kdlab.training import device, fit

INSIDE = list(contestants(complete=False))
COPY = "weight_transfer"  # it has no term: it is over when training begins


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", INSIDE)
def test_every_method_of_the_inside_trains_any_pair_beside_any_other(name, precision, monkeypatch):
    """Another architecture, other widths and strides, few labels; terms under their names."""
    monkeypatch.setattr(device, "has_native_bf16", lambda where: True)  # emulated elsewhere: slow
    data = make_data(48).with_labels(12)
    student = build_for("resnet8", data.shape, data.num_classes, seed=0, activation="silu")
    teacher = build_for("cnn_large", data.shape, data.num_classes, seed=1)
    before = [p.clone() for p in teacher.parameters()]
    method = SoftTargets() + 0.1 * build(name, **({"strict": False} if name == COPY else {}))
    assert not build(name).complete and build(name).needs_teacher
    budget = {"epochs": 2, "batch_size": 16, "lr": 0.01, "precision": precision}
    run = fit(student, data, method, teacher=teacher, **budget)
    terms = set(run.history.last) - {"epoch", "loss", "lr", "val_accuracy", "val_nll"}
    assert {"hard", "soft"} <= terms and (len(terms) > 2 or name == COPY)
    assert all(math.isfinite(value) for value in run.history.last.values())
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    plain = build_for("resnet8", data.shape, data.num_classes, seed=0, activation="silu")
    fit(plain, data, SoftTargets(), teacher=teacher, **budget)
    assert distance(plain, student) > 1e-6
