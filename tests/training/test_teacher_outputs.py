"""The cache of the teacher's answers: right, faithful, refused elsewhere, never half a file."""

import copy
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import Readable, make_cnn, make_data, make_mlp
from torch import nn

from kdlab.datasets.views import Augmentation
from kdlab.distillers import SoftTargets
from kdlab.losses import soft_target_loss
from kdlab.training import (
    TeacherOutputs,
    cache_bytes,
    fit,
    stored_teacher_outputs,
    teacher_outputs,
)
from kdlab.training.teacher_outputs import cache_key

DATA = make_data()
AUGMENT = Augmentation(1, flip=True)
quiet = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def moved(model: nn.Module) -> nn.Module:
    """The same model with one weight that differs a little."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-6
    return other


@pytest.mark.parametrize("views", [1, 3])
def test_it_is_the_teachers_answer_about_that_view(views):
    teacher = make_cnn(DATA, seed=9).train()
    kept = TeacherOutputs.build(teacher, DATA, AUGMENT, views)
    assert kept.below.shape == (views, 96, 4) and kept.below.dtype == torch.float16
    index = torch.randperm(96, generator=torch.Generator().manual_seed(0))[:20]
    for view in range(views):
        shown = AUGMENT(DATA.train.x[index], index, view)
        with torch.no_grad():
            right = copy.deepcopy(teacher).eval()(shown)
        torch.testing.assert_close(kept(index, view), right, atol=1e-3, rtol=0)
        assert torch.equal(kept(index, view + views), kept(index, view))
    assert teacher.training
    if views > 1:
        assert (kept(index, 0) - kept(index, 1)).abs().max() > 0.05


def test_the_largest_logit_is_exact_and_far_ones_stay_finite():
    far = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with torch.no_grad():
        far[1].weight.zero_()
        far[1].bias.copy_(torch.tensor([1e4, 0.123, -1e6, 1e4 + 1]))
    answers = TeacherOutputs.build(far, DATA)(torch.arange(3), 0)
    assert torch.equal(answers.amax(1), torch.full((3,), 1e4 + 1))
    assert torch.isfinite(answers).all() and (answers[:, 2] < -4e4).all()


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize(("distance", "bound"), [(3.0, 5e-4), (0.1, 1e-2)], ids=["far", "near"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_float16_hardly_turns_the_students_gradient(classes, distance, bound, temperature):
    generator = torch.Generator().manual_seed(classes)
    exact = 6 * torch.randn(256, classes, generator=generator, dtype=torch.float64)
    student = exact + distance * torch.randn(256, classes, generator=generator).double()
    peak = exact.float().amax(1, keepdim=True)
    kept = TeacherOutputs((exact.float() - peak).half()[None], peak[None], {})(torch.arange(256), 0)

    def slope(teacher):
        z = student.clone().requires_grad_()
        return torch.autograd.grad(soft_target_loss(z, teacher, temperature), z)[0]

    right = slope(exact)
    error = float((slope(kept.double()) - right).norm() / right.norm())
    plain = float((slope(exact.half().double()) - right).norm() / right.norm())
    assert error < bound
    assert error < plain  # distances to the peak keep more than the logits themselves


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_teacher_without_sense_is_refused(value):
    broken = make_mlp(DATA)
    nn.init.constant_(broken.layers[-1].bias, value)
    with pytest.raises(ValueError, match=r"^teacher: its logits hold NaN or infinity"):
        TeacherOutputs.build(broken, DATA)


@pytest.mark.parametrize(("augment", "views"), [(None, 2), (None, 0), (AUGMENT, 0)])
def test_impossible_views_are_refused(augment, views):
    with pytest.raises(ValueError, match=f"^views: {views} came"):
        TeacherOutputs.build(make_mlp(DATA), DATA, augment, views)


@pytest.mark.parametrize(
    ("named", "change"),
    [
        ("teacher", lambda t: {"teacher": moved(t)}),
        ("teacher", lambda t: {"teacher": make_cnn(DATA)}),
        ("data set", lambda t: {"data": make_data(seed=1)}),
        ("data set", lambda t: {"data": DATA.subset(48)}),
        ("augmentation", lambda t: {"augment": Augmentation(2, flip=True)}),
        ("augmentation", lambda t: {"augment": Augmentation(1, flip=True, seed=1)}),
        ("number of views", lambda t: {"views": 3}),
    ],
)
def test_a_cache_of_anything_else_is_refused(tmp_path, named, change):
    teacher = make_mlp(DATA)
    usual = {"teacher": teacher, "data": DATA, "augment": AUGMENT, "views": 2}
    kept = TeacherOutputs.build(**usual)
    kept.check(**usual)
    message = f"^teacher_outputs: this cache was made with another .*{named}.*build it anew"
    other = usual | change(teacher)
    with pytest.raises(ValueError, match=message):
        kept.check(**other)
    kept.save(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=message):
        TeacherOutputs.load(tmp_path / "a.safetensors", **cache_key(**other))
    with pytest.raises(ValueError, match=message):
        fit(make_mlp(DATA), distiller=SoftTargets(), teacher_outputs=kept, epochs=1, **other)


def test_given_answers_are_used():
    teacher = Readable(DATA)
    kept = TeacherOutputs.build(teacher, DATA)
    teacher.images = 0
    fit(make_mlp(DATA), DATA, SoftTargets(), teacher=teacher, teacher_outputs=kept, epochs=2)
    assert teacher.images < len(DATA.train)  # the rehearsal has a look at it, on a few images


def test_round_trip(tmp_path):
    teacher = make_mlp(DATA)
    kept = TeacherOutputs.build(teacher, DATA, AUGMENT, 2)
    kept.save(tmp_path / "deep" / "a.safetensors")
    read = TeacherOutputs.load(tmp_path / "deep" / "a.safetensors", teacher=kept.key["teacher"])
    read.check(teacher, DATA, AUGMENT, 2)
    assert torch.equal(read.below, kept.below) and torch.equal(read.peak, kept.peak)


@pytest.mark.parametrize("views", [1, 3])
def test_cache_bytes_are_those_of_a_cache(tmp_path, views):
    kept = TeacherOutputs.build(make_mlp(DATA), DATA, AUGMENT, views)
    count = cache_bytes(len(DATA.train), DATA.num_classes, views)
    assert kept.below.nbytes + kept.peak.nbytes == count
    kept.save(tmp_path / "a.safetensors")
    assert 0 < (tmp_path / "a.safetensors").stat().st_size - count < 1000
    with pytest.raises(ValueError, match="classes: 0, expected a whole number of at least 1"):
        cache_bytes(10, 0)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_is_refused_or_built_anew(tmp_path, keep):
    teacher = Readable(DATA)
    stored_teacher_outputs(tmp_path, teacher, DATA)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    with pytest.raises(ValueError, match=r"^path: .* is no whole cache .*delete it and build"):
        TeacherOutputs.load(path)
    stored_teacher_outputs(tmp_path, teacher, DATA)
    assert path.read_bytes() == whole
    teacher.images = 0
    stored_teacher_outputs(tmp_path, teacher, DATA)
    assert teacher.images == 0


def test_a_file_of_something_else_is_refused(tmp_path):
    save_file({"below": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="no whole cache"):
        TeacherOutputs.load(tmp_path / "a.safetensors")


def test_each_combination_has_its_own_file(tmp_path):
    teacher = make_mlp(DATA)
    for options in ({}, {"augment": AUGMENT}, {"augment": AUGMENT, "views": 2}):
        for model in (teacher, moved(teacher)):
            stored_teacher_outputs(tmp_path, model, DATA, **options)
    assert len(list(tmp_path.iterdir())) == 6


def test_a_folder_that_cannot_be_written_costs_only_the_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="teacher_outputs: .* could not be written .*not kept"):
        kept = stored_teacher_outputs(tmp_path / "file", make_mlp(DATA), DATA)
    assert len(kept.below[0]) == 96


def test_a_file_that_another_process_takes_away_is_built_anew(tmp_path, monkeypatch):
    stored_teacher_outputs(tmp_path, make_mlp(DATA), DATA)
    load = TeacherOutputs.load

    def gone(path, **expected):
        Path(path).unlink()
        return load(path, **expected)

    monkeypatch.setattr(TeacherOutputs, "load", gone)
    stored_teacher_outputs(tmp_path, make_mlp(DATA), DATA)
    assert len(list(tmp_path.iterdir())) == 1


@needs_fork
@quiet
def test_several_processes_fill_one_folder_at_once(tmp_path):
    teacher, children = make_mlp(DATA), []
    for number in range(4):
        child = os.fork()
        if child == 0:
            try:
                torch.set_num_threads(1)
                for _ in range(5):
                    kept = stored_teacher_outputs(tmp_path, teacher, DATA, AUGMENT, 2, "cpu")
                    kept.check(teacher, DATA, AUGMENT, 2)
                    for path in tmp_path.glob("teacher-*") if number == 0 else ():
                        path.unlink(missing_ok=True)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    stored_teacher_outputs(tmp_path, teacher, DATA, AUGMENT, 2)
    (path,) = tmp_path.iterdir()
    TeacherOutputs.load(path, **cache_key(teacher, DATA, AUGMENT, 2))


@needs_fork
@quiet
@pytest.mark.parametrize("stage", ["write_bytes", "replace"])
def test_killed_while_saving(tmp_path, stage):
    kept = TeacherOutputs.build(make_mlp(DATA), DATA)
    path = tmp_path / "a.safetensors"

    def die(self, data):
        if stage == "write_bytes":
            with self.open("wb") as file:
                file.write(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        setattr(Path, stage, die)
        kept.save(path)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not path.exists() and len(list(tmp_path.iterdir())) == 1  # the part that was begun
    kept.save(path)
    assert torch.equal(TeacherOutputs.load(path).below, kept.below)


def test_the_fingerprint_sees_every_bit():
    model = make_cnn(DATA)
    prints = {teacher_outputs.fingerprint(model), teacher_outputs.fingerprint(moved(model))}
    model[1].running_mean[0] += 1
    prints.add(teacher_outputs.fingerprint(model))
    assert len(prints) == 3
    assert teacher_outputs.fingerprint(make_cnn(DATA)) in prints
