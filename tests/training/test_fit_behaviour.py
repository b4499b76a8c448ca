"""What `fit` does around the arithmetic: modes, freezing, randomness, adapters, waiting."""

import copy
import signal

import numpy as np
import pytest
import torch
from tiny import (
    Adapted,
    Readable,
    distance,
    interrupt_at,
    make_cnn,
    make_data,
    make_mlp,
    stopping_is_expected,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kdlab.datasets.views import Augmentation
from kdlab.distillers import Distiller, LabelSmoothing, SoftTargets
from kdlab.losses.checks import values_are_checked
from kdlab.training import Moment, fit, predict
from kdlab.training.rehearsal import SAMPLES
from kdlab.training.state import State
from kdlab.training.step import Step

DATA = make_data()
LIVE, KEPT = {"augment": Augmentation(1)}, {"augment": Augmentation(1), "views": 2}
SHORT = {"epochs": 2, "batch_size": 32, "lr": 0.05}


class Watched(nn.Module):
    """A student that notes its mode whenever a gradient is wanted."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.modes: list[bool] = []

    def forward(self, x):
        if torch.is_grad_enabled():
            self.modes.append(all(module.training for module in self.modules()))
        return self.model(x)


@pytest.mark.parametrize("validate", [True, False])
def test_the_student_is_in_training_mode_in_every_step_and_in_eval_mode_after(validate):
    student = Watched(make_cnn(DATA, dropout=0.5).eval())
    fit(student, DATA, SoftTargets(), teacher=make_mlp(DATA), validate=validate, **SHORT)
    assert student.modes == [True] * 6
    assert not any(module.training for module in student.modules())


def test_adapters_are_in_training_mode_in_every_step():
    modes = []

    class Noted(SoftTargets):
        def forward(self, student, teacher, targets):
            modes.append(self.training)
            return super().forward(student, teacher, targets)

    fit(make_mlp(DATA), DATA, Noted().eval(), teacher=make_mlp(DATA, 1), **SHORT)
    assert modes == [True] * (1 + 6)  # the rehearsal, too


@pytest.mark.parametrize("options", [{}, LIVE, KEPT], ids=["cached", "live", "views"])
@pytest.mark.parametrize("training", [True, False])
def test_the_teacher_is_frozen_in_eval_mode_and_comes_back_as_it_was(options, training):
    teacher = make_cnn(DATA, seed=9, dropout=0.5).train(training)
    teacher[0].eval()  # a mixture of modes is a mode too
    modes = [module.training for module in teacher.modules()]
    weights = copy.deepcopy(teacher.state_dict())
    seen: set[bool] = set()
    teacher.register_forward_hook(lambda m, x, y: seen.add(m.training or y.requires_grad))
    fit(make_cnn(DATA), DATA, Adapted() + SoftTargets(), teacher=teacher, **SHORT, **options)
    assert seen == {False}
    assert all(torch.equal(weights[k], v) for k, v in teacher.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())
    assert [module.training for module in teacher.modules()] == modes


@pytest.mark.parametrize(("options", "images"), [({}, 96), (KEPT, 2 * 96)])
def test_a_cached_teacher_is_asked_once_per_picture(options, images):
    teacher = Readable(DATA)
    fit(make_mlp(DATA), DATA, SoftTargets(), teacher=teacher, **(SHORT | {"epochs": 5}), **options)
    assert teacher.images == 64 + images  # one look at 64 images before


def test_a_live_teacher_is_asked_in_every_step():
    teacher = Readable(DATA)
    fit(make_mlp(DATA), DATA, SoftTargets(), teacher=teacher, **SHORT, **LIVE)
    assert teacher.images == 64 + SAMPLES + 2 * 96  # one look at 64 images, and the rehearsal


def test_kept_and_live_answers_about_the_same_views_train_the_same_student():
    augment, students = Augmentation(1), [make_cnn(DATA), make_cnn(DATA)]
    for student, views in zip(students, (2, None), strict=True):
        fit(
            student,
            DATA,
            SoftTargets(),
            teacher=Readable(DATA),
            augment=augment,
            views=views,
            **SHORT,
        )
    assert distance(*students) < 1e-3
    other = make_cnn(DATA)
    fit(other, DATA, SoftTargets(), teacher=Readable(DATA), **SHORT)
    assert distance(other, students[0]) > 1e-2


def test_one_seed_one_result_and_another_seed_another():
    students = [make_cnn(DATA, dropout=0.5) for _ in range(3)]
    for student, seed in zip(students, (3, 3, 4), strict=True):
        torch.rand(1)  # what happened before must not matter
        fit(student, DATA, seed=seed, **SHORT)
    assert distance(students[0], students[1]) == 0
    assert distance(students[0], students[2]) > 0


def test_the_readers_random_numbers_are_left_alone():
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    fit(make_cnn(DATA, dropout=0.5), DATA, Adapted(), teacher=make_mlp(DATA), **SHORT)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)
    assert values_are_checked()


def test_adapters_are_trained_and_kept(tmp_path):
    distiller = Adapted()
    fit(
        make_cnn(DATA),
        DATA,
        distiller,
        teacher=make_mlp(DATA),
        checkpoint=tmp_path / "a.pt",
        **SHORT,
    )
    kept = torch.load(tmp_path / "a.pt", weights_only=True)
    assert set(kept["modules"]["distiller"]) == {"scale", "adapter.weight", "adapter.bias"}
    assert kept["modules"]["distiller"]["scale"] != 1
    assert len(kept["optimizer"]["state"]) == 6 + 3
    assert distiller.scale.grad is not None and distiller.adapter.weight.grad is not None


def test_prepare_sees_both_models_in_eval_mode_and_changes_no_statistics():
    class Curious(Adapted):
        def prepare(self, student, teacher, train):
            super().prepare(student, teacher, train)
            self.seen = student.training, teacher.training, train.x.shape

    teacher, distiller = make_cnn(DATA, seed=9).train(), Curious()
    statistics = copy.deepcopy(teacher.state_dict())
    fit(make_cnn(DATA), DATA, distiller, teacher=teacher, **SHORT)
    assert distiller.seen == (False, False, DATA.train.x.shape)
    assert all(torch.equal(statistics[k], v) for k, v in teacher.state_dict().items())


def test_no_hook_is_left_behind():
    student = make_cnn(DATA)
    fit(student, DATA, Adapted(), teacher=make_mlp(DATA), **SHORT)
    assert not any(module._forward_hooks for module in student.modules())


def test_callbacks_are_told_every_step():
    moments: list[Moment] = []
    model = make_mlp(DATA)
    run = fit(model, DATA, LabelSmoothing(), callbacks=[moments.append], **SHORT)
    assert [(m.epoch, m.step, m.steps) for m in moments] == [
        (epoch, step, 3) for epoch in (0, 1) for step in (1, 2, 3)
    ]
    assert all(m.model is model and m.history is run.history for m in moments)
    assert not moments[0].terms["hard"].requires_grad
    first = np.mean([float(m.terms["hard"]) for m in moments[:3]])
    assert run.history.rows[0]["hard"] == pytest.approx(first, abs=1e-6)


def test_an_error_in_a_callback_reaches_the_reader_and_leaves_no_trace():
    def fail(moment):
        raise ZeroDivisionError

    teacher, student = make_cnn(DATA, seed=9).train(), make_cnn(DATA)
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        fit(student, DATA, Adapted(), teacher=teacher, callbacks=[fail], **SHORT, **LIVE)
    assert teacher.training and torch.equal(torch.get_rng_state(), before)
    assert not any(module._forward_hooks for module in student.modules())


def test_an_interrupted_run_is_usable():
    student = make_cnn(DATA)
    with pytest.warns(UserWarning, match="stopped in epoch 2 of 2 after step 1 of 3: .*usable"):
        run = fit(student, DATA, callbacks=[interrupt_at(1, 1)], **SHORT)
    assert run.interrupted and run.steps == 4 and len(run.history) == 1
    assert run.model is student and not student.training
    assert predict(student, DATA.test.x).shape == (96, 4)
    with stopping_is_expected():
        between = fit(make_cnn(DATA), DATA, callbacks=[interrupt_at(0, 3)], **SHORT)
    assert between.interrupted and between.steps == 3 and len(between.history) == 1
    last = fit(make_cnn(DATA), DATA, callbacks=[interrupt_at(1, 3)], **SHORT)
    assert not last.interrupted and len(last.history) == 2


def test_ctrl_c_belongs_to_the_reader_again_afterwards():
    before = signal.getsignal(signal.SIGINT)
    with stopping_is_expected():
        fit(make_mlp(DATA), DATA, callbacks=[interrupt_at(0, 1)], **SHORT)
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_two_interrupts_act_at_once():
    press = [interrupt_at(0, 1), interrupt_at(0, 1)]
    with pytest.raises(KeyboardInterrupt):
        fit(make_mlp(DATA), DATA, callbacks=press, **SHORT)


class Waits(TorchDispatchMode):
    """Counts the operations for which a GPU would have to be waited for."""

    SLOW = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        name = func.overloadpacket.__name__
        masked = name == "index" and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if masked or name.startswith(self.SLOW):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def waits_in_steps(monkeypatch, distiller: Distiller, **options) -> Waits:
    """Count over all steps, bookkeeping included; validation and the epoch's end may wait."""
    waits = Waits()
    for owner, name in ((Step, "__call__"), (State, "add")):
        original = getattr(owner, name)

        def watched(*args, _original=original, **kwargs):
            with waits:
                return _original(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)
    data = DATA.with_labels(40)
    fit(make_cnn(data, dropout=0.5), data, distiller, teacher=make_cnn(data, 9), **SHORT, **options)
    assert waits.operations > 500
    return waits


@pytest.mark.parametrize("options", [{}, LIVE, KEPT, {"optimizer": "adamw"}])
def test_nothing_in_a_step_waits_for_the_device(monkeypatch, options):
    assert waits_in_steps(monkeypatch, SoftTargets() + Adapted(), **options).found == []


def test_waiting_would_be_found(monkeypatch):
    class Slow(SoftTargets):
        def forward(self, student, teacher, targets):
            terms = super().forward(student, teacher, targets)
            self.shown = terms["soft"].item() if terms["soft"].detach() > 0 else 0.0
            return terms

    assert waits_in_steps(monkeypatch, Slow()).found == ["_local_scalar_dense"] * 12


def test_progress_on_a_terminal(capsys):
    fit(make_mlp(DATA), DATA, progress=True, **SHORT)
    assert "training: 100%" in capsys.readouterr().err
    fit(make_mlp(DATA), DATA, **SHORT)
    assert capsys.readouterr() == ("", "")
