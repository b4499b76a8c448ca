"""What must hold of every loss whatever its formula: identity, extremes, order, gates, masks."""

import numpy as np
import pytest
import torch
from cases import CASES, COPIES, PROVED, SEPARABLE, WITH_TEACHER, T, batch, value_and_gradient
from hypothesis import given
from hypothesis import strategies as st

from kdlab.losses import (
    decoupled_loss,
    dist_loss,
    hard_label_loss,
    soft_target_loss,
    standardize_logits,
    ttm_loss,
    unchecked_values,
)

HALF_AND_SINGLE = [torch.float32, torch.float16, torch.bfloat16]
ALL = [torch.float64, *HALF_AND_SINGLE]


def extreme_rows(dtype):
    """Student, teacher and targets with the rows that break careless formulas."""
    big = 1e4
    rows = torch.tensor(
        [
            [big, -big, 0, 1, 2],
            [-big, big, big, -big, 0],
            [0, 0, 0, 0, 0],
            [big, big, big, big, big],
            [big, -big, -big, -big, -big],
            [1, 2, 3, 4, 5],
            [1, 2, 3, 4, 5],
        ]
    )
    pairs = torch.cartesian_prod(torch.arange(len(rows)), torch.arange(len(rows)))
    targets = torch.arange(len(pairs)) % rows.shape[1]
    return rows[pairs[:, 0]].to(dtype), rows[pairs[:, 1]].to(dtype), targets


# ---- identity --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_a_perfect_copy_has_loss_zero_and_gradient_zero(name, dtype):
    student, _, targets = batch(7, 10, dtype=dtype)
    value, gradient = value_and_gradient(CASES[name].loss, student, student, targets)
    precision = 1e-12 if dtype == torch.float64 else 1e-5
    assert abs(float(value)) <= precision
    assert float(gradient.abs().max()) <= precision


@pytest.mark.parametrize("name", WITH_TEACHER)
@PROVED
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 30))
def test_loss_is_never_negative(name, seed, scale):
    student, teacher, targets = batch(6, 5, seed=seed, scale=scale)
    assert float(CASES[name].loss(student, teacher, targets)) >= -1e-10


@pytest.mark.parametrize("weighted", [False, True])
def test_ttm_is_minimal_where_the_student_is_the_transformed_teacher(weighted):
    _, teacher, _ = batch(7, 10)
    value, gradient = value_and_gradient(
        lambda s: ttm_loss(s, teacher, T, weighted=weighted), teacher / T
    )
    assert abs(float(value)) < 1e-12 and float(gradient.abs().max()) < 1e-12


def test_hard_label_loss_vanishes_only_for_a_certain_and_right_student():
    right = torch.tensor([[50.0, 0.0], [0.0, 50.0]])
    assert float(hard_label_loss(right, torch.tensor([0, 1]))) < 1e-20
    assert float(hard_label_loss(right, torch.tensor([1, 0]))) == pytest.approx(50)


@PROVED
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 10), shift=st.floats(-50, 50))
def test_standardized_loss_ignores_scale_and_shift(seed, scale, shift):
    student = batch(5, 6, seed=seed)[0]
    torch.testing.assert_close(
        standardize_logits(student * scale + shift, eps=0.0), standardize_logits(student, eps=0.0)
    )


# ---- extremes --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ALL, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_extreme_logits_give_finite_values_and_gradients(name, dtype, temperature, monkeypatch):
    monkeypatch.setattr("cases.T", temperature)
    student, teacher, targets = extreme_rows(dtype)
    value, gradient = value_and_gradient(CASES[name].loss, student, teacher, targets)
    assert value.isfinite() and gradient.isfinite().all()
    assert gradient.any()


@pytest.mark.parametrize("name", [n for n in SEPARABLE if n != "standardized"])
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
def test_values_at_extreme_logits_equal_the_reference(name, dtype):
    student, teacher, targets = extreme_rows(dtype)
    values = CASES[name].loss(student, teacher, targets, reduction="none")
    with np.errstate(all="ignore"):
        expected = CASES[name].reference(
            student.double().numpy(), teacher.double().numpy(), targets.numpy()
        )
    known = np.isfinite(expected)  # TTM's reference takes the logarithm of an underflow
    assert known.mean() > 0.3
    np.testing.assert_allclose(values[torch.tensor(known)], expected[known], 1e-4, 1e-3)


@pytest.mark.parametrize("dtype", ALL, ids=str)
@pytest.mark.parametrize("level", [0.0, 0.1, 7.3, -1e4])
def test_constant_rows_are_standardized_to_zero_with_gradient_zero(dtype, level):
    rows = torch.full((3, 7), level).to(dtype)
    z, gradient = value_and_gradient(lambda x: standardize_logits(x) * torch.arange(7), rows)
    assert not z.any() and not gradient.any()


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_degenerate_rows_and_columns_of_dist_count_nothing(dtype):
    """One sample has no relation along the batch; equal logits have none along the classes."""
    student, teacher, _ = batch(1, 6, dtype=dtype)
    value, gradient = value_and_gradient(lambda s: dist_loss(s, teacher, T, 0.0, 1.0), student)
    assert float(value) == 0 and not gradient.any()
    same = torch.full((4, 6), 0.3).to(dtype)
    value, gradient = value_and_gradient(lambda s: dist_loss(s, same, T), same)
    assert float(value) == 0 and not gradient.any()


def test_dist_counts_a_class_that_is_improbable_everywhere():
    """Pearson's ρ has no scale: the logit of a class may sink by 200 without any change."""
    student, teacher, _ = batch(6, 5, scale=1.0, dtype=torch.float32)
    sunk = torch.tensor([0, 0, 0, 0, -2000.0])
    column = dist_loss(student + sunk, teacher + sunk, T, 0.0, 5.0) - dist_loss(
        student[:, :4], teacher[:, :4], T, 0.0, 4.0
    )
    p = (student[:, 4] / T - student[:, :4].div(T).logsumexp(-1)).exp()
    q = (teacher[:, 4] / T - teacher[:, :4].div(T).logsumexp(-1)).exp()
    rho = torch.corrcoef(torch.stack([p, q]))[0, 1]
    assert float(column) == pytest.approx(T**2 * float(1 - rho), rel=1e-4)


# ---- order, gates, masks ---------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@PROVED
@given(order=st.permutations(range(6)), seed=st.integers(0, 2**31))
def test_the_order_of_the_batch_does_not_matter(name, order, seed):
    student, teacher, targets = batch(6, 5, seed=seed)
    value, gradient = value_and_gradient(CASES[name].loss, student, teacher, targets)
    moved = value_and_gradient(CASES[name].loss, student[order], teacher[order], targets[order])
    torch.testing.assert_close(moved, (value, gradient[order]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SEPARABLE)
@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_a_gated_out_sample_has_gradient_exactly_zero(name, dtype):
    student, teacher, targets = batch(6, 5, dtype=dtype)
    gate = torch.tensor([1.0, 0.0, 0.5, 0.0, 1.0, 0.0])
    _, gradient = value_and_gradient(
        lambda *a: (CASES[name].loss(*a, reduction="none") * gate).sum(),
        student,
        teacher,
        targets,
    )
    assert not gradient[gate == 0].any()
    assert gradient[gate > 0].any(-1).all()


def test_a_gate_after_dist_does_not_close_as_its_docstring_says():
    student, teacher, _ = batch(6, 5)
    gate = torch.tensor([1.0, 0, 1, 1, 1, 1])
    _, gradient = value_and_gradient(
        lambda s: (dist_loss(s, teacher, T, reduction="none") * gate).sum(), student
    )
    assert gradient[1].any()


MASKED = {"soft_target": soft_target_loss, "dist": dist_loss}


@pytest.mark.parametrize("name", MASKED)
@PROVED
@given(mask=st.lists(st.booleans(), min_size=6, max_size=6), seed=st.integers(0, 2**31))
def test_a_mask_equals_leaving_the_rows_out(name, mask, seed):
    student, teacher, _ = batch(6, 5, seed=seed)
    keep = torch.tensor(mask)
    value, gradient = value_and_gradient(MASKED[name], student, teacher, T, mask=keep)
    assert not gradient[~keep].any()
    if not keep.any():
        assert float(value) == 0
        return
    expected = value_and_gradient(MASKED[name], student[keep], teacher[keep], T)
    torch.testing.assert_close((value, gradient[keep]), expected, rtol=1e-9, atol=1e-9)
    values = MASKED[name](student, teacher, T, mask=keep, reduction="none")
    assert not values[~keep].any()
    assert float(values.sum() / keep.sum()) == pytest.approx(float(value), abs=1e-12)


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_what_is_masked_out_may_hold_anything_in_student_and_teacher(name, junk):
    student, teacher, _ = batch(6, 5, dtype=torch.float32)
    mask = torch.tensor([True, False, True, True, False, True])
    clean = value_and_gradient(MASKED[name], student, teacher, T, mask=mask)
    student[~mask], teacher[~mask] = junk, -junk
    dirty = value_and_gradient(MASKED[name], student, teacher, T, mask=mask)
    assert torch.equal(clean[0], dirty[0]) and torch.equal(clean[1], dirty[1])
    assert not dirty[1][~mask].any()


def test_a_token_mask_averages_over_the_real_tokens_of_each_sample():
    student, teacher, _ = batch(3, 4, 5)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    value, gradient = value_and_gradient(soft_target_loss, student, teacher, T, mask=mask)
    first, third = (soft_target_loss(student[i][mask[i]], teacher[i][mask[i]], T) for i in (0, 2))
    assert float(value) == pytest.approx(float(first + third) / 2)
    assert not gradient[~mask].any() and gradient[mask].any(-1).all()
    values = soft_target_loss(student, teacher, T, mask=mask, reduction="none")
    torch.testing.assert_close(values, torch.stack([first, torch.zeros_like(first), third]))


def test_a_sample_mask_on_tokens_leaves_whole_samples_out():
    student, teacher, _ = batch(3, 4, 5)
    mask = torch.tensor([True, False, True])
    ours = value_and_gradient(soft_target_loss, student, teacher, T, mask=mask)
    expected = soft_target_loss(student[mask], teacher[mask], T)
    torch.testing.assert_close(ours[0], expected)
    assert not ours[1][1].any()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_unlabelled_samples_take_no_part_in_the_hard_label_loss(smoothing):
    student, _, targets = batch(6, 5)
    targets[[1, 4]] = -1
    labelled = targets >= 0
    student[1] = float("nan")
    value, gradient = value_and_gradient(hard_label_loss, student, targets, smoothing)
    expected = value_and_gradient(hard_label_loss, student[labelled], targets[labelled], smoothing)
    torch.testing.assert_close((value, gradient[labelled]), expected)
    assert not gradient[~labelled].any()
    assert not hard_label_loss(student, targets, smoothing, reduction="none")[~labelled].any()


def test_unlabelled_rows_of_the_decoupled_loss_take_no_part_where_values_are_unchecked():
    student, teacher, targets = batch(6, 5)
    targets[[1, 4]] = -1
    labelled = targets >= 0
    student[1] = teacher[4] = float("nan")
    with unchecked_values():
        value, gradient = value_and_gradient(decoupled_loss, student, teacher, targets)
    expected = value_and_gradient(
        decoupled_loss, student[labelled], teacher[labelled], targets[labelled]
    )
    torch.testing.assert_close((value, gradient[labelled]), expected)
    assert not gradient[~labelled].any()


# ---- temperature, teacher, transforms --------------------------------------------------------


def test_the_gradient_keeps_its_size_at_every_high_temperature():
    """For T → ∞ it is (z_s − z_t, both centred) / (C · B): Hinton et al., equation (4), × T²."""
    student, teacher, _ = batch(7, 10)
    difference = student - teacher
    limit = (difference - difference.mean(-1, keepdim=True)) / (10 * 7)
    for temperature, precision in [(50.0, 0.2), (500.0, 0.02), (5000.0, 0.002)]:
        _, gradient = value_and_gradient(soft_target_loss, student, teacher, temperature)
        assert float((gradient - limit).norm() / limit.norm()) < precision


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_no_gradient_reaches_the_teacher(name):
    student, teacher, targets = batch(6, 5)
    student.requires_grad_(), teacher.requires_grad_()
    CASES[name].loss(student, teacher, targets).backward()
    assert teacher.grad is None and student.grad.any()


@pytest.mark.parametrize("name", CASES)
def test_inputs_are_left_as_they_were(name):
    student, teacher, targets = batch(6, 5)
    copies = [x.clone() for x in (student, teacher, targets)]
    CASES[name].loss(student, teacher, targets)
    assert all(map(torch.equal, (student, teacher, targets), copies))


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_a_teacher_in_half_precision_serves_a_student_in_single(name):
    student, teacher, targets = batch(6, 5, dtype=torch.float32)
    mixed = CASES[name].loss(student, teacher.half(), targets)
    assert torch.equal(mixed, CASES[name].loss(student, teacher.half().float(), targets))


MAPPED = {
    **{name: case.loss for name, case in CASES.items()},
    "soft_target masked": lambda s, t, y, **k: soft_target_loss(s, t, T, mask=y > 1, **k),
    "dist masked": lambda s, t, y, **k: dist_loss(s, t, T, mask=y > 1, **k),
    "hard_label unlabelled": lambda s, t, y, **k: hard_label_loss(s, y - 1, **k),
}


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", MAPPED)
def test_vmap_over_many_students_equals_one_after_another(name, reduction):
    student, teacher, targets = (
        torch.stack(x) for x in zip(*(batch(6, 5, seed=k) for k in (1, 2, 3)), strict=True)
    )

    def summed(*args):
        return MAPPED[name](*args, reduction=reduction).sum()

    with unchecked_values():
        gradients, values = torch.func.vmap(torch.func.grad_and_value(summed))(
            student, teacher, targets
        )
    for k in range(3):
        value, gradient = value_and_gradient(summed, student[k], teacher[k], targets[k])
        torch.testing.assert_close((values[k], gradients[k]), (value, gradient))


@pytest.mark.parametrize("name", MAPPED)
def test_one_graph_under_torch_compile(name):
    student, teacher, targets = batch(6, 5)
    compiled = torch.compile(MAPPED[name], backend="eager", fullgraph=True)
    torch.testing.assert_close(
        value_and_gradient(compiled, student, teacher, targets),
        value_and_gradient(MAPPED[name], student, teacher, targets),
    )
