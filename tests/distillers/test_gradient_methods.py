"""Gradient distillation: losses times weights; double backward through every shipped model."""

import signal
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from kdlab import losses, models
from kdlab.datasets import from_arrays
from kdlab.distillers import (
    GradientAttention,
    JacobianMatching,
    Labels,
    Outputs,
    Sobolev,
    SoftTargets,
    build,
)
from kdlab.models import build_for
from kdlab.training import device, fit

METHODS = {
    "jacobian_matching": "jacobian",
    "sobolev": "sobolev",
    "gradient_attention": "gradient_attention",
}
every_method = pytest.mark.parametrize("name", METHODS)
C = 3
MODELS = ["cnn_tiny", "resnet8", "wrn_16_1", "vgg8", "mobilenetv2", "mlp"]
make = partial(build_for, data_shape=(3, 8, 8), num_classes=C)


def batch(size=6, dtype=torch.float32, seed=0):
    images = torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return images.to(dtype), torch.arange(size) % C


def ask(model, images):
    images = images.detach().requires_grad_()
    return Outputs(model(images), {}, images)


def frozen(name="cnn_small", seed=7):
    return make(name, seed=seed).eval().requires_grad_(False)


def slope(logits, images, weights):
    """By the definition: one sample and one backward pass at a time."""
    rows = []
    for b, row in enumerate(logits):
        (g,) = torch.autograd.grad((row * weights[b]).sum(), images, retain_graph=True)
        rows.append(g[b])
    return torch.stack(rows)


def jacobian(outputs):
    weights = torch.eye(C, dtype=outputs.logits.dtype)
    each = [slope(outputs.logits, outputs.inputs, [w] * len(outputs.logits)) for w in weights]
    return torch.stack(each, 1)


# ---- what the terms are ----------------------------------------------------------------------


@pytest.mark.parametrize(("mine", "theirs"), [("cnn_tiny", "resnet8"), ("mlp", "vgg8")])
def test_terms_are_losses_times_weights(mine, theirs):
    images, targets = batch()
    student, teacher = ask(make(mine, seed=1).eval(), images), ask(frozen(theirs), images)
    j_s, j_t = jacobian(student), jacobian(teacher)
    top = teacher.logits.argmax(1)
    assert (top != student.logits.argmax(1)).any()
    each = range(len(images))
    onehot = nn.functional.one_hot(targets, C)
    ce_s, ce_t = (
        slope(o.logits, o.inputs, (o.logits.softmax(1) - onehot).detach())
        for o in (student, teacher)
    )
    expected = {
        "jacobian": losses.jacobian_matching_loss(j_s[each, top], j_t[each, top]),
        "sobolev": losses.sobolev_loss(j_s, j_t),
        "gradient_attention": losses.gradient_attention_loss(ce_s, ce_t),
    }
    for method in (JacobianMatching(3.0), Sobolev(3.0, directions=None), GradientAttention(3.0)):
        ((term, value),) = method(student, teacher, targets).items()
        assert value > 0
        torch.testing.assert_close(value, 3 * expected[term], rtol=1e-4, atol=1e-6)


@every_method
def test_what_every_method_keeps(name):
    method = build(name)
    assert method.needs_input_gradients and not method.complete and method.needs_teacher
    assert not method.needs_only_logits and not method.student_taps and not method.teacher_taps
    assert not list(method.parameters())
    assert method.weight == 1 and getattr(method, "directions", 1) == 1
    images, targets = batch()
    teacher = make("cnn_small", seed=7).eval()
    student, asked = ask(make("cnn_tiny", seed=1), images), ask(teacher, images)
    ((term, value),) = method(student, asked, targets).items()
    assert term == METHODS[name] and value.shape == ()
    again = method(student, asked, targets)[term]  # both graphs are still there
    value.backward(retain_graph=True)
    assert all(p.grad is None for p in teacher.parameters()) and asked.inputs.grad is None
    if name != "sobolev":
        assert again == value
    assert build(name, weight=0.0)(student, asked, targets)[term] == 0
    twin = ask(teacher, images)
    assert method(twin, asked, targets)[term].abs() < 1e-9


@every_method
def test_the_sum_has_the_terms_by_name(name):
    images, targets = batch()
    student, teacher = ask(make("cnn_tiny", seed=1), images), ask(frozen(), images)
    both = SoftTargets() + build(name)
    assert list(both(student, teacher, targets)) == ["hard", "soft", METHODS[name]]
    assert both.needs_input_gradients and both.complete and not both.needs_only_logits
    everything = Labels() + JacobianMatching() + Sobolev() + GradientAttention()
    assert list(everything(student, teacher, targets)) == ["hard", *METHODS.values()]


def test_images_without_a_label_take_no_part_in_gradient_attention():
    images, targets = batch()
    targets[[1, 4]] = -1
    kept = targets >= 0
    student, teacher = make("cnn_tiny", seed=1).eval(), frozen()
    got = GradientAttention()(ask(student, images), ask(teacher, images), targets)
    less = GradientAttention()(
        ask(student, images[kept]), ask(teacher, images[kept]), targets[kept]
    )
    torch.testing.assert_close(got["gradient_attention"], less["gradient_attention"])
    student.train()
    nobody = GradientAttention()(ask(student, images), ask(teacher, images), 0 * targets - 1)
    nobody["gradient_attention"].backward()
    assert nobody["gradient_attention"] == 0
    assert not any(p.grad.any() for p in student.parameters() if p.grad is not None)


# ---- random directions -----------------------------------------------------------------------


@pytest.mark.parametrize("directions", [1, 2])
def test_random_directions_average_to_the_whole_jacobian(directions):
    """300 steps of 6 images: the mean is within four standard errors, which are below 3 %."""
    images, targets = batch()
    student, teacher = ask(make("mlp", seed=1), images), ask(frozen("mlp"), images)
    whole = Sobolev(directions=None)(student, teacher, targets)["sobolev"].item()
    torch.manual_seed(0)
    steps = 600 // directions
    drawn = np.array(
        [
            float(Sobolev(directions=directions)(student, teacher, targets)["sobolev"].detach())
            for _ in range(steps)
        ]
    )
    error = drawn.std() / steps**0.5
    assert error < 0.03 * whole
    assert abs(drawn.mean() - whole) < 4 * error


def test_directions_are_of_length_one_evenly_spread_and_new_for_each_image_and_step():
    torch.manual_seed(0)
    drawn = torch.cat(Sobolev(directions=2)._directions(torch.zeros(4000, C)))
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(8000))
    torch.testing.assert_close(drawn.T @ drawn / 8000, torch.eye(C) / C, rtol=0, atol=0.02)
    assert drawn.mean(0).abs().max() < 0.02
    assert len(drawn.unique(dim=0)) == 8000
    first = Sobolev()._directions(torch.zeros(4, C))[0]
    torch.manual_seed(3)
    second = Sobolev()._directions(torch.zeros(4, C))[0]
    torch.manual_seed(3)
    assert torch.equal(second, Sobolev()._directions(torch.zeros(4, C))[0])
    assert not torch.equal(first, second)


# ---- double backward -------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("name", models.available((3, 16, 16)))
def test_every_shipped_model_learns_from_slopes(name, activation):
    """All weights of more than one dimension get a finite gradient that is not zero."""
    student = make(name, seed=1, activation=activation).train()
    images, targets = batch(3)
    terms = (JacobianMatching() + Sobolev() + GradientAttention())(
        ask(student, images), ask(frozen("mlp"), images), targets
    )
    assert all(value.isfinite() and value > 0 for value in terms.values())
    sum(terms.values()).backward()
    for path, parameter in student.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), path
        assert parameter.dim() == 1 or parameter.grad.any(), path


@every_method
@pytest.mark.parametrize("model", MODELS)
def test_the_gradient_equals_a_finite_difference(model, name):
    """Along a random direction of all weights, in float64, batch norm in training mode."""
    student = make(model, seed=1, activation="softplus").double().train()
    images, targets = batch(5, torch.float64)
    teacher = ask(frozen().double(), images)
    method = build(name)

    def term():
        torch.manual_seed(5)  # the same random directions
        return method(ask(student, images), teacher, targets)[METHODS[name]]

    weights = list(student.parameters())
    grads = torch.autograd.grad(term(), weights, allow_unused=True)
    generator = torch.Generator().manual_seed(0)
    along = [
        torch.randn(w.shape, generator=generator, dtype=w.dtype) * w.std() for w in weights[:-1]
    ]
    predicted = sum((g * d).sum() for g, d in zip(grads, along, strict=False) if g is not None)
    step = 1e-6
    values = []
    for sign in (1, -2):
        with torch.no_grad():
            for weight, direction in zip(weights, along, strict=False):
                weight += sign * step * direction
        values.append(float(term().detach()))
    expected = predicted.item()
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(expected, rel=1e-4)
    assert abs(expected) > 1e-6


def test_a_relu_network_learns_through_the_slopes_of_its_pieces_alone():
    """Moving a bias moves where the pieces meet, not their slopes; in a smooth network it bends."""
    images, targets = batch()
    teacher = ask(frozen(), images)
    for activation, bends in {"relu": False, "silu": True, "softplus": True}.items():
        student = make("mlp", seed=1, activation=activation)
        (value,) = Sobolev(directions=None)(ask(student, images), teacher, targets).values()
        first, last = student.layers
        gradients = torch.autograd.grad(
            value, [first.weight, last.weight, first.bias], allow_unused=True
        )
        assert gradients[0].any() and gradients[1].any()
        assert (gradients[2] is not None and bool(gradients[2].any())) == bends


@every_method
def test_learning_brings_the_slopes_together(name):
    images, targets = batch(16)
    teacher = ask(frozen("mlp"), images)
    student = make("mlp", seed=1, activation="silu")
    method = build(name)
    update = torch.optim.Adam(student.parameters(), 3e-3)
    torch.manual_seed(0)
    seen = []
    for _ in range(60):
        (value,) = method(ask(student, images), teacher, targets).values()
        update.zero_grad()
        value.backward()
        update.step()
        seen.append(float(value.detach()))
    assert np.mean(seen[-10:]) < 0.5 * np.mean(seen[:3])


# ---- in training -----------------------------------------------------------------------------


def make_data(n=48, classes=C, size=8):
    random = np.random.default_rng(0)
    patterns = random.random((classes, size, size, 3))

    def draw(count):
        y = np.arange(count) % classes
        return (0.6 * patterns[y] + 0.4 * random.random((count, size, size, 3))).astype("f4"), y

    return from_arrays(*draw(n), *draw(n), x_val=draw(20)[0], y_val=np.arange(20) % classes)


DATA = make_data()
SHORT = {"epochs": 2, "batch_size": 16, "lr": 0.02, "device": "cpu"}


def train(distiller, student="cnn_tiny", teacher=None, **options):
    model = make(student, seed=1)
    return model, fit(model, DATA, distiller, teacher=teacher or frozen(), **SHORT | options)


@every_method
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fit_logs_the_term_and_trains(name, precision, monkeypatch):
    monkeypatch.setattr(device, "has_native_bf16", lambda where: True)  # emulated elsewhere: slow
    model, run = train(Labels() + build(name), precision=precision)
    without, _ = train(Labels(), precision=precision)
    assert all(np.isfinite(row[METHODS[name]]) for row in run.history.rows)
    assert all(p.isfinite().all() for p in model.parameters())
    assert any(
        not torch.equal(a, b) for a, b in zip(model.parameters(), without.parameters(), strict=True)
    )


def test_a_run_with_random_directions_resumes_to_the_last_bit(tmp_path):
    def stop(moment):
        if (moment.epoch, moment.step) == (1, 1):
            signal.raise_signal(signal.SIGINT)

    whole, _ = train(Labels() + Sobolev())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="stopped in epoch")
        _, part = train(Labels() + Sobolev(), checkpoint=tmp_path / "c.pt", callbacks=[stop])
    assert part.interrupted
    torch.rand(3)
    resumed, _ = train(Labels() + Sobolev(), checkpoint=tmp_path / "c.pt")
    state = resumed.state_dict()
    assert all(torch.equal(state[key], value) for key, value in whole.state_dict().items())


@every_method
@pytest.mark.parametrize(
    ("student", "teacher"), [("resnet8", "mlp"), ("mobilenetv2", "vgg8"), ("mlp", "wrn_16_1")]
)
def test_any_pair_of_models_can_be_trained(name, student, teacher):
    # a small weight: the slopes of a fresh MobileNetV2 are a thousand times the teacher's
    _, run = train(SoftTargets() + build(name, weight=1e-5), student, frozen(teacher), epochs=1)
    assert np.isfinite(run.history.rows[-1][METHODS[name]])


# ---- errors ----------------------------------------------------------------------------------


@every_method
def test_without_a_teacher_or_gradients_the_message_is_kind(name):
    images, targets = batch()
    student, teacher = ask(make("mlp"), images), ask(frozen(), images)
    method = build(name)
    with pytest.raises(ValueError, match=r"^teacher: .* needs a teacher and got none"):
        method(student, None, targets)
    for outputs in (Outputs(student.logits), Outputs(student.logits, {}, images)):
        with pytest.raises(ValueError, match=r"^inputs: .*needs_input_gradients = True"):
            method(outputs, teacher, targets)
        with pytest.raises(ValueError, match=r"^inputs: .*needs_input_gradients = True"):
            method(student, Outputs(teacher.logits, {}, outputs.inputs), targets)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: JacobianMatching(-1), "^weight: -1"),
        (lambda: Sobolev(float("nan")), "^weight: nan"),
        (lambda: GradientAttention(float("inf")), "^weight: inf"),
        (lambda: Sobolev(directions=0), "^directions: 0, expected an integer of at least 1, or N"),
        (lambda: Sobolev(directions=1.5), r"^directions: 1\.5"),
        (lambda: Sobolev(directions=True), "^directions: True"),
    ],
)
def test_wrong_options_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("method", [JacobianMatching(), Sobolev(), Sobolev(directions=None)])
def test_a_teacher_of_other_classes_is_refused(method):
    images, targets = batch()
    teacher = build_for("mlp", (3, 8, 8), C + 1).eval()
    message = r"^teacher: shape \[6, 4\], expected student's \[6, 3\]: .*same classes"
    with pytest.raises(ValueError, match=message):
        method(ask(make("mlp"), images), ask(teacher, images), targets)
