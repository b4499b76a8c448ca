"""Feature losses: value and gradient against NumPy, what each promises, the defects of others."""

import re

import numpy as np
import pytest
import reference_features as ref
import torch
from cases import value_and_gradient
from reference import gradient
from scipy import integrate, stats
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kdlab import losses
from kdlab.losses import unchecked_values

MARGIN = np.array([-0.4, -1.0, -0.1])
VARIANCE = np.array([0.3, 1.0, 4.0])


def flow_of(student, teacher, **options):
    """`flow_loss` of maps whose first channel is one layer and whose others the next."""
    return losses.flow_loss(
        (student[:, :1], student[:, 1:]), (teacher[:, :1], teacher[:, 1:]), **options
    )


def margin_of(features):
    return torch.as_tensor(np.resize(MARGIN, features.shape[1]))


def variance_of(features):
    return torch.as_tensor(np.resize(VARIANCE, features.shape[1]))


LOSSES = {
    "hint": losses.hint_loss,
    "attention": losses.attention_transfer_loss,
    "attention paper": lambda s, t, **k: losses.attention_transfer_loss(s, t, norm="paper", **k),
    "attention p=3": lambda s, t, **k: losses.attention_transfer_loss(s, t, 3.0, **k),
    "flow": flow_of,
    "selectivity": losses.neuron_selectivity_loss,
    "variational": lambda s, t, **k: losses.variational_information_loss(s, t, variance_of(s), **k),
    "channel": lambda s, t, **k: losses.channel_wise_loss(s, t, 2.0, **k),
    "boundary": lambda s, t, **k: losses.activation_boundary_loss(s, t, 0.7, **k),
    "factor": losses.factor_transfer_loss,
    "overhaul": lambda s, t, **k: losses.overhaul_loss(s, t, margin_of(s), **k),
    "review": losses.hierarchical_context_loss,
}
REFERENCES = {
    "hint": ref.hint,
    "attention": ref.attention_transfer(2.0, "released"),
    "attention paper": ref.attention_transfer(2.0, "paper"),
    "attention p=3": ref.attention_transfer(3.0, "released"),
    "flow": ref.flow(1),
    "selectivity": ref.neuron_selectivity,
    "variational": ref.variational(VARIANCE),
    "channel": ref.channel_wise(2.0),
    "boundary": ref.activation_boundary(0.7),
    "factor": ref.factor_transfer,
    "overhaul": ref.overhaul(MARGIN),
    "review": ref.hierarchical_context,
}
# Zero, with a gradient of 0, for a copy of the teacher.
COPIES = sorted(LOSSES.keys() - {"variational", "boundary", "overhaul"})
NORMALISED = ["attention", "attention paper", "attention p=3", "selectivity", "factor"]
OTHER_CHANNELS = ["attention", "attention paper", "attention p=3", "selectivity"]
ANY_RANK = {
    "hint": losses.hint_loss,
    "boundary": losses.activation_boundary_loss,
    "factor": losses.factor_transfer_loss,
}
TOLERANCE = {  # value: rtol, atol; gradient: rtol, atol relative to its largest entry
    torch.float64: ((1e-11, 1e-13), (1e-9, 1e-11)),
    torch.float32: ((5e-5, 1e-6), (2e-4, 1e-5)),
    torch.float16: ((5e-5, 1e-6), (2e-3, 1e-3)),
    torch.bfloat16: ((5e-5, 1e-6), (1e-2, 1e-4)),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def maps(*shape, seed=0, dtype=torch.float64):
    """Student's and teacher's features of one shape."""
    random = np.random.default_rng([seed, *shape])
    return tuple(torch.tensor(random.normal(size=shape)).to(dtype) for _ in range(2))


def says(*parts):
    """A message that starts with the argument's name and holds all parts in this order."""
    return pytest.raises(ValueError, match="^" + ".*".join(map(re.escape, parts)))


def fails(check, *mutants):
    """Each mutant must be caught by the check that the real loss passes."""
    for mutant in mutants:
        with pytest.raises(AssertionError):
            check(mutant)


# ---- value and gradient ----------------------------------------------------------------------


def assert_equals_reference(name, student, teacher):
    s, t = student.double().numpy(), teacher.double().numpy()
    expected = REFERENCES[name](s, t)
    value, slope = value_and_gradient(LOSSES[name], student, teacher)
    (rtol, atol), (slope_rtol, slope_atol) = TOLERANCE[student.dtype]
    np.testing.assert_allclose(value, expected.mean(), rtol, atol)
    values = LOSSES[name](student, teacher, reduction="none")
    assert values.shape == student.shape[:1]
    np.testing.assert_allclose(values, expected, rtol, atol)
    by_step = gradient(lambda x: REFERENCES[name](x, t), s)
    atol = slope_atol * np.abs(by_step).max()
    np.testing.assert_allclose(slope.double().numpy(), by_step, slope_rtol, atol)
    assert np.abs(by_step).max() > 1e-3
    wide = torch.float64 if student.dtype == torch.float64 else torch.float32
    assert value.dtype == wide and slope.dtype == student.dtype


@every_loss
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_loss_equals_its_reference(name, dtype):
    size = (8, 12) if name == "review" else (2, 4)
    assert_equals_reference(name, *maps(2, 3, *size, dtype=dtype))


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"review"}))
def test_loss_equals_its_reference_where_channels_outnumber_the_places(name):
    """The other Gram matrix of the selectivity loss."""
    assert_equals_reference(name, *maps(3, 3, 1, 2, seed=1))


@pytest.mark.parametrize("name", OTHER_CHANNELS)
@pytest.mark.parametrize("shape", [(2, 5, 3, 2), (2, 9, 2, 2)], ids=str)
def test_the_channels_may_differ(name, shape):
    student, teacher = maps(*shape)
    teacher = teacher[:, :2]
    value, slope = value_and_gradient(LOSSES[name], student, teacher)
    s, t = student.numpy(), teacher.numpy()
    np.testing.assert_allclose(value, REFERENCES[name](s, t).mean(), 1e-10)
    by_step = gradient(lambda x: REFERENCES[name](x, t), s)
    np.testing.assert_allclose(slope, by_step, 1e-8, 1e-11)


@pytest.mark.parametrize("name", ANY_RANK)
@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 2)], ids=str)
def test_embeddings_and_tokens_are_maps_of_another_form(name, shape):
    student, teacher = maps(*shape)
    as_maps = [x.reshape(4, 6, 1, 1) for x in (student, teacher)]
    torch.testing.assert_close(ANY_RANK[name](student, teacher), ANY_RANK[name](*as_maps))


@every_loss
def test_gradcheck_in_float64(name):
    student, teacher = maps(2, 3, 3, 4, seed=3)
    loss = LOSSES[name]
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student.requires_grad_())


# ---- what holds of all -----------------------------------------------------------------------


@every_loss
def test_the_teacher_gets_no_gradient_and_inputs_stay_as_they_were(name):
    student, teacher = (x.requires_grad_() for x in maps(3, 3, 2, 4))
    copies = student.detach().clone(), teacher.detach().clone()
    LOSSES[name](student, teacher).backward()
    assert teacher.grad is None and student.grad.any()
    assert torch.equal(student, copies[0]) and torch.equal(teacher, copies[1])


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_a_copy_is_perfect_and_anything_else_is_not(name, dtype):
    """Defects 3 and 8: an inverted sign, FT(f, −f) = 0."""
    teacher, other = maps(3, 3, 8, 8, dtype=dtype)

    def check(loss):
        value, slope = value_and_gradient(loss, teacher, teacher)
        assert abs(float(value)) < 1e-6 and float(slope.abs().max()) < 1e-5
        for worse in [other] if name == "flow" else [other, teacher.roll(1, 2)]:
            assert float(loss(worse, teacher)) > 1e-3

    check(LOSSES[name])
    fails(check, lambda s, t: -LOSSES[name](s, t), lambda s, t: LOSSES[name](s, s + 0 * t))


@pytest.mark.parametrize("name", ["hint", "channel", "boundary", "factor", "overhaul", "review"])
def test_the_sign_of_the_features_counts(name):
    """Defect 8: FT(f, −f) = 0, because squares were compared."""
    _, teacher = maps(3, 3, 4, 4)

    def check(loss):
        assert float(loss(-teacher, teacher)) > float(loss(teacher, teacher)) + 1e-2

    check(LOSSES[name])
    fails(check, lambda s, t: LOSSES[name](s.square(), t.square()))


@every_loss
def test_the_order_of_the_batch_does_not_matter(name):
    """Defect 7."""
    student, teacher = maps(5, 3, 2, 4)
    order = torch.tensor([3, 0, 4, 1, 2])
    values = LOSSES[name](student, teacher, reduction="none")
    moved = LOSSES[name](student[order], teacher[order], reduction="none")
    torch.testing.assert_close(moved, values[order])


@every_loss
def test_an_image_counts_for_itself_alone(name):
    """Defect 16, and the gate that must close."""
    student, teacher = maps(4, 3, 2, 4)
    gate = torch.tensor([1.0, 0.0, 0.5, 0.0])
    _, slope = value_and_gradient(
        lambda s: LOSSES[name](s, teacher, reduction="none") * gate, student
    )
    assert not slope[gate == 0].any() and slope[gate > 0].flatten(1).any(1).all()
    once = LOSSES[name](student, teacher)
    torch.testing.assert_close(
        LOSSES[name](student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1)), once
    )


@pytest.mark.parametrize("name", NORMALISED)
def test_normalised_losses_have_no_scale(name):
    student, teacher = maps(3, 3, 4, 4)
    value, slope = value_and_gradient(LOSSES[name], student, teacher)
    for scale in (1e-6, 1e-3, 1e30):
        scaled = value_and_gradient(LOSSES[name], student * scale, teacher * 100)
        torch.testing.assert_close(scaled[0], value, rtol=1e-6, atol=0)
        torch.testing.assert_close(scaled[1] * scale, slope, rtol=1e-6, atol=1e-12)


EXTREMES = {
    "zeros": lambda x: torch.zeros_like(x),
    "a zero row": lambda x: x * torch.tensor([1.0, 0, 1, 1]).view(-1, 1, 1, 1).to(x),
    "a dead channel": lambda x: x * torch.tensor([1.0, 0, 1]).view(-1, 1, 1).to(x),
    "duplicate rows": lambda x: x[:1].expand_as(x).contiguous(),
    "constant": lambda x: torch.full_like(x, 0.3),
    "large": lambda x: (x * 1e4).to(x.dtype),
    "small": lambda x: x * 1e-3,
}


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_values_and_gradients_are_finite_at_the_extremes(name, dtype):
    """Defects 5 and 6: a logarithm of an underflow, a division by a zero norm."""
    student, teacher = maps(4, 3, 8, 8, dtype=dtype)
    for label, change in EXTREMES.items():
        if name == "flow" and label == "large" and dtype == torch.float16:
            continue  # its true gradient, 1e12, is no number of half precision
        changed = change(student)
        for s, t in [(changed, teacher), (student, change(teacher)), (changed, changed)]:
            value, slope = value_and_gradient(LOSSES[name], s, t)
            assert value.isfinite() and slope.isfinite().all(), (label, value)


@pytest.mark.parametrize("name", NORMALISED)
def test_what_has_no_direction_gets_no_gradient(name):
    student, teacher = maps(4, 3, 4, 4)
    student[1] = 0
    _, slope = value_and_gradient(LOSSES[name], student, teacher)
    assert not slope[1].any() and slope[[0, 2, 3]].flatten(1).any(1).all()


@every_loss
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_vmap_over_many_students_equals_one_after_another(name, reduction):
    pairs = [maps(2, 3, 2, 4, seed=k) for k in (1, 2, 3)]
    students, teachers = (torch.stack(x) for x in zip(*pairs, strict=True))

    def summed(s, t):
        return LOSSES[name](s, t, reduction=reduction).sum()

    with unchecked_values():
        slopes, values = torch.func.vmap(torch.func.grad_and_value(summed))(students, teachers)
    for k, (student, teacher) in enumerate(pairs):
        torch.testing.assert_close(
            (values[k], slopes[k]), value_and_gradient(summed, student, teacher)
        )


# ---- wrong input -----------------------------------------------------------------------------

MAPS_ONLY = sorted(LOSSES.keys() - ANY_RANK.keys() - {"flow", "variational"})


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"flow"}))
def test_wrong_input_is_refused_by_name(name):
    student, teacher = maps(2, 3, 4, 4, dtype=torch.float32)
    loss = LOSSES[name]
    with says("teacher: shape [2, 3, 4, 2], expected student's [2, 3, 4, 4]", "adapt"):
        loss(student, teacher[..., :2])
    with says("teacher: shape [1, 3, 4, 4], expected student's [2, 3, 4, 4]"):
        loss(student, teacher[:1])
    with says("student: shape [0, 3, 4, 4]", "empty batch"):
        loss(student[:0], teacher[:0])
    with says("student: dtype torch.int64", "floating-point"):
        loss(student.long(), teacher)
    with says("teacher: NaN or infinite features"):
        loss(student, teacher / 0)
    with says("reduction: 'sum', expected"):
        loss(student, teacher, reduction="sum")
    if name not in OTHER_CHANNELS:
        with says("teacher: shape [2, 1, 4, 4], expected student's [2, 3, 4, 4]"):
            loss(student, teacher[:, :1])
    if name in MAPS_ONLY:
        with says("student: shape [2, 3], expected features [B, c, h, w]"):
            loss(student[..., 0, 0], teacher[..., 0, 0])


def test_wrong_options_and_extras_are_refused_by_name():
    s, t = maps(2, 3, 4, 4)
    with says('norm: \'l2\', expected "released" or "paper"'):
        losses.attention_transfer_loss(s, t, norm="l2")
    with says("power: 0.5, expected at least 1"):
        losses.attention_map(s, 0.5)
    for power in (0, float("nan"), float("inf")):
        with says(f"power: {power}, expected a finite number above 0"):
            losses.attention_map(s, power)
    with says("temperature: 0, expected"):
        losses.channel_wise_loss(s, t, 0)
    with says("margin: -1, expected"):
        losses.activation_boundary_loss(s, t, -1)
    with says("margin: shape [2], expected [3]"):
        losses.overhaul_loss(s, t, torch.zeros(2))
    with says("margin: 0.5 among them, expected none above 0"):
        losses.overhaul_loss(s, t, torch.tensor([0.0, -1, 0.5]))
    with says("variance: shape [2], expected [3]"):
        losses.variational_information_loss(s, t, torch.ones(2))
    with says("variance: 0 among them, expected values above 0"):
        losses.variational_information_loss(s, t, torch.tensor([0.0, 1, 2]))
    with says("second: shape [2, 3, 4, 2], expected B, h and w of first", "[2, 3, 4, 4]"):
        losses.flow_matrix(s, t[..., :2])
    with says("second: shape [1, 3, 4, 4], expected B, h and w of first"):
        losses.flow_matrix(s, t[:1])
    with says("teacher: shape [2, 3, 2], expected student's [2, 3, 3]"):
        losses.flow_loss((s, s), (t, t[:, :2]))
    with says("teacher: NaN or infinite"):
        losses.flow_loss((s, s), (t, t / 0))
    with says("norm: ReLU() has no scale and shift"):
        losses.batch_norm_margin(nn.ReLU())
    with says("norm: BatchNorm2d(3,", "affine=True"):
        losses.batch_norm_margin(nn.BatchNorm2d(3, affine=False))


# ---- what each promises ----------------------------------------------------------------------


def test_hint_is_torchs_mean_squared_error():
    student, teacher = maps(3, 4, 5, 6)
    torch.testing.assert_close(losses.hint_loss(student, teacher), F.mse_loss(student, teacher))


def test_the_two_attention_norms_differ_as_the_docstring_says():
    student, teacher = maps(3, 4, 5, 6)
    released = losses.attention_transfer_loss(student, teacher, reduction="none")
    paper = losses.attention_transfer_loss(student, teacher, norm="paper", reduction="none")
    torch.testing.assert_close(paper**2, 5 * 6 * released)


def test_papers_norm_pulls_as_hard_however_close_the_maps_are():
    teacher, direction = maps(3, 4, 5, 6)
    sizes = {
        norm: [
            float(
                value_and_gradient(
                    lambda s: losses.attention_transfer_loss(s, teacher, norm=norm),  # noqa: B023
                    teacher + step * direction,
                )[1].norm()
            )
            for step in (1e-3, 1e-6)
        ]
        for norm in ("paper", "released")
    }
    assert sizes["paper"][1] == pytest.approx(sizes["paper"][0], rel=0.02)
    assert sizes["released"][1] == pytest.approx(1e-3 * sizes["released"][0], rel=0.02)


def test_an_attention_map_has_length_one_and_shows_where_the_energy_is():
    features = torch.zeros(2, 3, 4, 5)
    features[0, :, 1, 2] = torch.tensor([3.0, -4.0, 0.0])
    features[0, 0, 3, 0] = -5.0
    features[1, 2, 0, 0] = 1e-5
    shown = losses.attention_map(features)
    assert shown.shape == (2, 4, 5)
    torch.testing.assert_close(shown.flatten(1).norm(dim=1), torch.ones(2))
    assert shown[0, 1, 2] == pytest.approx(0.5**0.5) == float(shown[0, 3, 0])
    assert float(shown[1, 0, 0]) == 1 and int((shown > 0).sum()) == 3
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(losses.attention_map(features[:, order]), shown)
    assert losses.attention_map(features, 8.0)[0, 3, 0] > shown[0, 3, 0]


def test_an_attention_map_is_of_one_image_and_in_single_precision():
    features, _ = maps(2, 3, 4, 4, dtype=torch.float32)
    loud = torch.stack([features[0], 1e25 * features[1]])
    torch.testing.assert_close(losses.attention_map(loud), losses.attention_map(features))
    half = features.half()
    assert torch.equal(losses.attention_map(half), losses.attention_map(half.float()))


def test_a_flow_does_not_depend_on_where_but_on_what_goes_together():
    first, second = maps(2, 3, 4, 4)
    flow = losses.flow_matrix(first, second)
    assert flow.shape == (2, 3, 3)
    np.testing.assert_allclose(flow[1], ref.flow_matrix(first[1].numpy(), second[1].numpy()))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    moved = [x.flatten(2)[..., order].view_as(x) for x in (first, second)]
    torch.testing.assert_close(losses.flow_matrix(*moved), flow)
    assert float((losses.flow_matrix(moved[0], second) - flow).abs().max()) > 0.1
    torch.testing.assert_close(losses.flow_matrix(second, first), flow.mT)
    larger = [F.interpolate(x, scale_factor=2) for x in (first, second)]
    assert float(losses.flow_loss((first, second), tuple(larger))) == pytest.approx(0, abs=1e-20)


def test_selectivity_looks_at_the_set_of_channels():
    student, teacher = maps(2, 5, 4, 4)
    value = losses.neuron_selectivity_loss(student, teacher)
    signs = torch.tensor([1.0, -2.0, 1e3, 0.1, -1.0]).view(-1, 1, 1)
    order = torch.tensor([4, 2, 0, 1, 3])
    torch.testing.assert_close(
        losses.neuron_selectivity_loss(student[:, order] * signs, teacher), value
    )
    twice = torch.cat([teacher, teacher], 1)
    assert float(losses.neuron_selectivity_loss(twice, teacher)) == pytest.approx(0, abs=1e-15)
    assert float(losses.neuron_selectivity_loss(teacher[:, :4], teacher)) > 1e-3


def test_variational_loss_is_the_normal_log_likelihood_without_its_constant():
    mean, teacher = maps(3, 3, 4, 2)
    variance = torch.tensor(VARIANCE)
    expected = -stats.norm.logpdf(
        teacher.numpy(), mean.numpy(), np.sqrt(VARIANCE)[:, None, None]
    ).mean() - 0.5 * np.log(2 * np.pi)
    value = losses.variational_information_loss(mean, teacher, variance)
    assert float(value) == pytest.approx(expected)


def test_the_best_variance_is_the_mean_squared_error_and_can_be_learned():
    mean, teacher = maps(3, 3, 4, 2)
    best = (teacher - mean).square().mean((0, 2, 3)).requires_grad_()
    value = losses.variational_information_loss(mean, teacher, best)
    (slope,) = torch.autograd.grad(value, best)
    assert float(slope.abs().max()) < 1e-14
    torch.testing.assert_close(value, 0.5 * (best.log() + 1).mean())
    assert losses.variational_information_loss(mean, teacher, best * 2) > value
    assert losses.variational_information_loss(mean, teacher, best / 2) > value
    _, at_mean = value_and_gradient(
        lambda m: losses.variational_information_loss(m, teacher, best.detach()), teacher
    )
    assert not at_mean.any()


def test_variational_loss_takes_embeddings():
    mean, teacher = maps(4, 3)
    variance = torch.tensor(VARIANCE)
    torch.testing.assert_close(
        losses.variational_information_loss(mean, teacher, variance),
        losses.variational_information_loss(
            mean[..., None, None], teacher[..., None, None], variance
        ),
    )


def test_channel_wise_loss_is_a_soft_target_loss_over_places():
    student, teacher = maps(3, 4, 5, 6)
    rows = [x.reshape(12, 30) for x in (student, teacher)]
    value = losses.channel_wise_loss(student, teacher, 3.0)
    torch.testing.assert_close(value, losses.soft_target_loss(*rows, 3.0))
    p, q = (F.softmax(x / 3.0, -1).numpy() for x in reversed(rows))
    assert float(value) == pytest.approx(9 * stats.entropy(p, q, axis=-1).mean())
    louder = student + torch.arange(4.0).view(-1, 1, 1)
    torch.testing.assert_close(losses.channel_wise_loss(louder, teacher, 3.0), value)


def test_only_the_side_of_the_teachers_boundary_counts():
    student, teacher = maps(3, 4, 5, 6)
    value, slope = value_and_gradient(losses.activation_boundary_loss, student, teacher)
    sides = torch.where(teacher > 0, 100.0, -1e-3).double()
    torch.testing.assert_close(losses.activation_boundary_loss(student, sides), value)
    assert float(losses.activation_boundary_loss(sides.sign() * 1.0, sides)) == 0
    satisfied = student * teacher.sign() >= 1
    assert satisfied.any() and not slope[satisfied].any() and slope[~satisfied].all()
    assert (slope[~satisfied] * teacher.sign()[~satisfied] < 0).all()  # pushed to the right side
    on = torch.ones_like(student)
    assert float(losses.activation_boundary_loss(on, 0 * teacher)) == 120 * (1 + 1) ** 2  # 0 is off


def test_overhaul_asks_nothing_of_a_student_below_a_negative_target():
    teacher = torch.tensor([[-5.0, -0.5, -0.5, 0.0, 2.0, 2.0, -5.0]]).view(1, 1, 1, 7)
    student = torch.tensor([[-9.0, -0.6, -0.4, -1.0, 1.0, -1.0, 1.0]]).view(1, 1, 1, 7)
    margin = torch.tensor([-1.0], requires_grad=True)
    assert not losses.overhaul_loss(student, teacher, margin).requires_grad  # it is the teacher's
    value, slope = value_and_gradient(losses.overhaul_loss, student, teacher, margin)
    # The targets are −1, −½, −½, 0, 2, 2, −1; the squares 0, 0, 0.1², 0, 1², 3², 2².
    assert float(value) == pytest.approx(0.01 + 1 + 9 + 4)
    expected = torch.tensor([0.0, 0, 0.2, 0, -2, -6, 4])
    torch.testing.assert_close(slope.flatten(), expected)


def test_batch_norm_margin_is_the_mean_of_the_negative_part():
    norm = nn.BatchNorm2d(6).double()
    scales, shifts = [1.0, -2.0, 0.5, 3.0, 1.0, 1e-3], [0.0, 1.0, -2.0, 9.0, -40.0, 7.8e-3]
    for parameter, values in ((norm.weight, scales), (norm.bias, shifts)):
        parameter.data = torch.tensor(values, dtype=torch.float64)
    margin = losses.batch_norm_margin(norm)
    assert margin.dtype == torch.float64 and not margin.requires_grad
    for scale, shift, value in zip(scales, shifts, margin.tolist(), strict=True):
        density = stats.norm(shift, abs(scale)).pdf
        low = min(0.0, shift) - 40 * abs(scale)
        points = sorted({max(low, min(shift, -1e-9)), -1e-9})
        options = {"points": points, "epsabs": 0, "epsrel": 1e-10, "limit": 400}
        below, _ = integrate.quad(density, low, 0, **options)
        weighted, _ = integrate.quad(lambda x: x * density(x), low, 0, **options)  # noqa: B023
        assert value == pytest.approx(weighted / below, rel=1e-7)


def test_batch_norm_margin_far_out_in_the_tail_and_at_its_seams():
    a = torch.tensor([7.99, 8.0, 8.01, 20.0, 1e3, 1e8, -1e3], dtype=torch.float64)
    norm = nn.BatchNorm2d(len(a)).double()
    norm.bias.data = a.clone()
    margin = losses.batch_norm_margin(norm)
    # h(a) − a = 1/a − 2/a³ + 10/a⁵ − 74/a⁷ + …
    series = -(1 / a - 2 / a**3 + 10 / a**5 - 74 / a**7 + 706 / a**9)
    torch.testing.assert_close(margin[3:6], series[3:6], rtol=1e-7, atol=0)
    steps = margin[:3].diff()
    assert float(steps[0]) == pytest.approx(float(steps[1]), rel=1e-2)  # no jump where 8 is passed
    hazard = np.exp(stats.norm.logpdf(8.01) - stats.norm.logsf(8.01))
    assert float(margin[2]) == pytest.approx(8.01 - hazard, rel=1e-10)  # enough steps
    assert float(margin[6]) == -1e3
    norm.weight.data.zero_()  # a channel that is constant
    torch.testing.assert_close(losses.batch_norm_margin(norm), a.clamp(max=0))
    single = nn.BatchNorm2d(3)
    assert losses.batch_norm_margin(single).dtype == torch.float32
    torch.testing.assert_close(
        losses.batch_norm_margin(single), torch.full((3,), -((2 / np.pi) ** 0.5))
    )


def test_scales_that_are_no_smaller_than_the_map_are_left_out():
    student, teacher = maps(3, 2, 4, 4)
    gap = (student - teacher).numpy()

    def mean_square(size):
        return np.mean([(ref.pooled(x, size, size) ** 2).mean() for x in gap])

    expected = (mean_square(4) + mean_square(2) / 2 + mean_square(1) / 4) / 1.75
    assert float(losses.hierarchical_context_loss(student, teacher)) == pytest.approx(expected)
    dot = student[..., :1, :1], teacher[..., :1, :1]
    torch.testing.assert_close(losses.hierarchical_context_loss(*dot), losses.hint_loss(*dot))
    column = student.reshape(3, 2, 16, 1), teacher.reshape(3, 2, 16, 1)  # 16 tokens
    gap = (column[0] - column[1]).numpy()
    scales = [np.mean([(ref.pooled(x, n, 1) ** 2).mean() for x in gap]) for n in (16, 4, 2, 1)]
    expected = np.dot(scales, [1, 0.5, 0.25, 0.125]) / 1.875
    assert float(losses.hierarchical_context_loss(*column)) == pytest.approx(expected)
    narrow = student.reshape(3, 2, 16)[..., :15].reshape(3, 2, 5, 3), torch.zeros(3, 2, 5, 3)
    pools = [F.adaptive_avg_pool2d(narrow[0], size) for size in ((5, 3), (4, 3), (2, 2), (1, 1))]
    expected = np.dot([float(x.square().mean()) for x in pools], [1, 0.5, 0.25, 0.125]) / 1.875
    assert float(losses.hierarchical_context_loss(*narrow)) == pytest.approx(expected)


def test_values_of_variances_and_margins_need_not_be_checked():
    s, t = maps(2, 3, 4, 4)
    with unchecked_values():
        assert not losses.variational_information_loss(s, t, torch.zeros(3)).isfinite()
        assert losses.overhaul_loss(s, t, torch.ones(3)) > 0


# ---- cost ------------------------------------------------------------------------------------


def broadcast_selectivity(student, teacher):
    """As in public code: every pair of channels, place by place."""

    def mean_kernel(a, b):
        return (a.unsqueeze(2) * b.unsqueeze(1)).sum(-1).square().mean((1, 2))

    s, t = (F.normalize(x.flatten(2), dim=2) for x in (student, teacher))
    return (mean_kernel(s, s) + mean_kernel(t, t) - 2 * mean_kernel(s, t)).mean()


def broadcast_flow(student, teacher):
    def flow(a, b):
        return (a.flatten(2).unsqueeze(2) * b.flatten(2).unsqueeze(1)).mean(-1)

    return (flow(student, student) - flow(teacher, teacher)).square().mean()


def own_flow(student, teacher):
    return losses.flow_loss((student, student), (teacher, teacher))


COSTLY = {
    "selectivity": (losses.neuron_selectivity_loss, broadcast_selectivity),
    "flow": (own_flow, broadcast_flow),
}
SIZES = pytest.mark.parametrize("shape", [(4, 128, 16, 16), (4, 256, 8, 8)], ids=str)


class Entries(TorchDispatchMode):
    """Counts entries of tensors: of the largest that an operation makes, and all read or made."""

    def __init__(self):
        super().__init__()
        self.largest = self.moved = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not func.is_view:
            self.largest = max(self.largest, result.numel())
            tensors = [x for x in (result, *args) if isinstance(x, torch.Tensor)]
            self.moved += sum(x.numel() for x in tensors)
        return result


@SIZES
@pytest.mark.parametrize("name", COSTLY)
def test_no_tensor_is_larger_than_the_maps_or_a_gram_matrix(name, shape):
    """The smaller of the two Gram matrices where there is a choice."""
    student, teacher = maps(*shape, dtype=torch.float32)
    batch, channels, height, width = shape
    side = min(channels, height * width) if name == "selectivity" else channels

    def check(loss):
        with Entries() as entries:
            value_and_gradient(loss, student, teacher)
        assert 0 < entries.largest <= max(student.numel(), batch * side**2)

    ours, mutant = COSTLY[name]
    torch.testing.assert_close(
        ours(student, teacher), mutant(student, teacher), rtol=1e-3, atol=1e-7
    )
    check(ours)
    fails(check, mutant)


@SIZES
@pytest.mark.parametrize("name", COSTLY)
def test_it_costs_what_a_few_matrix_products_cost(name, shape):
    """Entries that a forward reads and writes, against three products (S Sᵀ, T Tᵀ, S Tᵀ).

    Counted, not timed: a busy machine makes any time long. Forming all pairs of channels moves
    more than 50 times what the products do, ours at most 6 times.
    """
    student, teacher = maps(*shape, dtype=torch.float32)
    s, t = student.flatten(2), teacher.flatten(2)

    def moved(work):
        with Entries() as entries:
            work()
        return entries.moved

    def products():
        for a, b in ((s, s), (t, t), (s, t)):
            torch.bmm(a, b.mT)

    def check(loss):
        assert 0 < moved(lambda: loss(student, teacher)) < 10 * moved(products)

    ours, mutant = COSTLY[name]
    with torch.no_grad(), unchecked_values():
        check(ours)
        fails(check, mutant)
