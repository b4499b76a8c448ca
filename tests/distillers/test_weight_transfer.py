"""Weight transfer happens once, before the first step, and combines with every method."""

import copy
import signal
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from kdlab.datasets import from_arrays
from kdlab.distillers import Labels, Outputs, SoftTargets, WeightTransfer
from kdlab.models import build_for, inherit
from kdlab.training import fit, study
from kdlab.training.stacked import stackable

STILL = {"epochs": 1, "batch_size": 16, "lr": 1e-30, "weight_decay": 0.0, "device": "cpu"}
SHORT = {"epochs": 3, "batch_size": 16, "lr": 0.05, "device": "cpu"}


def make_data(count=48, classes=4):
    rng = np.random.default_rng(0)
    x, y = rng.random((count, 8, 8, 3)).astype(np.float32), np.arange(count) % classes
    return from_arrays(x, y, x, y, x_val=x, y_val=y)


DATA = make_data()


def make(name, seed, **options):
    return build_for(name, DATA.shape, DATA.num_classes, seed=seed, **options)


TEACHER = fit(make("cnn_large", 0), DATA, **SHORT).model


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_it_has_no_terms_and_is_no_whole_method():
    method = WeightTransfer()
    logits = Outputs(torch.zeros(2, 4))
    assert method(logits, logits, torch.zeros(2, dtype=torch.long)) == {}
    assert method.needs_teacher and method.needs_only_logits and not method.complete
    assert repr(method) == "WeightTransfer(importance='l1', blocks='spread', strict=True)"
    alone = pytest.warns(UserWarning, match="WeightTransfer alone never trains")
    with alone, pytest.raises(ValueError, match="WeightTransfer gives no term to train on"):
        fit(make("cnn_tiny", 1), DATA, method, teacher=TEACHER, **STILL)


@pytest.mark.parametrize("options", [{}, {"importance": "batch_norm"}, {"importance": "random"}])
def test_training_begins_with_the_teachers_weights(options):
    start = make("cnn_tiny", 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)  # as `fit` does
        inherit(start, TEACHER, DATA.train.x[:1], **options)
    before = copy.deepcopy(TEACHER.state_dict())
    for method in (WeightTransfer(**options) + Labels(), SoftTargets() + WeightTransfer(**options)):
        student = make("cnn_tiny", 1)
        run = fit(student, DATA, method, teacher=TEACHER, seed=5, **STILL)
        assert equal(weights(student), weights(start))
        assert set(run.history.last) - {"epoch", "loss", "lr", "val_accuracy", "val_nll"} <= {
            "hard",
            "soft",
        }
    assert equal(TEACHER.state_dict(), before)


def test_options_reach_the_blocks():
    teacher, student = make("resnet20", 0), make("resnet14", 1)
    fit(student, DATA, WeightTransfer(blocks="last") + Labels(), teacher=teacher, **STILL)
    assert torch.equal(student.stage1[0].conv1.weight, teacher.stage1[1].conv1.weight)
    student = make("resnet20", 1)
    with pytest.raises(ValueError, match="no counterpart"):
        fit(student, DATA, WeightTransfer() + Labels(), teacher=make("resnet8", 0), **STILL)
    loose = WeightTransfer(strict=False) + Labels()
    fit(student, DATA, loose, teacher=make("resnet8", 0), **STILL)


def test_a_live_teacher_and_a_cached_one_start_it_alike():
    method = WeightTransfer() + SoftTargets()
    cached, live = make("cnn_tiny", 1), make("cnn_tiny", 1)
    fit(cached, DATA, method, teacher=TEACHER, **SHORT)

    class Live(SoftTargets):
        teacher_taps = ("stage1",)

    fit(live, DATA, WeightTransfer() + Live(), teacher=TEACHER, **SHORT)
    for mine, theirs in zip(live.parameters(), cached.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("moment", [(0, 1), (1, 2)])
def test_a_resumed_run_does_not_start_again_from_the_teacher(tmp_path, moment):
    def train(path, callbacks=()):
        student = make("cnn_tiny", 1)
        method = WeightTransfer("random") + SoftTargets()
        fit(student, DATA, method, teacher=TEACHER, checkpoint=path, callbacks=callbacks, **SHORT)
        return student.state_dict()

    def press(now):
        if (now.epoch, now.step) == moment:
            signal.raise_signal(signal.SIGINT)

    whole = train(tmp_path / "whole.pt")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="stopped in epoch")
        part = train(tmp_path / "part.pt", [press])
    assert not equal(part, whole)
    assert equal(train(tmp_path / "part.pt"), whole)
    assert equal(train(tmp_path / "part.pt"), whole)  # a run that is done is done


def test_a_study_hands_the_teacher_on():
    """Students like their teacher: without a step they answer like it, and only with a transfer."""
    settings = {"alone": Labels(), "transfer": WeightTransfer() + Labels()}
    teacher = fit(make("mlp", 0), DATA, **SHORT).model  # small MLPs are trained stacked
    runs = study("mlp", DATA, settings, seeds=2, teacher=teacher, workers=1, **STILL)
    agreement = runs.groupby("setting")["agreement"].min()
    assert agreement["transfer"] == 1.0 and agreement["alone"] < 1.0
    settings = {"transfer": WeightTransfer() + SoftTargets()}
    options = STILL | {"lr": 1e-9}
    table = study("cnn_tiny", DATA, settings, seeds=1, teacher=TEACHER, workers=1, **options)
    student = make("cnn_tiny", 0)
    run = fit(student, DATA, settings["transfer"], teacher=TEACHER, **options)
    assert table["val_accuracy"].tolist() == [run.history.last["val_accuracy"]]


def test_what_prepares_is_not_stacked():
    student = make("mlp", 0)
    assert stackable(student, SoftTargets() + Labels()) and stackable(student, 0.5 * Labels())
    assert not stackable(student, WeightTransfer() + SoftTargets())
    assert not stackable(student, 0.5 * (WeightTransfer() + Labels()))


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"^teacher: WeightTransfer needs one to take weights"):
        WeightTransfer().prepare(nn.Identity(), None, DATA.train)
    with pytest.raises(ValueError, match=r"^unknown importance 'size'; known: l1"):
        WeightTransfer("size")
    with pytest.raises(ValueError, match=r"^unknown blocks 'middle'; known: spread"):
        WeightTransfer(blocks="middle")
