"""The defects of public distillation code, each with a test that finds it.

Every check here is a function of a loss. Ours passes it; the mutant, which repeats the published
mistake, must fail the same check. Numbers are those of the project's defect catalogue.
"""

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from cases import CASES, COPIES, WITH_TEACHER, T, batch, value_and_gradient

from kdlab.losses import (
    decoupled_loss,
    dist_loss,
    hard_label_loss,
    soft_target_loss,
    ttm_loss,
)


def kl(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def soft(z, temperature):
    return F.log_softmax(z / temperature, dim=-1)


def fails(check, *mutants):
    """Each mutant must be caught by the check that the real loss passes."""
    for mutant in mutants:
        with pytest.raises(AssertionError):
            check(mutant)


# ---- what a soft-target loss is: 1 (reduction), 5, 16, 18, lost T², swapped roles ------------


def assert_is_soft_target_loss(loss):
    """``loss(student, teacher, temperature)`` has Hinton's value and gradient."""
    for seed, temperature in [(1, 1.0), (2, 4.0), (3, 20.0)]:
        student, teacher, _ = batch(6, 10, seed=seed)
        s, t = student.numpy(), teacher.numpy()
        value, gradient = value_and_gradient(loss, student, teacher, temperature)
        np.testing.assert_allclose(value, reference.soft_target(s, t, temperature).mean(), 1e-9)
        expected = reference.gradient(lambda z: reference.soft_target(z, t, temperature), s)  # noqa: B023
        np.testing.assert_allclose(gradient, expected, 1e-8, 1e-12)


def test_defect_01_reduction_mean_divides_by_the_classes_too():
    def mutant(s, t, temperature):
        return temperature**2 * F.kl_div(
            soft(s, temperature), soft(t, temperature).exp(), reduction="mean"
        )

    assert_is_soft_target_loss(soft_target_loss)
    with pytest.warns(UserWarning, match="batchmean"):
        fails(assert_is_soft_target_loss, mutant)
        student, teacher, _ = batch(6, 10)
        ratio = soft_target_loss(student, teacher, T) / mutant(student, teacher, T)
    assert float(ratio) == pytest.approx(10)


def test_defect_lost_temperature_squared():
    fails(
        assert_is_soft_target_loss,
        lambda s, t, temperature: kl(soft(t, temperature), soft(s, temperature)).mean(),
        lambda s, t, temperature: (
            temperature * kl(soft(t, temperature), soft(s, temperature)).mean()
        ),
    )


def test_defect_swapped_roles():
    fails(
        assert_is_soft_target_loss,
        lambda s, t, temperature: soft_target_loss(t, s, temperature) + 0 * s.sum(),
        lambda s, t, temperature: (
            temperature**2 * kl(soft(s, temperature), soft(t, temperature)).mean()
        ),
    )


def test_defect_18_the_same_logits_on_both_sides():
    fails(
        assert_is_soft_target_loss,
        lambda s, t, temperature: soft_target_loss(s, s, temperature),
        lambda s, t, temperature: soft_target_loss(t, t, temperature) + 0 * s.sum(),
    )


# a relation between samples stays what it is where all have their classes in another order
@pytest.mark.parametrize("name", [name for name in WITH_TEACHER if name != "batch_relation"])
def test_defect_18_every_loss_depends_on_both_sides(name):
    def check(loss):
        student, teacher, targets = batch(6, 5)
        value, gradient = value_and_gradient(loss, student, teacher, targets)
        assert gradient.any()
        other = loss(student, teacher.flip(-1), targets)
        assert abs(float(other) - float(value)) > 1e-3

    loss = CASES[name].loss
    check(loss)
    fails(check, lambda s, t, y: loss(s, s, y), lambda s, t, y: loss(t, t, y) + 0 * s.sum())


def test_defect_16_normalised_twice():
    fails(
        assert_is_soft_target_loss,
        lambda s, t, temperature: soft_target_loss(s, t, temperature) / len(s),
        lambda s, t, temperature: soft_target_loss(
            soft(s, temperature), soft(t, temperature), temperature
        ),
    )


@pytest.mark.parametrize("name", [name for name in CASES if name != "dist"])
def test_defect_16_a_batch_twice_over_has_the_same_mean(name):
    def check(loss):
        student, teacher, targets = batch(6, 5)
        once = loss(student, teacher, targets)
        twice = loss(student.repeat(2, 1), teacher.repeat(2, 1), targets.repeat(2))
        torch.testing.assert_close(twice, once)

    loss = CASES[name].loss
    check(loss)
    fails(check, lambda s, t, y: loss(s, t, y) / len(s), lambda s, t, y: loss(s, t, y) * len(s))


# ---- 2: a special path at a special value ----------------------------------------------------


def test_defect_02_nothing_jumps_where_a_weight_reaches_zero():
    student, teacher, targets = batch(6, 10)

    def check(loss):
        torch.testing.assert_close(loss(0.0), loss(1e-9), rtol=1e-7, atol=1e-7)

    check(lambda w: decoupled_loss(student, teacher, targets, T, alpha=w))
    check(lambda w: decoupled_loss(student, teacher, targets, T, beta=w))
    check(lambda w: dist_loss(student, teacher, T, beta=w))
    check(lambda w: dist_loss(student, teacher, T, gamma=w))
    check(lambda w: hard_label_loss(student, targets, w))

    def mutant(alpha):
        if alpha == 0:
            return kl(soft(teacher, T), soft(student, T)).mean()
        hard = hard_label_loss(student, targets)
        return alpha * hard + (1 - alpha) * soft_target_loss(student, teacher, T)

    fails(check, mutant)


# ---- 3: sign ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in COPIES if name != "batch_relation"])
def test_defect_03_a_copy_is_better_than_an_opposite(name):
    def check(loss):
        _, teacher, targets = batch(6, 5)
        copy = float(loss(teacher, teacher, targets))
        assert copy <= 1e-9
        for worse in (-teacher, teacher.roll(1, -1), torch.zeros_like(teacher)):
            assert float(loss(worse, teacher, targets)) > copy + 1e-3

    loss = CASES[name].loss
    check(loss)
    fails(check, lambda *a: -loss(*a), lambda *a: 2 - loss(*a))


# ---- 5, 21: logarithm of an underflow; 6: division by a zero norm ------------------------------


def assert_finite_for_a_certain_student(loss):
    """``loss(student, teacher, targets)`` where a probability underflows to 0 on either side."""
    certain = torch.tensor([[600.0, 0, 0, 1], [0, 600, 2, 0]])
    unsure = torch.tensor([[1.0, 2, 0, 0], [0, 0, 3, 1]])
    targets = torch.tensor([0, 1])
    for student, teacher in [(certain, unsure), (unsure, certain), (certain, certain.roll(1, -1))]:
        value, gradient = value_and_gradient(loss, student, teacher, targets)
        assert value.isfinite() and gradient.isfinite().all()


def test_defects_05_and_21_logarithm_of_a_softmax():
    def plain(s, t, y):
        p, q = F.softmax(t, -1), F.softmax(s, -1)
        return (p * (p.log() - q.log())).sum(-1).mean()

    def target_pair(s, t, y):
        p, q = (
            torch.stack([x, 1 - x])
            for x in (F.softmax(z, -1).gather(-1, y[:, None]) for z in (t, s))
        )
        return (p * (p.log() - q.log())).sum(0).mean()

    for name in CASES:
        assert_finite_for_a_certain_student(CASES[name].loss)
    fails(assert_finite_for_a_certain_student, plain, target_pair)


def assert_gradient_bounded_at_equal_rows(loss):
    """``loss(student, teacher)`` with zero, constant and equal rows, in single and half."""
    rows = torch.tensor([[0.0, 0, 0, 0], [2, 2, 2, 2], [1, 2, 3, 4], [1, 2, 3, 4]])
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for teacher in (rows, rows.flip(0), rows.flip(-1)):
            value, gradient = value_and_gradient(loss, rows.to(dtype), teacher.to(dtype))
            assert value.isfinite() and gradient.isfinite().all()
            assert float(gradient.abs().max()) < 100


def test_defect_06_a_norm_of_zero():
    def pearson(s, t):
        a, b = (F.softmax(z, -1) - F.softmax(z, -1).mean(-1, keepdim=True) for z in (s, t))
        return (1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).mean()

    def z_score(s, t):
        s, t = ((z - z.mean(-1, keepdim=True)) / (z.std(-1, keepdim=True) + 1e-8) for z in (s, t))
        return soft_target_loss(s, t)

    standardized = CASES["standardized"].loss
    assert_gradient_bounded_at_equal_rows(lambda s, t: standardized(s, t, None))
    assert_gradient_bounded_at_equal_rows(dist_loss)
    assert_gradient_bounded_at_equal_rows(soft_target_loss)
    assert_gradient_bounded_at_equal_rows(ttm_loss)
    fails(assert_gradient_bounded_at_equal_rows, pearson, z_score)


# ---- 7: the order of the batch; 8: blindness -------------------------------------------------


def test_defect_07_the_order_of_the_batch():
    def check(loss):
        student, teacher, _ = batch(6, 5)
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        torch.testing.assert_close(loss(student[order], teacher[order]), loss(student, teacher))

    def neighbours(s, t):
        s, t = s.diff(dim=0), t.diff(dim=0)
        return dist_loss(s, t)

    check(dist_loss)
    fails(check, neighbours, lambda s, t: soft_target_loss(s, t.sort(0).values))


def test_defect_08_different_is_not_equal():
    def check(loss):
        student, _, _ = batch(6, 5)
        for probe in (-student, student.flip(-1), student.flip(0), student**2):
            assert float(loss(student, probe)) > 1e-3

    for loss in (soft_target_loss, dist_loss):
        check(loss)
    fails(
        check,
        lambda s, t: soft_target_loss(s**2, t**2),
        lambda s, t: dist_loss(s, t, beta=0.0) if s.equal(-t) else 0 * s.sum(),
    )


# ---- 9, 10, 15, 19: gates, masks, padding ----------------------------------------------------


def test_defect_09_a_mask_on_a_mean_is_no_gate():
    """``loss(student, teacher, mask)``: where the mask is False the gradient is exactly 0."""

    def check(loss):
        student, teacher, _ = batch(6, 5)
        mask = torch.tensor([True, False, True, False, True, True])
        _, gradient = value_and_gradient(loss, student, teacher, mask)
        assert not gradient[~mask].any() and gradient[mask].any(-1).all()

    check(lambda s, t, m: soft_target_loss(s, t, mask=m))
    check(lambda s, t, m: dist_loss(s, t, mask=m))
    check(lambda s, t, m: (soft_target_loss(s, t, reduction="none") * m).mean())
    fails(
        check,
        lambda s, t, m: (soft_target_loss(s, t) * m).mean(),
        lambda s, t, m: (dist_loss(s, t) * m).mean(),
    )


def test_defect_10_an_empty_gate_is_zero_not_nan():
    def check(loss):
        student, teacher, _ = batch(6, 5)
        value, gradient = value_and_gradient(
            loss, student, teacher, torch.zeros(6, dtype=torch.bool)
        )
        assert float(value) == 0 and not gradient.any()

    check(lambda s, t, m: soft_target_loss(s, t, mask=m))
    check(lambda s, t, m: dist_loss(s, t, mask=m))
    check(lambda s, t, m: hard_label_loss(s, torch.where(m, 0, -1)))
    fails(
        check,
        lambda s, t, m: (soft_target_loss(s, t, reduction="none") * m).sum() / m.sum(),
        lambda s, t, m: F.cross_entropy(s, torch.where(m, 0, -1), ignore_index=-1),
    )


def test_defect_10_an_underflow_is_not_a_closed_gate():
    """A gate read off as ``probability == 0`` closes for a certain teacher and loses its terms."""

    def check(loss):
        student, teacher = torch.zeros(1, 3), torch.tensor([[300.0, 0, 0]])
        assert float(loss(student, teacher)) == pytest.approx(np.log(3), rel=1e-5)

    def mutant(s, t):
        p, q = F.softmax(t, -1), F.softmax(s, -1)
        p = torch.where(p == 0, 1.0, p)
        return (p * (p.log() - q.log())).sum(-1).mean()

    check(lambda s, t: soft_target_loss(s, t, 1.0))
    fails(check, mutant)


def test_defect_15_padding_has_no_say():
    """``loss(student, teacher, mask)`` of tokens [B, N, C]: the logits at the padding are free."""

    def check(loss):
        student, teacher, _ = batch(3, 4, 5)
        mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
        before = value_and_gradient(loss, student, teacher, mask)
        student[~mask] += 7 * torch.arange(5)
        teacher[~mask] *= -1
        torch.testing.assert_close(value_and_gradient(loss, student, teacher, mask), before)
        shorter = value_and_gradient(loss, student[2:], teacher[2:], mask[2:])[0]
        torch.testing.assert_close(shorter, soft_target_loss(student[2:], teacher[2:], T))

    check(lambda s, t, m: soft_target_loss(s, t, T, mask=m))
    fails(
        check,
        lambda s, t, m: soft_target_loss(s, t, T),
        lambda s, t, m: soft_target_loss(s * m[..., None], t * m[..., None], T) * 2,
        lambda s, t, m: (kl(soft(t, T), soft(s, T)) * m).sum(),
    )


def test_defect_19_the_target_is_taken_out_and_not_replaced_by_a_number():
    """NCKD against a loop that deletes the target; the mutant writes 1 (or 0) in its place."""

    def check(loss):
        student, teacher, targets = batch(6, 5)
        _, nckd = reference.decoupled_parts(student.numpy(), teacher.numpy(), targets.numpy(), T)
        np.testing.assert_allclose(loss(student, teacher, targets), T**2 * nckd.mean(), 1e-9)

    def filled(value):
        def mutant(s, t, y):
            s, t = (z.scatter(-1, y[:, None], value) for z in (s, t))
            return soft_target_loss(s, t, T)

        return mutant

    check(lambda s, t, y: decoupled_loss(s, t, y, T, alpha=0.0, beta=1.0))
    fails(check, filled(0.0), filled(1.0))


# ---- 11: the teacher's graph; 17: another vocabulary -----------------------------------------


def test_defect_11_the_teacher_stays_out_of_the_graph():
    def check(loss):
        student, teacher, _ = batch(6, 5)
        student.requires_grad_(), teacher.requires_grad_()
        loss(student, teacher).backward()
        assert teacher.grad is None

    for loss in (soft_target_loss, dist_loss, ttm_loss):
        check(loss)
    fails(check, lambda s, t: kl(soft(t, T), soft(s, T)).mean())


def test_defect_17_another_vocabulary_is_refused_and_not_padded():
    def check(loss):
        student, teacher, _ = batch(6, 5)
        try:
            loss(student[:, :4], teacher)
        except ValueError as error:
            assert "do both predict the same classes?" in str(error)
        else:
            raise AssertionError("took logits of different classes")

    for loss in (soft_target_loss, dist_loss, ttm_loss):
        check(loss)
    fails(check, lambda s, t: soft_target_loss(F.pad(s, (0, 1)), t))
