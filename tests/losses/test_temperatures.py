"""Every loss with a temperature keeps its digits from T = 0.1 to a million, in single precision.

The references are sums in 60 decimal digits, written from the formulas, and gradients by the
complex step, which has no cancellation.
"""

from decimal import Decimal, getcontext

import numpy as np
import pytest
import reference
import torch
from cases import value_and_gradient

from kdlab import losses
from kdlab.distillers import Contrastive, SelfDistillation
from kdlab.losses.divergences import divergence, log_softmax_ratio

getcontext().prec = 60
TEMPERATURES = [0.1, 1.0, 4.0, 5.0, 20.0, 1e3, 1e4, 1e6]
SIZE = (5, 7)
CLOSE = dict(rtol=2e-5, atol=0.0)


def logits(gap=1.0, seed=0, size=SIZE):
    """Two tables of logits that single precision holds exactly."""
    random = np.random.default_rng(seed)
    teacher = random.normal(scale=3.0, size=size).astype(np.float32)
    return (teacher + random.normal(scale=3.0 * gap, size=size)).astype(np.float32), teacher


def exact_log_softmax(row, temperature):
    z = [Decimal(float(value)) / Decimal(temperature) for value in row]
    top = max(z)
    total = sum((value - top).exp() for value in z).ln() + top
    return [value - total for value in z]


def exact_kl(student, teacher, temperature):
    p, q = exact_log_softmax(teacher, temperature), exact_log_softmax(student, temperature)
    return sum(a.exp() * (a - b) for a, b in zip(p, q, strict=True))


def exact_soft_target(student, teacher, temperature):
    rows = (exact_kl(s, t, temperature) for s, t in zip(student, teacher, strict=True))
    return np.array([float(Decimal(temperature) ** 2 * row) for row in rows])


def exact_decoupled(student, teacher, targets, temperature):
    """TCKD + 8 NCKD of each sample."""
    values = []
    for s, t, y in zip(student, teacher, targets, strict=True):
        pair = []
        for z in (t, s):
            log_p = exact_log_softmax(z, temperature)
            pair.append((log_p[y].exp(), 1 - log_p[y].exp()))
        tckd = sum(a * (a / b).ln() for a, b in zip(*pair, strict=True))
        nckd = exact_kl(np.delete(s, y), np.delete(t, y), temperature)
        values.append(float(Decimal(temperature) ** 2 * (tckd + 8 * nckd)))
    return np.array(values)


def found(loss, student, teacher, *rest, **options):
    value, gradient = value_and_gradient(
        loss, torch.tensor(student), torch.tensor(teacher), *rest, **options
    )
    assert value.dtype == gradient.dtype == torch.float32
    return value.double().numpy(), gradient.double().numpy()


def assert_gradient(gradient, expected):
    error = np.linalg.norm(gradient - expected) / np.linalg.norm(expected)
    assert error < 1e-4, error


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_soft_targets(temperature):
    student, teacher = logits()
    value, gradient = found(losses.soft_target_loss, student, teacher, temperature)
    np.testing.assert_allclose(value, exact_soft_target(student, teacher, temperature).mean(), 2e-5)
    s, t = student.astype(float), teacher.astype(float)
    assert_gradient(
        gradient, reference.gradient(lambda z: reference.soft_target(z, t, temperature), s)
    )


@pytest.mark.parametrize("temperature", [5.0, 50.0, 1e4, 1e6, 1e9])
@pytest.mark.parametrize("gap", [1e-3, 30.0])
def test_soft_targets_of_a_student_near_its_teacher_or_far_away(temperature, gap):
    """Every sample has its digits, also where the distributions are nearly equal."""
    student, teacher = logits(gap)
    values = losses.soft_target_loss(
        torch.tensor(student), torch.tensor(teacher), temperature, reduction="none"
    )
    np.testing.assert_allclose(values, exact_soft_target(student, teacher, temperature), **CLOSE)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_decoupled(temperature):
    student, teacher = logits()
    targets = np.arange(len(student))
    value, gradient = found(
        losses.decoupled_loss, student, teacher, torch.tensor(targets), temperature
    )
    exact = exact_decoupled(student, teacher, targets, temperature)
    np.testing.assert_allclose(value, exact.mean(), 2e-5)
    s, t = student.astype(float), teacher.astype(float)
    assert_gradient(
        gradient,
        reference.gradient(lambda z: reference.decoupled(z, t, targets, temperature, 1, 8), s),
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_dist(temperature):
    student, teacher = logits()
    value, gradient = found(losses.dist_loss, student, teacher, temperature)
    s, t = student.astype(float), teacher.astype(float)
    expected = reference.dist(s, t, temperature, 2, 2)
    np.testing.assert_allclose(value, expected[0], 2e-5)
    assert_gradient(
        gradient, reference.gradient(lambda z: reference.dist(z, t, temperature, 2, 2), s)
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("weighted", [False, True])
def test_ttm(temperature, weighted):
    student, teacher = logits()
    value, gradient = found(losses.ttm_loss, student, teacher, temperature, weighted=weighted)
    s, t = student.astype(float), teacher.astype(float)
    expected = reference.ttm(s, t, temperature, weighted)
    np.testing.assert_allclose(value, expected.mean(), 2e-5)
    assert_gradient(
        gradient, reference.gradient(lambda z: reference.ttm(z, t, temperature, weighted), s)
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_channel_wise(temperature):
    student, teacher = logits(size=(2, 3, 2, 4))
    value, gradient = found(losses.channel_wise_loss, student, teacher, temperature)
    rows = exact_soft_target(student.reshape(-1, 8), teacher.reshape(-1, 8), temperature)
    np.testing.assert_allclose(value, rows.mean(), 2e-5)
    s, t = (x.reshape(-1, 8).astype(float) for x in (student, teacher))
    expected = reference.gradient(lambda z: reference.soft_target(z, t, temperature), s)
    assert_gradient(gradient.reshape(-1, 8), expected)


@pytest.mark.parametrize("options", [{}, {"mask": torch.tensor([True, False, True, True, False])}])
@pytest.mark.parametrize("name", ["soft_target_loss", "dist_loss"])
def test_masked_rows_stay_out_at_a_high_temperature(name, options):
    student, teacher = map(torch.tensor, logits())
    mask = options.get("mask", torch.ones(5, dtype=torch.bool))
    loss = getattr(losses, name)
    value, gradient = value_and_gradient(loss, student, teacher, 1e4, **options)
    expected = value_and_gradient(loss, student[mask], teacher[mask], 1e4)
    torch.testing.assert_close((value, gradient[mask]), expected)
    assert not gradient[~mask].any()


def test_equal_logits_are_at_distance_zero_and_a_common_constant_changes_nothing():
    student, teacher = map(torch.tensor, logits())
    for temperature in (5.0, 1e3, 1e6):
        value, gradient = value_and_gradient(losses.soft_target_loss, teacher, teacher, temperature)
        assert value == 0 and not gradient.any()
        shifted = losses.soft_target_loss(student + 64.0, teacher, temperature)
        torch.testing.assert_close(
            shifted, losses.soft_target_loss(student, teacher, temperature), rtol=1e-4, atol=0
        )


@pytest.mark.parametrize("size", [1e-6, 0.1, 1.0, 50.0, 500.0])
def test_the_divergence_has_its_first_and_second_derivative(size):
    student, teacher = (torch.tensor(x, dtype=torch.float64) for x in logits(seed=1))
    log_p = torch.log_softmax(teacher, -1)
    gap = (size * student).requires_grad_()
    plain = (log_p.exp() * (log_p - torch.log_softmax(log_p + gap, -1))).sum(-1)
    torch.testing.assert_close(divergence(log_p, gap), plain, rtol=1e-9, atol=1e-14)
    assert torch.autograd.gradcheck(lambda x: divergence(log_p, x), gap)
    assert torch.autograd.gradgradcheck(lambda x: divergence(log_p, x), gap)


def test_the_logarithm_of_nearly_uniform_probabilities():
    z = torch.tensor([[1e-6, -2e-6, 7e-6], [3.0, 0.0, -40.0]], dtype=torch.float64)
    exact = [[float(v + Decimal(3).ln()) for v in exact_log_softmax(row, 1.0)] for row in z]
    rounded = log_softmax_ratio(z.float())
    torch.testing.assert_close(rounded.double(), torch.tensor(exact).double(), rtol=1e-6, atol=0)


BEYOND = [1e-4, 1e10, 1e30]


@pytest.mark.parametrize("beyond", BEYOND)
def test_a_temperature_beyond_all_digits_is_refused_by_name(beyond):
    student, teacher = map(torch.tensor, logits())
    targets = torch.arange(5)
    maps = torch.randn(2, 3, 2, 2)
    bank = torch.nn.functional.normalize(torch.randn(9, 7), dim=1)
    for call in (
        lambda: losses.soft_target_loss(student, teacher, beyond),
        lambda: losses.decoupled_loss(student, teacher, targets, beyond),
        lambda: losses.dist_loss(student, teacher, beyond),
        lambda: losses.ttm_loss(student, teacher, beyond),
        lambda: losses.channel_wise_loss(maps, maps, beyond),
        lambda: losses.batch_relation_loss(student, teacher, beyond),
        lambda: losses.class_relation_loss(student, teacher, beyond),
        lambda: losses.sigmoid_target_loss(student, teacher, beyond),
        lambda: losses.contrastive_loss(student, bank, targets, targets[:, None] + 1, beyond),
        lambda: losses.confidence_gate(student, teacher, targets, beyond),
        lambda: losses.entropy_gate(student, teacher, targets, beyond),
        lambda: losses.margin_gate(student, teacher, targets, beyond),
        lambda: losses.wttm_gate(student, teacher, targets, beyond),
        lambda: Contrastive(temperature=beyond),
        lambda: SelfDistillation("stage1", temperature=beyond),
    ):
        with pytest.raises(ValueError, match=r"^temperature: .*expected a number from 0\.001 to"):
            call()
