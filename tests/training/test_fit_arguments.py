"""Bad arguments are refused before anything is trained, by a message that names them."""

import copy

import numpy as np
import pytest
import torch
from tiny import Readable, make_data, make_mlp
from torch import nn

from kdlab.datasets.views import Augmentation
from kdlab.distillers import LabelSmoothing, SoftTargets
from kdlab.training import TeacherOutputs, device, fit

DATA = make_data()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("epochs", v) for v in (0, -1, 1.5, "3", None, True)],
        *[("batch_size", v) for v in (0, -8, 2.0)],
        *[("lr", v) for v in (0, -0.1, float("nan"), float("inf"), "0.1", None)],
        *[("seed", v) for v in (-1, 0.5, "0", None)],
        *[("weight_decay", v) for v in (-1e-4, float("nan"), "0")],
        *[("optimizer", v) for v in ("adam", "SGD", "")],
        *[("device", v) for v in ("gpu", "", "tpu:0")],
        *[("precision", v) for v in ("fp16", "float32", "")],
        *[("views", v) for v in (0, -1, 2.5)],
    ],
)
def test_a_bad_value_is_refused_by_name(name, value):
    model = make_mlp(DATA)
    before = copy.deepcopy(model.state_dict())
    augment = Augmentation(1) if name == "views" else None
    with pytest.raises(ValueError, match=f"^{name}: .*expected|^{name}: ") as caught:
        fit(model, DATA, **{"epochs": 1, "augment": augment, name: value})
    assert len(str(caught.value)) > 25
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("^teacher: SoftTargets needs one", {"distiller": SoftTargets()}),
        ("^teacher: it came without a distiller", {"teacher": make_mlp(DATA)}),
        ("^views: 3 came without augment", {"views": 3}),
        (
            "^teacher_outputs: they came, but this run needs a live teacher",
            {
                "distiller": SoftTargets(),
                "teacher": Readable(DATA),
                "augment": Augmentation(1),
                "teacher_outputs": TeacherOutputs.build(Readable(DATA), DATA),
            },
        ),
    ],
)
def test_arguments_that_contradict_each_other(message, options):
    with pytest.raises(ValueError, match=message):
        fit(make_mlp(DATA), DATA, epochs=1, **options)


def test_nothing_to_learn_from():
    with pytest.raises(ValueError, match=r"^data: no training image has a label"):
        fit(make_mlp(DATA), DATA.with_labels(0), epochs=1)


def test_a_model_with_too_few_answers_is_refused():
    with pytest.raises(ValueError, match=r"^model: .*\[4, 3\].*num_classes=4"):
        fit(make_mlp(make_data(classes=3)), DATA, epochs=1)


def test_a_model_that_returns_no_logits_is_refused():
    with pytest.raises(ValueError, match=r"^model: .*\[4, 1, 8, 8\]"):
        fit(nn.Sequential(nn.Conv2d(1, 1, 1)), DATA, epochs=1)


def test_a_student_that_is_its_own_teacher_is_refused():
    model = make_mlp(DATA)
    with pytest.raises(ValueError, match=r"^teacher: it is the student itself"):
        fit(model, DATA, SoftTargets(), teacher=model, epochs=1)


@pytest.mark.parametrize("augment", [None, Augmentation(1)], ids=["cached", "live"])
def test_a_teacher_of_other_classes_or_without_sense_is_refused(augment):
    other = make_mlp(make_data(classes=5))
    with pytest.raises(ValueError, match=r"^teacher: shape .* expected student's"):
        fit(make_mlp(DATA), DATA, SoftTargets(), teacher=other, epochs=1, augment=augment)
    broken = make_mlp(DATA)
    nn.init.constant_(next(broken.parameters()), float("nan"))
    with pytest.raises(ValueError, match=r"^teacher: got logits with NaN"):
        fit(make_mlp(DATA), DATA, SoftTargets(), teacher=broken, epochs=1, augment=augment)


def test_a_control_without_a_teacher_needs_none():
    assert fit(make_mlp(DATA), DATA, LabelSmoothing(), epochs=1).history.last["hard"] > 0


def test_numpy_numbers_are_as_good_as_pythons(tmp_path):
    numbers = {"lr": np.float64(0.1), "seed": np.int64(2), "epochs": np.int64(1)}
    for steps in (6, 0):  # the second call reads the checkpoint of the first
        run = fit(
            make_mlp(DATA), DATA, batch_size=np.int64(16), checkpoint=tmp_path / "a.pt", **numbers
        )
        assert run.steps == steps


def test_bf16_on_a_processor_without_it_is_refused(monkeypatch):
    monkeypatch.setattr(device, "has_native_bf16", lambda where: False)
    with pytest.raises(ValueError, match=r"^precision: 'bf16' came, but this cpu has no native"):
        fit(make_mlp(DATA), DATA, epochs=1, device="cpu", precision="bf16")
    assert device.pick_precision("auto", torch.device("cpu")) == "fp32"
    monkeypatch.setattr(device, "has_native_bf16", lambda where: True)
    assert device.pick_precision("auto", torch.device("cpu")) == "fp32"
    run = fit(make_mlp(DATA), DATA, epochs=1, device="cpu", precision="bf16")
    assert run.facts["precision"] == "bf16"


def test_devices(monkeypatch):
    assert device.pick_device("cpu") == device.pick_device(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "has_mps", lambda: False)
    assert device.pick_device("auto").type == "cpu"
    for missing in ("cuda", "cuda:1", "mps"):
        with pytest.raises(ValueError, match=f"^device: '{missing}' came, but this machine"):
            device.pick_device(missing)
    monkeypatch.setattr(device, "has_mps", lambda: True)
    assert device.pick_device("auto").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.pick_device("auto").type == "cuda"
