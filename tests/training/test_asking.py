"""How the teacher is asked: remembered layers, input gradients, terms that teach no classifier."""

import warnings

import pytest
import torch
from tiny import distance, make_cnn, make_data, make_mlp, stopping_is_expected
from torch import nn

from kdlab.datasets.views import Augmentation
from kdlab.distillers import Distiller, Labels, Outputs, SoftTargets
from kdlab.training import asking, fit
from kdlab.training.rehearsal import SAMPLES

DATA = make_data()
SHORT = {"epochs": 2, "batch_size": 32, "lr": 0.05}


class Inside(Distiller):
    """Compares the first convolutions, and notes which images it was shown."""

    student_taps = teacher_taps = ("0",)
    complete = False

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[torch.Tensor] = []

    def forward(self, student, teacher, targets):
        self._seen.append(student.index)
        assert torch.equal(teacher.index, student.index)
        assert torch.equal(DATA.train.y[student.index], targets)
        assert not teacher.taps["0"].requires_grad
        return {"inside": (student.taps["0"] - teacher.taps["0"]).square().mean()}


class Slopes(Distiller):
    """Compares the sums of the logits' slopes, on both sides by the images."""

    needs_input_gradients = True
    complete = False

    def forward(self, student, teacher, targets):
        (theirs,) = torch.autograd.grad(teacher.logits.sum(), teacher.inputs)
        (mine,) = torch.autograd.grad(student.logits.sum(), student.inputs, create_graph=True)
        return {"slopes": (mine - theirs).square().mean()}


class Counting(nn.Module):
    """A teacher that counts its images."""

    def __init__(self) -> None:
        super().__init__()
        self.model = make_cnn(DATA, 9)
        self.images = 0
        self.add_module("0", self.model[0])

    def forward(self, x):
        self.images += len(x)
        return self.model(x)


@pytest.mark.parametrize("options", [{}, {"augment": Augmentation(1), "views": 2}])
def test_remembered_layers_train_the_same_student_as_a_live_teacher(monkeypatch, options):
    students, asked = [make_cnn(DATA), make_cnn(DATA)], []
    for student, limit in zip(students, (asking.REMEMBERED_BYTES, 0), strict=True):
        monkeypatch.setattr(asking, "REMEMBERED_BYTES", limit)
        teacher = Counting()
        fit(student, DATA, Labels() + Inside(), teacher=teacher, **SHORT, **options)
        asked.append(teacher.images)
    assert distance(*students) < 1e-4
    fixed = 64 + SAMPLES + 1  # a look for NaN, the rehearsal, and one for the size
    views = options.get("views", 1)
    assert asked == [fixed - SAMPLES + views * 96, fixed + 2 * 96]


def test_what_is_remembered_is_measured_before_it_is_made():
    batches = asking.Batches(DATA.train, None, torch.device("cpu"))
    live = asking.LiveTeacher(make_cnn(DATA, 9).eval(), ("0",), "fp32")
    kept = asking.RememberedTeacher(live, batches, views=3)
    held = [*kept.logits, *(taps["0"] for taps in kept.taps)]
    true = sum(t.numel() * t.element_size() for t in held)
    assert asking.RememberedTeacher.size(live, batches, views=3) == true
    index = torch.tensor([5, 0, 90])
    said = kept(torch.zeros(3), index, 0)
    alone = live(batches(index, 0), index, 0)
    torch.testing.assert_close(said.logits, alone.logits)
    torch.testing.assert_close(said.taps["0"], alone.taps["0"])


def test_every_image_of_a_step_is_known_by_its_index():
    method = Inside()
    fit(make_cnn(DATA), DATA, Labels() + method, teacher=make_cnn(DATA, 9), **SHORT)
    assert torch.equal(torch.cat(method._seen[:3]).sort().values, torch.arange(96))


def test_input_gradients_reach_both_models_and_leave_the_teacher_alone():
    student, teacher = make_cnn(DATA), make_cnn(DATA, 9)
    before = [p.clone() for p in teacher.parameters()]
    run = fit(student, DATA, SoftTargets() + Slopes(), teacher=teacher, **SHORT)
    assert {"hard", "soft", "slopes"} <= set(run.history.last)
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    plain = make_cnn(DATA)
    fit(plain, DATA, SoftTargets(), teacher=teacher, **SHORT)
    assert distance(student, plain) > 1e-5
    assert not DATA.train.x.requires_grad


def test_a_sum_with_slopes_cannot_use_cached_logits():
    assert not (SoftTargets() + Slopes()).needs_only_logits
    with pytest.raises(ValueError, match="compile: Sum differentiates twice"):
        model = make_cnn(DATA)
        fit(model, DATA, Labels() + Slopes(), teacher=make_cnn(DATA), compile=True, **SHORT)


def test_a_method_that_trains_no_classifier_says_so():
    with pytest.warns(UserWarning, match="Inside alone never trains the student's classifier"):
        fit(make_cnn(DATA), DATA, Inside(), teacher=make_cnn(DATA, 9), **SHORT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(make_cnn(DATA), DATA, Labels() + Inside(), teacher=make_cnn(DATA, 9), **SHORT)
    assert not (Inside() + Slopes()).complete and (Inside() + SoftTargets()).complete


def test_no_term_at_all_is_refused_with_a_reason():
    class Silent(Distiller):
        def forward(self, student, teacher, targets):
            return {}

    with pytest.raises(ValueError, match="distiller: Silent gives no term"):
        fit(make_mlp(DATA), DATA, Silent(), teacher=make_mlp(DATA, 9), **SHORT)


def test_labels_are_the_plain_loss():
    student, plain = make_cnn(DATA), make_cnn(DATA)
    fit(student, DATA, Labels(), **SHORT)
    fit(plain, DATA, **SHORT)
    assert distance(student, plain) == 0
    z, y = torch.randn(4, 3), torch.tensor([0, 1, 2, -1])
    expected = 0.5 * torch.nn.functional.cross_entropy(z[:3], y[:3])
    torch.testing.assert_close(Labels(0.5)(Outputs(z), None, y)["hard"], expected)
    with pytest.raises(ValueError, match="weight: -1"):
        Labels(-1)


def test_interrupt_and_resume_with_remembered_layers(tmp_path):
    from tiny import interrupt_at

    whole, resumed = make_cnn(DATA), make_cnn(DATA)
    teacher, path = make_cnn(DATA, 9), tmp_path / "a.pt"
    fit(whole, DATA, Labels() + Inside(), teacher=teacher, **SHORT)
    with stopping_is_expected():
        fit(
            resumed,
            DATA,
            Labels() + Inside(),
            teacher=teacher,
            checkpoint=path,
            callbacks=[interrupt_at(1, 2)],
            **SHORT,
        )
    again = make_cnn(DATA, 5)
    fit(again, DATA, Labels() + Inside(), teacher=teacher, checkpoint=path, **SHORT)
    assert distance(whole, again) == 0
