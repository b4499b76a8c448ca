"""Models as people write them: `fit` trains them rightly, or says by name what is wrong."""

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tiny import distance, make_cnn, make_data, make_mlp
from torch import nn

from kdlab.datasets import Data, Split
from kdlab.distillers import Hints, Labels, Relational, SoftTargets
from kdlab.models import WithOutput
from kdlab.training import fit, predict
from kdlab.training.divergence import Diverged

DATA = make_data()
SHORT = {"epochs": 2, "batch_size": 32, "lr": 0.05}


class Returning(nn.Module):
    """A network that returns its logits in a form of its own."""

    def __init__(self, form, seed=0):
        super().__init__()
        self.inner = make_cnn(DATA, seed)
        self.form = form

    def forward(self, x):
        return self.form(self.inner(x), self.training)


FORMS = {
    "tuple": lambda z, training: (z, None),
    "list": lambda z, training: [z],
    "dict": lambda z, training: {"features": z.relu(), "logits": z},
    "object": lambda z, training: SimpleNamespace(logits=z),
    "tuple while training": lambda z, training: (z, 0.1 * z) if training else z,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("distiller", [None, SoftTargets()], ids=["labels", "soft"])
def test_any_form_of_output_trains_as_a_plain_tensor_does(form, distiller):
    student, plain = Returning(form), make_cnn(DATA)
    for model, make in ((student, form), (plain, lambda z, training: z)):
        teacher = None if distiller is None else Returning(make, 9)
        fit(model, DATA, distiller, teacher=teacher, **SHORT)
    assert distance(student.inner, plain) == 0
    assert torch.equal(predict(student, DATA.val.x), predict(plain, DATA.val.x))


def test_a_readers_own_output_function_serves_student_and_teacher():
    form = lambda z, training: {"scores": z}  # noqa: E731
    student, plain = Returning(form), make_cnn(DATA)
    output = lambda returned: returned["scores"]  # noqa: E731
    fit(student, DATA, SoftTargets(), teacher=Returning(form, 9), output=output, **SHORT)
    fit(plain, DATA, SoftTargets(), teacher=make_cnn(DATA, 9), **SHORT)
    assert distance(student.inner, plain) == 0
    with pytest.raises(ValueError, match=r"^model: .*'scores'.*WithOutput"):
        fit(Returning(form), DATA, **SHORT)
    with pytest.raises(ValueError, match=r"^teacher: .*'scores'.*WithOutput"):
        fit(make_cnn(DATA), DATA, SoftTargets(), teacher=Returning(form), **SHORT)
    with pytest.raises(ValueError, match=r"^output: got str"):
        fit(Returning(form), DATA, output="scores", **SHORT)


def test_a_function_or_an_exported_program_can_be_the_teacher():
    teacher = make_cnn(DATA, 9).eval()
    program = torch.export.export(
        teacher, (DATA.train.x[:2],), dynamic_shapes=({0: torch.export.Dim("b", min=1)},)
    ).module()
    wanted = make_cnn(DATA)
    fit(wanted, DATA, SoftTargets(), teacher=teacher, **SHORT)
    for other in (program, lambda x: teacher(x), WithOutput(lambda x: {"logits": teacher(x)})):
        student = make_cnn(DATA)
        fit(student, DATA, SoftTargets(), teacher=other, **SHORT)
        assert distance(student, wanted) < 1e-5
    with pytest.raises(ValueError, match=r"^teacher: got a function, .*Sum reads more than logits"):
        fit(
            make_cnn(DATA),
            DATA,
            Labels() + 1e-3 * Hints("0"),
            teacher=lambda x: teacher(x),
            **SHORT,
        )
    with pytest.raises(ValueError, match=r"^teacher: got a tuple"):
        fit(make_cnn(DATA), DATA, SoftTargets(), teacher=(teacher, {}), **SHORT)


class Sized(nn.ModuleList):
    """A teacher whose length is 0, so that it counts as False."""

    def __init__(self):
        super().__init__()
        self.inner = make_cnn(DATA, 9, dropout=0.5)
        self.modes = set()

    def __len__(self):
        return 0

    def forward(self, x):
        self.modes.add(self.training)
        return self.inner(x)


def test_a_teacher_of_length_0_is_a_teacher():
    teacher, wanted, student = Sized().train(), make_cnn(DATA), make_cnn(DATA)
    fit(student, DATA, SoftTargets() + Labels(), teacher=teacher, **SHORT)
    fit(wanted, DATA, SoftTargets() + Labels(), teacher=teacher.inner, **SHORT)
    assert teacher.modes == {False} and distance(student, wanted) == 0


@pytest.mark.parametrize(
    "method", [SoftTargets(), Labels() + 1e-3 * Hints("0")], ids=["logits", "layer"]
)
def test_a_compiled_teacher_is_a_teacher(method):
    teacher, wanted, student = make_cnn(DATA, 9), make_cnn(DATA), make_cnn(DATA)
    fit(wanted, DATA, method, teacher=teacher, **SHORT)
    fit(student, DATA, method, teacher=torch.compile(teacher, backend="eager"), **SHORT)
    assert distance(student, wanted) < 1e-6


class Viewing(nn.Module):
    """Works in plain PyTorch, and not on what lies in channels-last order."""

    def __init__(self, seed=0):
        super().__init__()
        self.inner = make_cnn(DATA, seed)

    def forward(self, x):
        x = self.inner[:5](x)
        return self.inner[6](x.view(-1, 54))


def test_a_view_gets_contiguous_batches_and_the_run_says_so():
    colours = make_data(channels=3)

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(192, 4)

        def forward(self, x):
            return self.linear(x.view(-1, 192))

    for model, data in ((Viewing(), DATA), (Flat(), colours)):
        run = fit(model, data, **SHORT)
        assert run.facts["memory_format"] == "contiguous"
        assert len(predict(model, data.val.x)) == len(data.val)
        taught = fit(copy.deepcopy(model), data, SoftTargets(), teacher=model, **SHORT)
        assert not taught.interrupted
    assert "memory_format" not in fit(make_cnn(DATA), DATA, **SHORT).facts


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("method", [None, SoftTargets(), Labels() + 1e-3 * Hints("0")], ids=str)
def test_the_dtype_of_the_model_is_kept(dtype, method):
    student = make_cnn(DATA).to(dtype)
    teacher = None if method is None else make_cnn(DATA, 9).to(dtype)
    run = fit(student, DATA, method, teacher=teacher, **SHORT)
    assert {p.dtype for p in student.parameters()} == {dtype}
    wanted = make_cnn(DATA)
    fit(wanted, DATA, method, teacher=None if method is None else make_cnn(DATA, 9), **SHORT)
    # what both see in a batch norm agrees to some digits only
    assert distance(student.float(), wanted) < (1e-3 if dtype is torch.float64 else 0.2)
    assert run.history.last["val_accuracy"] > 0


def test_double_precision_data_reach_a_double_precision_model_whole():
    exact = Data(
        **{f: getattr(DATA, f) for f in ("name", "classes", "mean", "std", "card")},
        **{p: Split(getattr(DATA, p).x.double(), getattr(DATA, p).y) for p in ("val", "test")},
        train=Split(DATA.train.x.double() + 1e-12, DATA.train.y),
    )
    model = make_cnn(DATA).double()
    fit(model, exact, **SHORT)
    assert predict(model, exact.val.x).dtype is torch.float64
    assert distance(model, make_cnn(DATA).double()) > 1e-3


@pytest.mark.parametrize(
    "method", [SoftTargets(), Labels() + 1e-3 * Hints("0")], ids=["logits", "layer"]
)
def test_the_default_dtype_may_be_double(method):
    torch.set_default_dtype(torch.float64)
    try:
        model, teacher = make_cnn(DATA), make_cnn(DATA, 9)
        fit(model, DATA, method, teacher=teacher, **SHORT)
        small = make_cnn(DATA).float()
        fit(small, DATA, method, teacher=teacher.float(), **SHORT)
    finally:
        torch.set_default_dtype(torch.float32)
    assert next(model.parameters()).dtype is torch.float64


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradients_flow_wherever_fit_is_called(context):
    wanted, student, teacher = make_cnn(DATA), make_cnn(DATA), make_cnn(DATA, 9)
    fit(wanted, DATA, Labels() + 1e-3 * Hints("0"), teacher=teacher, **SHORT)
    with context():
        fit(student, DATA, Labels() + 1e-3 * Hints("0"), teacher=teacher, **SHORT)
    assert distance(student, wanted) == 0


# ---- numbers that are not finite


@pytest.mark.parametrize("cached", [True, False])
def test_a_run_that_diverges_stops_and_leaves_a_usable_model(tmp_path, cached):
    student, teacher = make_cnn(DATA), make_cnn(DATA, 9)
    before = copy.deepcopy(student)
    path = tmp_path / "run.pt"
    options = SHORT | {"lr": 1e30, "checkpoint": path} | ({} if cached else {"views": None})
    with pytest.raises(Diverged, match=r"^lr: got 1e\+30, and in epoch 1 the term '\w+'.*clip"):
        fit(student, DATA, SoftTargets(), teacher=teacher, **options)
    assert torch.isfinite(predict(student, DATA.val.x)).all()
    assert distance(student, before) == 0 and not path.exists()


def test_the_last_good_epoch_is_what_remains(tmp_path):
    student, path = make_cnn(DATA), tmp_path / "run.pt"

    def spoil(moment):
        if moment.epoch == 2:
            with torch.no_grad():
                moment.model[0].weight.fill_(float("nan"))

    with pytest.raises(Diverged, match=r"in epoch 3 .*weights that it had after epoch 2"):
        fit(student, DATA, checkpoint=path, callbacks=[spoil], **(SHORT | {"epochs": 4}))
    stored = torch.load(path, weights_only=True)
    assert stored["epoch"] == 2
    kept = stored["modules"]["model"]
    assert all(torch.equal(kept[name], value) for name, value in student.state_dict().items())


def test_a_mask_of_infinities_may_stay():
    model = make_mlp(DATA)
    model.register_buffer("mask", torch.full((3,), -torch.inf))
    assert not fit(model, DATA, **SHORT).interrupted


def test_a_model_that_is_not_finite_while_training_is_named():
    form = lambda z, training: z / 0 if training else z  # noqa: E731
    with pytest.raises(ValueError, match=r"^model: .*NaN or infinity in training mode"):
        fit(Returning(form), DATA, **SHORT)
    form = lambda z, training: z * float("nan")  # noqa: E731
    with pytest.raises(ValueError, match=r"^model: .*NaN or infinity in eval mode"):
        fit(Returning(form), DATA, **SHORT)
    with pytest.raises(ValueError, match=r"^teacher: .*NaN or infinity in eval mode"):
        fit(make_cnn(DATA), DATA, SoftTargets(), teacher=Returning(form), **SHORT)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (lambda z, training: z.detach(), "without a graph"),
        (lambda z, training: z.argmax(1), "dtype torch.int64"),
        (lambda z, training: z.sum(), "shape"),
        (lambda z, training: z[:1], "shape"),
        (lambda z, training: z.no_such_thing, "AttributeError"),
        (lambda z, training: (z, 1) if not training else None, "NoneType"),
        (lambda z, training: z[:, :2] if training else z, "shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_model_cannot_be_trained_with_is_said_before_the_first_step(form, words):
    model = Returning(form)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"^model: ") as error:
        fit(model, DATA, **SHORT)
    assert words in str(error.value)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


# ---- what is frozen, and what is shared


def frozen_backbone(affine=True):
    body = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6, affine=affine), nn.ReLU())
    body.requires_grad_(False)
    head = nn.Sequential(nn.Flatten(), nn.Linear(216, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    return nn.Sequential(body, head)


@pytest.mark.parametrize("affine", [True, False])
def test_frozen_parts_and_their_norms_do_not_move(affine):
    model = frozen_backbone(affine)
    body, norm = copy.deepcopy(model[0].state_dict()), copy.deepcopy(model[1][2].state_dict())
    feature = model[0].eval()(DATA.val.x)
    fit(model, DATA, SoftTargets(), teacher=make_cnn(DATA), **SHORT)
    assert all(torch.equal(body[name], value) for name, value in model[0].state_dict().items())
    assert torch.equal(model[0](DATA.val.x), feature)
    assert not torch.equal(norm["running_mean"], model[1][2].running_mean)


def test_frozen_norms_follow_the_batches_where_that_is_wanted():
    model = frozen_backbone()
    before = model[0][1].running_mean.clone()
    fit(model, DATA, update_frozen_norms=True, **SHORT)
    assert not torch.equal(before, model[0][1].running_mean)


def test_a_model_that_is_frozen_whole_is_refused():
    model = make_cnn(DATA).requires_grad_(False)
    with pytest.raises(ValueError, match=r"^model: .*(frozen|requires_grad)"):
        fit(model, DATA, **SHORT)


def test_what_student_and_teacher_share_stays_if_frozen_and_is_refused_if_not():
    teacher = make_cnn(DATA, 9, dropout=0.5)
    student = make_cnn(DATA)
    student[0], student[1] = teacher[0], teacher[1]
    with pytest.raises(ValueError, match=r"^model: got the parameter '0.weight', .*teacher's"):
        fit(student, DATA, SoftTargets(), teacher=teacher, **SHORT)
    teacher[:2].requires_grad_(False)
    before, modes = copy.deepcopy(teacher.state_dict()), set()
    teacher[1].register_forward_hook(lambda module, *_: modes.add(module.training))
    options = SHORT | {"update_frozen_norms": True}
    fit(student, DATA, SoftTargets(), teacher=teacher, views=None, **options)
    assert modes == {False}  # in the student's steps, too, or the teacher would answer otherwise
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


# ---- micro-batches


def half_labelled():
    y = DATA.train.y.clone()
    y[torch.randperm(96, generator=torch.Generator().manual_seed(0))[:60]] = -1
    fields = {f: getattr(DATA, f) for f in ("name", "val", "test", "classes", "mean", "std")}
    return Data(train=Split(DATA.train.x, y), card={}, **fields)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 4.0]])
def test_micro_batches_weigh_each_term_by_what_takes_part(weights):
    data, students = half_labelled(), [make_mlp(DATA), make_mlp(DATA)]
    for student, size in zip(students, (None, 5), strict=True):
        fit(
            student,
            data,
            SoftTargets(),
            teacher=make_mlp(DATA, 9),
            micro_batch=size,
            class_weights=weights,
            **SHORT,
        )
    assert distance(*students) < 1e-6


def test_a_method_that_relates_images_says_that_its_value_changes():
    method = Labels() + Relational("0")
    with pytest.warns(UserWarning, match=r"^micro_batch: .*relates"):
        fit(make_cnn(DATA), DATA, method, teacher=make_cnn(DATA, 9), micro_batch=8, **SHORT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(make_cnn(DATA), DATA, SoftTargets(), teacher=make_cnn(DATA), micro_batch=8, **SHORT)


# ---- the published recipe's options, against plain PyTorch


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_the_published_recipe_is_the_plain_loop(nesterov, clip):
    torch.manual_seed(0)
    weights = torch.tensor([1.0, 2.0, 0.5, 4.0])
    ours, plain = make_mlp(DATA), make_mlp(DATA)
    orders = []
    run = fit(
        ours,
        DATA,
        epochs=8,
        batch_size=32,
        lr=0.1,
        optimizer="sgd" if nesterov else "momentum",
        schedule="steps",
        clip=clip,
        class_weights=weights,
        weight_decay=1e-3,
    )
    rates = [row["lr"] for row in run.history.rows]
    assert rates == pytest.approx([0.1] * 5 + [0.01] + [0.001] + [0.0001])
    update = torch.optim.SGD(
        plain.parameters(), lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=1e-3
    )
    schedule = torch.optim.lr_scheduler.MultiStepLR(update, [5, 6, 7])
    for epoch in range(8):
        order = torch.randperm(96, generator=torch.Generator().manual_seed(epoch))
        orders.append(order)
        for index in order.split(32):
            loss = F.cross_entropy(plain(DATA.train.x[index]), DATA.train.y[index], weights)
            update.zero_grad()
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(plain.parameters(), clip)
            update.step()
        schedule.step()
    assert distance(ours, plain) < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "linear"}, "^unknown schedule 'linear'"),
        ({"milestones": [1]}, "^milestones: .*schedule='steps'"),
        ({"schedule": "steps", "milestones": [2, 1]}, "^milestones: got .*ascending"),
        ({"schedule": "steps", "milestones": [9]}, "^milestones: got"),
        ({"schedule": "steps", "milestones": 3}, "^milestones: got 3"),
        ({"schedule": "steps", "lr_decay": 0}, "^lr_decay: got 0"),
        ({"warm_up": 1.0}, "^warm_up: got 1.0"),
        ({"clip": 0.0}, "^clip: 0.0"),
        ({"micro_batch": 0}, "^micro_batch: 0"),
        ({"class_weights": [1.0, 2.0]}, "^class_weights: got"),
        ({"class_weights": [1.0, -2.0, 0, 0]}, "^class_weights: got"),
        ({"class_weights": "balanced"}, "^class_weights: got 'balanced'"),
        ({"optimizer": "adam"}, "^optimizer: 'adam'"),
    ],
    ids=str,
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        fit(make_mlp(DATA), DATA, **(SHORT | {"epochs": 8} | options))


# ---- layers that no gradient can flow through


class Guarded(nn.Module):
    """A network whose first layer runs in a context of its own."""

    def __init__(self, context):
        super().__init__()
        self.inner = make_cnn(DATA)
        self.context = context

    def forward(self, x):
        with self.context():
            x = self.inner[0](x)
        return self.inner[1:](x if self.context is not torch.inference_mode else x.clone())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_layer_without_a_graph_is_refused_before_the_first_step(context):
    model = Guarded(context)
    method = Labels() + 1e-3 * Hints({"inner.0": "0"})
    with pytest.raises(ValueError, match=r"^layers: the student's 'inner.0' .*gradient"):
        fit(model, DATA, method, teacher=make_cnn(DATA, 9), **SHORT)
    assert not fit(model, DATA, **SHORT).interrupted  # the rest learns from the labels
    if context is torch.inference_mode:
        return
    model.inner[0].requires_grad_(False)  # by intent, but a hint on it would teach nothing
    with pytest.raises(ValueError, match=r"^layers: .*frozen.*Hints would teach it nothing"):
        fit(model, DATA, method, teacher=make_cnn(DATA, 9), **SHORT)


def test_a_reentrant_checkpoint_hides_a_layer():
    from torch.utils.checkpoint import checkpoint

    class Saving(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = make_cnn(DATA)

        def forward(self, x):
            if self.training:
                x = checkpoint(self.inner[:3], x, use_reentrant=True)
            else:
                x = self.inner[:3](x)
            return self.inner[3:](x)

    method = Labels() + 1e-3 * Hints({"inner.0": "0"})
    with pytest.raises(ValueError, match=r"^layers: the student's 'inner.0' .*use_reentrant=False"):
        fit(Saving(), DATA, method, teacher=make_cnn(DATA, 9), **SHORT)


def test_a_layer_may_get_its_first_gradient_late():
    class Skipping(nn.Module):
        """Stochastic depth (Huang et al., 2016): a block is left out at random."""

        def __init__(self):
            super().__init__()
            self.inner, self.block, self.calls = make_mlp(DATA), nn.Linear(4, 4), 0

        def forward(self, x):
            z = self.inner(x)
            self.calls += self.training
            return z + self.block(z) if not self.training or self.calls > 4 else z

    model = Skipping()
    before = model.block.weight.clone()
    run = fit(model, DATA, **SHORT)
    assert not run.interrupted and not torch.equal(before, model.block.weight)


class Writing(nn.Module):
    """A teacher that writes into itself in eval mode."""

    def __init__(self):
        super().__init__()
        self.inner = make_cnn(DATA, 9)
        self.register_buffer("asked", torch.zeros(()))

    def train(self, mode=True):
        return super().train(True)

    def forward(self, x):
        self.asked += len(x)
        return self.inner(x)


@pytest.mark.parametrize("options", [{}, {"views": None}], ids=["cached", "live"])
def test_a_teacher_that_writes_into_itself_comes_back_as_it_was(options):
    teacher = Writing()
    before = copy.deepcopy(teacher.state_dict())
    fit(make_cnn(DATA), DATA, SoftTargets(), teacher=teacher, **SHORT, **options)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_a_remainder_of_one_is_shared_out():
    norm = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    sizes = []

    def note(module, args):
        if module.training:
            sizes.append(len(args[0]))

    norm.register_forward_pre_hook(note)
    fit(norm, DATA, epochs=1, batch_size=17, micro_batch=16)
    assert sizes[1:] == [9, 8] * 5
    with pytest.raises(ValueError, match=r"^model: .*more than 1 value per channel"):
        fit(norm, DATA, epochs=1, batch_size=17, micro_batch=1)


def test_the_precision_is_that_of_fit_and_not_of_its_surroundings():
    students = [make_cnn(DATA), make_cnn(DATA)]
    fit(students[0], DATA, SoftTargets(), teacher=make_cnn(DATA, 9), **SHORT)
    with torch.autocast("cpu", torch.bfloat16):
        fit(students[1], DATA, SoftTargets(), teacher=make_cnn(DATA, 9), **SHORT)
    assert distance(*students) == 0


def test_weights_on_the_meta_device_are_named():
    empty = make_cnn(DATA).to("meta")
    with pytest.raises(ValueError, match=r"^teacher: got .* on the meta device"):
        fit(make_cnn(DATA), DATA, SoftTargets(), teacher=empty, **SHORT)
    with pytest.raises(ValueError, match=r"^model: got .* on the meta device"):
        predict(empty, DATA.val.x)
