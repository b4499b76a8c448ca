"""Every loss equals its independent float64 reference, in value and in gradient."""

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from cases import CASES, PROVED, SEPARABLE, T, batch, value_and_gradient
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial import distance

from kdlab.losses import (
    decoupled_loss,
    dist_loss,
    hard_label_loss,
    hard_target_loss,
    logit_matching_loss,
    map_classes,
    soft_target_loss,
    standardize_logits,
    ttm_loss,
)
from kdlab.losses.logits import class_groups

# dtype: (value: rtol, atol), (gradient: rtol, atol). Half precision is computed in float32, so its
# value is as good as float32's; its gradient is rounded to half at the very end.
TOLERANCE = {
    torch.float64: ((1e-11, 1e-12), (1e-9, 1e-12)),
    torch.float32: ((2e-5, 2e-6), (1e-4, 1e-5)),
    torch.float16: ((2e-5, 2e-6), (1e-3, 1e-5)),
    torch.bfloat16: ((2e-5, 2e-6), (8e-3, 1e-5)),
}
SHAPES = [(1, 2), (7, 10), (4, 100), (3, 5, 10)]
GRID = [
    pytest.param(name, shape, id=f"{name}-{list(shape)}")
    for name, case in CASES.items()
    for shape in SHAPES
    if case.tokens or len(shape) == 2
]


def assert_equals_reference(name, student, teacher, targets):
    case = CASES[name]
    s, t, y = student.double().numpy(), teacher.double().numpy(), targets.numpy()
    value, gradient = value_and_gradient(case.loss, student, teacher, targets)
    (rtol, atol), (grad_rtol, grad_atol) = TOLERANCE[student.dtype]
    np.testing.assert_allclose(value, np.mean(case.reference(s, t, y)), rtol, atol)
    expected = reference.gradient(lambda z: case.reference(z, t, y), s)
    np.testing.assert_allclose(gradient.double().numpy(), expected, grad_rtol, grad_atol)
    return value, gradient


@pytest.mark.parametrize(("name", "shape"), GRID)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_loss_equals_its_reference(name, dtype, shape):
    student, teacher, targets = batch(*shape, dtype=dtype)
    value, gradient = assert_equals_reference(name, student, teacher, targets)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert value.dtype == wide and gradient.dtype == dtype


@pytest.mark.parametrize("name", CASES)
@PROVED
@given(
    samples=st.integers(2, 6),
    classes=st.integers(3, 7),
    seed=st.integers(0, 2**31),
    scale=st.floats(0.01, 20),
)
def test_loss_equals_its_reference_for_any_size_and_scale(name, samples, classes, seed, scale):
    student, teacher, targets = batch(samples, classes, seed=seed, scale=scale)
    s, t, y = student.numpy(), teacher.numpy(), targets.numpy()
    case = CASES[name]
    value, gradient = value_and_gradient(case.loss, student, teacher, targets)
    np.testing.assert_allclose(value, np.mean(case.reference(s, t, y)), 1e-8, 1e-10)
    expected = reference.gradient(lambda z: case.reference(z, t, y), s)
    np.testing.assert_allclose(gradient, expected, 1e-6, 1e-8)


@pytest.mark.parametrize(("name", "shape"), [p for p in GRID if p.values[0] in SEPARABLE])
def test_reduction_none_gives_the_value_of_each_sample(name, shape):
    student, teacher, targets = batch(*shape)
    values = CASES[name].loss(student, teacher, targets, reduction="none")
    expected = CASES[name].reference(student.numpy(), teacher.numpy(), targets.numpy())
    assert values.shape == shape[:1]
    np.testing.assert_allclose(values, expected, 1e-11, 1e-12)


@pytest.mark.parametrize("name", CASES)
def test_mean_is_the_mean_of_none(name):
    student, teacher, targets = batch(6, 5)
    values, gradient = value_and_gradient(
        lambda *a: CASES[name].loss(*a, reduction="none").mean(), student, teacher, targets
    )
    value, expected = value_and_gradient(CASES[name].loss, student, teacher, targets)
    torch.testing.assert_close(values, value)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("name", CASES)
def test_gradcheck_in_float64(name):
    student, teacher, targets = batch(4, 5)
    assert torch.autograd.gradcheck(
        lambda z: CASES[name].loss(z, teacher, targets), student.requires_grad_()
    )


def test_soft_target_gradient_is_the_one_derived_by_hand():
    """∂/∂z of T² · KL is T · (p_student − p_teacher) / B: Hinton et al., equation (2), × T²."""
    student, teacher, _ = batch(7, 10)
    _, gradient = value_and_gradient(lambda s: soft_target_loss(s, teacher, T), student)
    by_hand = T * (F.softmax(student / T, -1) - F.softmax(teacher / T, -1)) / 7
    torch.testing.assert_close(gradient, by_hand)


def test_soft_target_is_scipys_relative_entropy():
    student, teacher, _ = batch(7, 10)
    values = soft_target_loss(student, teacher, 1.0, reduction="none")
    p, q = F.softmax(teacher, -1).numpy(), F.softmax(student, -1).numpy()
    np.testing.assert_allclose(values, stats.entropy(p, q, axis=-1), 1e-10)


def test_dist_is_scipys_correlation():
    student, teacher, _ = batch(6, 5)
    p, q = F.softmax(student / T, -1).numpy(), F.softmax(teacher / T, -1).numpy()
    rows = np.mean([1 - stats.pearsonr(a, b).statistic for a, b in zip(p, q, strict=True)])
    columns = np.mean([1 - stats.pearsonr(a, b).statistic for a, b in zip(p.T, q.T, strict=True)])
    assert float(dist_loss(student, teacher, T, 1.0, 0.0)) == pytest.approx(T**2 * rows)
    assert float(dist_loss(student, teacher, T, 0.0, 1.0)) == pytest.approx(T**2 * columns)


def test_plain_distillation_is_the_sum_of_the_decoupled_parts():
    """KD = TCKD + (1 − p_y of the teacher) · NCKD, as Zhao et al. derive, on each sample."""
    student, teacher, targets = batch(7, 10)
    plain = soft_target_loss(student, teacher, T, reduction="none")
    tckd = decoupled_loss(student, teacher, targets, T, 1.0, 0.0, reduction="none")
    nckd = decoupled_loss(student, teacher, targets, T, 0.0, 1.0, reduction="none")
    target_probability = F.softmax(teacher / T, -1)[torch.arange(7), targets]
    torch.testing.assert_close(tckd + (1 - target_probability) * nckd, plain)


def test_ttm_is_distillation_without_its_renyi_entropy():
    """D(p̃ ‖ q) = T · D(p̃ ‖ q_T) − (T − 1) · H_1/T(q) + (T − 1) · H(p̃): Zheng and Yang, eq. (15)."""
    student, teacher, _ = batch(7, 10)
    log_p, q = F.log_softmax(teacher / T, -1), F.softmax(student, -1)
    renyi = (q ** (1 / T)).sum(-1).log() / (1 - 1 / T)
    entropy = -(log_p.exp() * log_p).sum(-1)
    distillation = soft_target_loss(student, teacher, T, reduction="none") / T**2
    torch.testing.assert_close(
        ttm_loss(student, teacher, T, reduction="none"),
        T * distillation - (T - 1) * renyi + (T - 1) * entropy,
    )


def test_wttm_weight_is_one_for_a_certain_teacher_and_largest_for_a_uniform_one():
    student = torch.tensor([[1.0, 2.0, 0.0, -1.0]], dtype=torch.float64).repeat(2, 1)
    teacher = torch.tensor([[1e3, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    ratio = ttm_loss(student, teacher, 2.0, weighted=True, reduction="none") / ttm_loss(
        student, teacher, 2.0, reduction="none"
    )
    torch.testing.assert_close(ratio, torch.tensor([1.0, 2.0], dtype=torch.float64))  # 4^(1 − 1/2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_hard_label_loss_is_torchs_cross_entropy(smoothing):
    student, _, targets = batch(7, 10)
    targets[2] = -1
    ours = value_and_gradient(hard_label_loss, student, targets, smoothing)
    theirs = value_and_gradient(
        lambda s: F.cross_entropy(s, targets, ignore_index=-1, label_smoothing=smoothing), student
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(5,), (4, 6), (2, 3, 7)], ids=str)
def test_standardized_logits_are_z_scores(shape):
    logits = torch.tensor(np.random.default_rng(0).normal(5, 3, shape))
    z = standardize_logits(logits, eps=0.0)
    np.testing.assert_allclose(z, stats.zscore(logits.numpy(), axis=-1, ddof=0), 1e-10, 1e-12)
    weights = torch.arange(logits.numel(), dtype=torch.float64).reshape(shape).sin()
    _, gradient = value_and_gradient(lambda x: (standardize_logits(x) * weights).sum(), logits)
    expected = reference.gradient(
        lambda x: (reference.standardize(x) * weights.numpy()).sum(), logits.numpy()
    )
    np.testing.assert_allclose(gradient, expected, 1e-9, 1e-12)


def test_reverse_is_forward_with_the_roles_exchanged_and_jensen_shannon_has_no_roles():
    student, teacher, _ = batch(7, 10)
    each = {"reduction": "none"}
    torch.testing.assert_close(
        soft_target_loss(student, teacher, T, divergence="reverse", **each),
        soft_target_loss(teacher, student, T, **each),
    )
    js = {"divergence": "jensen-shannon", **each}
    both = [soft_target_loss(*pair, 1.0, **js) for pair in [(student, teacher), (teacher, student)]]
    torch.testing.assert_close(*both)
    p, q = F.softmax(teacher, -1).numpy(), F.softmax(student, -1).numpy()
    known = [distance.jensenshannon(a, b) ** 2 for a, b in zip(p, q, strict=True)]
    np.testing.assert_allclose(both[0], known, 1e-9)
    apart = torch.tensor([[900.0, 0.0]]), torch.tensor([[0.0, 900.0]])
    bound = soft_target_loss(*apart, 1.0, divergence="jensen-shannon")
    assert float(bound) == pytest.approx(np.log(2))


def test_near_agreement_all_divergences_are_one_but_for_a_quarter():
    student, teacher, _ = batch(7, 10)
    near = teacher + 1e-3 * (student - teacher)
    forward, reverse, js = (
        float(soft_target_loss(near, teacher, T, divergence=name))
        for name in ("forward", "reverse", "jensen-shannon")
    )
    assert reverse == pytest.approx(forward, rel=1e-3) and 4 * js == pytest.approx(
        forward, rel=1e-3
    )


@pytest.mark.parametrize("temperature", [3.0, 30.0, 1e3, 1e5, 1e6])
@pytest.mark.parametrize("name", ["reverse", "jensen-shannon"])
def test_no_temperature_costs_digits(name, temperature):
    """Single precision against double, and double against the limit: ½ or ⅛ of 1/C ‖s − t‖²."""
    student, teacher, _ = batch(7, 10)
    wide = value_and_gradient(soft_target_loss, student, teacher, temperature, divergence=name)
    single = value_and_gradient(
        soft_target_loss, student.float(), teacher.float(), temperature, divergence=name
    )
    for mine, exact in zip(single, wide, strict=True):
        error = (mine.double() - exact).abs().max() / exact.abs().max()
        assert error < 1e-5
    if temperature >= 1e5:
        factor = 0.5 if name == "reverse" else 0.125
        limit = value_and_gradient(
            lambda s: factor * (centred(s) - centred(teacher)).square().mean(), student
        )
        torch.testing.assert_close(wide, limit, rtol=1e-4, atol=1e-5)


def centred(z):
    return z - z.mean(-1, keepdim=True)


@pytest.mark.parametrize("name", ["reverse", "jensen-shannon"])
def test_slopes_of_slopes(name):
    student, teacher, _ = batch(3, 4)
    near = (teacher + 0.1 * student).requires_grad_()
    for start in (near, student.requires_grad_()):
        assert torch.autograd.gradgradcheck(
            lambda s: soft_target_loss(s, teacher, T, divergence=name), start
        )


def test_masks_and_tokens_hold_for_every_divergence():
    student, teacher, _ = batch(3, 5, 10)
    mask = torch.tensor([[True, True, False, False, True], [False] * 5, [True] * 5])
    for name in ("reverse", "jensen-shannon"):
        value, gradient = value_and_gradient(
            soft_target_loss, student, teacher, T, mask=mask, divergence=name
        )
        rows = [
            soft_target_loss(student[i][mask[i]], teacher[i][mask[i]], T, divergence=name)
            for i in (0, 2)
        ]
        torch.testing.assert_close(value, torch.stack(rows).mean())
        assert not gradient[~mask].any() and gradient[mask].any(-1).all()


def test_hot_soft_targets_are_half_the_matching_of_centred_logits():
    """Hinton et al., equation (4)."""
    student, teacher, _ = batch(7, 10, scale=0.5)
    student, teacher = centred(student), centred(teacher)
    hot, half = soft_target_loss(student, teacher, 3e3), logit_matching_loss(student, teacher) / 2
    assert float(hot) == pytest.approx(float(half), rel=1e-3)


def test_hard_targets_are_the_labels_of_the_teacher():
    student, teacher, _ = batch(7, 10)
    ours = value_and_gradient(hard_target_loss, student, teacher)
    theirs = value_and_gradient(lambda s: F.cross_entropy(s, teacher.argmax(1)), student)
    torch.testing.assert_close(ours, theirs)


GROUPS = {
    "order": (3, 0, 4, 1, 2),
    "selection": (4, 1),
    "grouping": ((0, 3), (1,), (2, 4)),
    "both": ((0, 3), 4),
    "one": ((0, 1, 2, 3, 4),),
    "mapping": {1: 2, 0: [4, 0]},
}


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5), (5,)], ids=str)
@pytest.mark.parametrize("name", GROUPS)
def test_mapped_classes_equal_the_reference_in_value_and_gradient(name, shape):
    random = np.random.default_rng([1, *shape])
    logits, groups = torch.tensor(random.normal(scale=3, size=shape)), class_groups(GROUPS[name])
    expected = reference.map_classes(logits.numpy(), groups)
    mapped = map_classes(logits, GROUPS[name])
    assert mapped.shape == (*shape[:-1], len(groups))
    np.testing.assert_allclose(F.log_softmax(mapped, -1), expected, 1e-10, 1e-12)
    weights = torch.arange(expected.size, dtype=torch.float64).reshape(expected.shape).sin()

    def total(z):
        return (F.log_softmax(map_classes(z, GROUPS[name]), -1) * weights).sum()

    _, gradient = value_and_gradient(total, logits)
    by_step = reference.gradient(
        lambda z: (reference.map_classes(z, groups) * weights.numpy()).sum(), logits.numpy()
    )
    np.testing.assert_allclose(gradient, by_step, 1e-9, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_improbable_groups_keep_their_digits(dtype):
    """In probabilities all three would be 0, and the last two equal."""
    logits = torch.tensor([[300.0, 0.0, 0.0, -20.0, -20.0]]).to(dtype)
    mapped = F.log_softmax(map_classes(logits, [0, (1, 2), (3, 4)]), -1)
    expected = torch.tensor([[0.0, np.log(2) - 300, np.log(2) - 320]], dtype=torch.float32)
    torch.testing.assert_close(mapped, expected)
