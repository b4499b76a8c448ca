"""The relation losses: reference, invariances, half precision, degenerate batches, errors."""

import re

import numpy as np
import pytest
import reference
import reference_relations as ref
import torch
import torch.utils._python_dispatch
import torch.utils._pytree
from cases import value_and_gradient
from scipy import special

from kdlab.losses import (
    contrastive_loss,
    correlation_congruence_loss,
    instance_edge_loss,
    instance_transformation_loss,
    probabilistic_transfer_loss,
    relational_angle_loss,
    relational_distance_loss,
    similarity_preserving_loss,
    unchecked_values,
)
from kdlab.losses.relations import log_mean_exp_cosine

CASES = {
    "similarity": (similarity_preserving_loss, ref.similarity_preserving),
    "distance": (relational_distance_loss, ref.relational_distance),
    "angle": (relational_angle_loss, ref.relational_angle),
    "correlation": (
        correlation_congruence_loss,
        lambda s, t: ref.correlation_congruence(s, t, 0.4, 2),
    ),
    "probabilistic": (probabilistic_transfer_loss, ref.probabilistic_transfer),
    "edges": (instance_edge_loss, ref.instance_edges),
}
every_loss = pytest.mark.parametrize("name", CASES)
SHAPES = [((5, 3), (5, 7)), ((4, 6), (4, 6)), ((4, 2, 3, 2), (4, 3, 2, 2)), ((3, 2, 4), (3, 5, 2))]
# The value is as good as float32's; the gradient is rounded to half at the very end.
TOLERANCE = {
    torch.float64: ((1e-11, 1e-14), (1e-8, 1e-12)),
    torch.float32: ((2e-4, 2e-7), (5e-4, 5e-6)),
    torch.float16: ((2e-4, 2e-7), (2e-3, 1e-5)),
    torch.bfloat16: ((2e-4, 2e-7), (1e-2, 1e-5)),
}


def features(*shape, seed=0, dtype=torch.float64, scale=2.0, shift=0.5):
    values = np.random.default_rng([seed, *shape]).normal(shift, scale, size=shape)
    return torch.tensor(values).to(dtype)


def pair(shapes=((6, 4), (6, 9)), dtype=torch.float64):
    return features(*shapes[0], seed=1, dtype=dtype), features(*shapes[1], seed=2, dtype=dtype)


def orthogonal(size):
    return torch.linalg.qr(features(size, size, seed=3, shift=0.0)).Q


def says(*parts):
    return pytest.raises(ValueError, match="^" + ".*".join(map(re.escape, parts)))


# ---- against the reference ---------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_value_and_gradient_equal_the_reference(name, shapes, dtype):
    loss, expected = CASES[name]
    student, teacher = pair(shapes, dtype)
    s, t = student.double().numpy(), teacher.double().numpy()
    value, gradient = value_and_gradient(loss, student, teacher)
    (rtol, atol), (grad_rtol, grad_atol) = TOLERANCE[dtype]
    values = expected(s, t)
    assert values.mean() > 1e-4
    np.testing.assert_allclose(value, values.mean(), rtol, atol)
    by_step = reference.gradient(lambda x: expected(x, t), s)
    np.testing.assert_allclose(gradient.double().numpy(), by_step, grad_rtol, grad_atol)
    assert value.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert gradient.dtype == dtype
    np.testing.assert_allclose(loss(student, teacher, reduction="none"), values, rtol, atol)


def test_distances_and_angles_reach_both_parts_of_hubers_function():
    """One far row: differences of the normalised distances above 1, and below."""
    student, teacher = features(12, 4, seed=1), features(12, 3, seed=2)
    student[0] += 400.0
    s, t = student.numpy(), teacher.numpy()
    difference = np.abs(ref.distances(s) - ref.distances(t))
    assert difference.max() > 1 and 0 < np.median(difference) < 1
    value, gradient = value_and_gradient(relational_distance_loss, student, teacher)
    np.testing.assert_allclose(value, ref.relational_distance(s, t).mean(), 1e-10)
    by_step = reference.gradient(lambda x: ref.relational_distance(x, t), s)
    np.testing.assert_allclose(gradient, by_step, 1e-7, 1e-12)


@pytest.mark.parametrize(("gamma", "order"), [(0.4, 1), (0.4, 2), (1.3, 3), (0.1, 7)])
def test_correlations_of_any_order(gamma, order):
    student, teacher = pair()
    s, t = student.numpy(), teacher.numpy()
    value = correlation_congruence_loss(student, teacher, gamma, order)
    np.testing.assert_allclose(value, ref.correlation_congruence(s, t, gamma, order).mean(), 1e-11)


def test_correlations_tend_to_the_gaussian_kernel():
    """exp(−γ‖a − b‖²) of unit rows, which the Taylor polynomial approaches."""
    student, teacher = pair()

    def kernel(rows):
        rows = rows / rows.norm(dim=1, keepdim=True)
        return (-0.4 * torch.cdist(rows, rows).square()).exp()

    exact = (kernel(student) - kernel(teacher)).square().mean()
    errors = [
        abs(float(correlation_congruence_loss(student, teacher, 0.4, order) - exact))
        for order in (1, 2, 4, 12)
    ]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-10 < errors[1]


# ---- invariances ---------------------------------------------------------------------------------


@every_loss
def test_the_order_of_the_batch_does_not_matter(name):
    """Defect 7, that of the released correlation congruence."""
    loss, _ = CASES[name]
    student, teacher = pair()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(loss(student[order], teacher[order]), loss(student, teacher))
    none = loss(student, teacher, reduction="none")
    torch.testing.assert_close(loss(student[order], teacher[order], reduction="none"), none[order])
    assert not torch.isclose(loss(student[order], teacher), loss(student, teacher), rtol=1e-3)


def neighbours_in_the_batch(student, teacher):
    """What public code calls correlation congruence."""
    delta = (student - teacher).abs()
    return (delta[:-1] * delta[1:]).sum(1).mean()


def test_the_released_correlation_depends_on_the_order():
    student, teacher = pair(((6, 4), (6, 4)))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    a = neighbours_in_the_batch(student, teacher)
    b = neighbours_in_the_batch(student[order], teacher[order])
    assert not torch.isclose(a, b, rtol=1e-2)


@every_loss
def test_rotations_and_scales_do_not_matter(name):
    loss, _ = CASES[name]
    student, teacher = pair()
    value, gradient = value_and_gradient(loss, student, teacher)
    turned = value_and_gradient(loss, student @ orthogonal(4), teacher @ orthogonal(9))
    torch.testing.assert_close(turned, (value, gradient @ orthogonal(4)))
    for factor in (1e-9, 0.03, 5.0, 1e9):
        scaled = value_and_gradient(loss, factor * student, 7 * factor * teacher)
        torch.testing.assert_close(scaled, (value, gradient / factor))


@every_loss
def test_only_relations_of_differences_are_blind_to_a_shift(name):
    loss, _ = CASES[name]
    student, teacher = pair()
    shifted = loss(student + 3.0, teacher)
    same = torch.isclose(shifted, loss(student, teacher), rtol=1e-6)
    assert same == (name in ("distance", "angle", "edges"))


@every_loss
def test_agreement_is_the_minimum(name):
    loss, _ = CASES[name]
    student, teacher = pair()
    for copy in (teacher, 3 * teacher @ orthogonal(9)):
        value, gradient = value_and_gradient(loss, copy, teacher)
        assert abs(value) < 1e-12 and gradient.abs().max() < 1e-12
        assert loss(copy, teacher, reduction="none").abs().max() < 1e-12
    for other in (student, teacher.flip(0), teacher**3, torch.zeros_like(teacher)):
        assert loss(other, teacher) > 1e-6


@every_loss
def test_the_student_alone_gets_a_gradient(name):
    loss, _ = CASES[name]
    student, teacher = (x.requires_grad_() for x in pair())
    loss(student, teacher).backward()
    assert teacher.grad is None and student.grad.abs().min() > 0
    assert not torch.isclose(loss(student, teacher), loss(student, student.detach().flip(0)))


# ---- degenerate batches, defect 6 ----------------------------------------------------------------


def degenerate(dtype):
    """Zero rows, equal rows, opposite rows, constant rows, one huge row."""
    large = 6e4 if dtype == torch.float16 else 1e30
    rows = torch.tensor(
        [
            [0.0, 0, 0, 0],
            [0, 0, 0, 0],
            [1, 2, 3, 4],
            [1, 2, 3, 4],
            [-1, -2, -3, -4],
            [2, 2, 2, 2],
            [1e-6, 0, 0, 0],
        ]
    )
    some = {"zeros": torch.zeros(5, 4), "equal": rows[2].repeat(5, 1), "mixed": rows}
    some["tiny"] = 1e-5 * rows
    some["huge"] = torch.cat([rows, torch.full((1, 4), large)])
    some["all huge"] = large * torch.tensor(rows[1:6] / 4)
    return {key: value.to(dtype) for key, value in some.items()}


@every_loss
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.filterwarnings("ignore:To copy construct")
def test_degenerate_batches_are_finite(name, dtype):
    loss, _ = CASES[name]
    for rows in degenerate(dtype).values():
        random = features(len(rows), 3, seed=4, dtype=dtype)
        for student, teacher in [(rows, random), (random, rows), (rows, rows.flip(0))]:
            value, gradient = value_and_gradient(loss, student, teacher)
            assert value.isfinite() and gradient.isfinite().all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_gradient_stays_small_at_equal_rows(name, dtype):
    """Defect 6: huge, or NaN, in published code. One image three times, and two blank ones."""
    loss, _ = CASES[name]
    student = features(8, 16, seed=5, dtype=dtype)
    student[3] = student[4] = student[2]
    student[6] = student[7] = 0
    teacher = features(8, 5, seed=6, dtype=dtype)
    _, gradient = value_and_gradient(loss, student, teacher)
    usual = value_and_gradient(loss, features(8, 16, seed=5), teacher)[1].abs().max()
    assert gradient.abs().max() < 20 * usual
    assert loss(student, student).abs() < 1e-10


def squares_and_products(student, teacher):
    """RKD-D as published: distances from a² + b² − 2ab, floored at 1e-12."""

    def distances(rows):
        square = rows.square().sum(1)
        table = (square[:, None] + square[None] - 2 * rows @ rows.mT).clamp(min=1e-12).sqrt()
        table = table * (1 - torch.eye(len(rows)))
        return table / table[table > 0].mean()

    return torch.nn.functional.smooth_l1_loss(distances(student), distances(teacher.detach()))


def test_rounding_between_equal_rows_is_no_distance():
    """Rows that went through a network in different places of a batch differ in the last bit."""
    student = features(8, 16, seed=5, dtype=torch.float32, shift=30.0)
    student[3] = student[2] * (1 + 1e-7)
    assert not torch.equal(student[3], student[2])
    teacher = features(8, 5, seed=6, dtype=torch.float32)
    for loss in (relational_distance_loss, relational_angle_loss):
        _, gradient = value_and_gradient(loss, student, teacher)
        exact = student.clone()
        exact[3] = exact[2]
        _, expected = value_and_gradient(loss, exact, teacher)
        assert (gradient - expected).abs().max() < 1e-3 * expected.abs().max()
    _, mutant = value_and_gradient(squares_and_products, student, teacher)
    _, usual = value_and_gradient(relational_distance_loss, student, teacher)
    assert (mutant - usual).abs().max() > 0.01 * usual.abs().max()


def test_what_equal_rows_are_worth():
    """Not hidden: where the teacher keeps apart what the student has equal, that counts."""
    student, teacher = features(5, 3, seed=1), features(5, 4, seed=2)
    student[1] = student[0]
    s, t = student.numpy(), teacher.numpy()
    for name in ("distance", "angle", "edges"):
        loss, expected = CASES[name]
        np.testing.assert_allclose(loss(student, teacher), expected(s, t).mean(), 1e-10)


def test_one_blank_row_has_its_own_value_and_no_gradient():
    student, teacher = features(5, 3, seed=1), features(5, 4, seed=2)
    student[2] = 0
    s, t = student.numpy(), teacher.numpy()
    for name in ("similarity", "correlation", "probabilistic"):
        loss, expected = CASES[name]
        value, gradient = value_and_gradient(loss, student, teacher)
        np.testing.assert_allclose(value, expected(s, t).mean(), 1e-9)
        if name != "similarity":  # there the other samples' rows of the table pull it
            assert not gradient[2].any()
        assert gradient[0].any()


def test_opposite_rows_whose_cosine_rounds_to_less_than_minus_one():
    rows = features(32, 300, seed=3, dtype=torch.float32)
    student = torch.cat([rows, -rows])
    assert float(torch.nn.functional.normalize(student).mul(2).square().sum(1).max()) > 4 + 4e-7
    teacher = features(64, 5, dtype=torch.float32)
    value, gradient = value_and_gradient(probabilistic_transfer_loss, student, teacher)
    assert value.isfinite() and gradient.isfinite().all()


def test_a_broken_student_stays_visible():
    student, teacher = pair()
    student[1, 1] = torch.nan
    for loss, _ in CASES.values():
        assert loss(student, teacher).isnan()


# ---- from layer to layer -------------------------------------------------------------------------


def layers(*shape, seed=0, dtype=torch.float64):
    """Two layers of one network."""
    return features(*shape, seed=seed, dtype=dtype), features(*shape, seed=seed + 10, dtype=dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_transformations_equal_the_reference(shapes, dtype):
    """In value, and in the gradient of either layer."""
    student, teacher = layers(*shapes[0], dtype=dtype), layers(*shapes[1], seed=1, dtype=dtype)
    s, t = (tuple(x.double().numpy() for x in pair) for pair in (student, teacher))
    expected = ref.instance_transformation(s, t)
    (rtol, atol), (grad_rtol, grad_atol) = TOLERANCE[dtype]
    assert expected.mean() > 1e-3
    each = instance_transformation_loss(student, teacher, reduction="none")
    np.testing.assert_allclose(each, expected, rtol, atol)
    for which in (0, 1):

        def at(x, layers, which=which):
            return (x, layers[1]) if which == 0 else (layers[0], x)

        value, slope = value_and_gradient(
            lambda x, at=at: instance_transformation_loss(at(x, student), teacher), student[which]
        )
        np.testing.assert_allclose(value, expected.mean(), rtol, atol)
        by_step = reference.gradient(
            lambda x, at=at: ref.instance_transformation(at(x, s), t), s[which]
        )
        np.testing.assert_allclose(slope.double().numpy(), by_step, grad_rtol, grad_atol)


def test_transformations_have_no_scale_and_no_order_and_teach_the_student_alone():
    student, teacher = layers(6, 4), layers(6, 9, seed=1)
    value = instance_transformation_loss(student, teacher)
    turn = orthogonal(4)
    moved = tuple(1e9 * (x + 3.0) @ turn for x in student)
    torch.testing.assert_close(instance_transformation_loss(moved, teacher), value)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    mixed = [tuple(x[order] for x in pair) for pair in (student, teacher)]
    torch.testing.assert_close(instance_transformation_loss(*mixed), value)
    assert not torch.isclose(instance_transformation_loss(mixed[0], teacher), value, rtol=1e-3)
    assert instance_transformation_loss(teacher, teacher) == 0
    both = [[x.requires_grad_() for x in pair] for pair in (student, teacher)]
    instance_transformation_loss(*both).backward()
    assert all(x.grad.any() for x in both[0]) and all(x.grad is None for x in both[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_layers_that_do_not_move_anything_are_worth_nothing_and_pull_nowhere(dtype):
    rows = features(6, 4, dtype=dtype)
    for second in (rows, rows * (1 + torch.finfo(dtype).eps)):
        value, gradient = value_and_gradient(
            lambda x, y=second: instance_transformation_loss((x, y), (rows, rows)), rows
        )
        assert float(value) == 0 and not gradient.any()


def test_transformations_refuse_what_does_not_fit():
    student, teacher = layers(6, 4), layers(6, 9, seed=1)
    with says("teacher: got layers of shapes [6, 9] and [6, 4]", "expected one shape"):
        instance_transformation_loss(student, (teacher[0], student[0]))
    with says("reduction: 'sum'"):
        instance_transformation_loss(student, teacher, reduction="sum")
    with says("student: shape [1, 2, 4]", "at least 2 samples"):
        instance_transformation_loss(*[tuple(x[:1] for x in p) for p in (student, teacher)])
    broken = (teacher[0], teacher[1] * torch.inf)
    with says("teacher: NaN or infinite features"):
        instance_transformation_loss(student, broken)


# ---- errors --------------------------------------------------------------------------------------


@every_loss
def test_what_cannot_be_right_is_refused(name):
    loss, _ = CASES[name]
    student, teacher = pair()
    with says("reduction: 'sum'"):
        loss(student, teacher, reduction="sum")
    with says("student: shape [6], expected features [B, d]"):
        loss(student[:, 0], teacher)
    with says("teacher: shape [6], expected features"):
        loss(student, teacher[:, 0])
    with says("student: dtype torch.int64"):
        loss(student.long(), teacher)
    with says("teacher: shape [5, 9], expected student's [6, 4]"):
        loss(student, teacher[:5])
    with says("student: shape [6, 0], expected no side of 0"):
        loss(student[:, :0], teacher)
    with says("teacher: on meta, expected student's cpu"):
        loss(student, teacher.to("meta"))
    least = 3 if name in ("angle", "probabilistic") else 2
    with says(f"student: shape [{least - 1}, 4], expected at least {least} samples"):
        loss(student[: least - 1], teacher[: least - 1])
    assert loss(student[:least], teacher[:least]).isfinite()
    broken = teacher.clone()
    broken[2, 2] = torch.inf
    with says("teacher: NaN or infinite features"):
        loss(student, broken)
    with unchecked_values():
        assert loss(student, broken).isnan()


@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), None])
def test_the_kernels_width_and_order(bad):
    student, teacher = pair()
    with says(f"gamma: {bad!r}"):
        correlation_congruence_loss(student, teacher, bad)
    with says(f"order: {bad!r}, expected a whole number of at least 1"):
        correlation_congruence_loss(student, teacher, 0.4, bad)


# ---- contrastive -------------------------------------------------------------------------------


def bank_and_choice(batch=4, width=6, images=9, count=5, dtype=torch.float64):
    bank = features(images, width, seed=7, shift=0.0)
    bank = (bank / bank.norm(dim=1, keepdim=True)).to(dtype)
    random = np.random.default_rng(8)
    positive = torch.tensor(random.permutation(images)[:batch])
    others = [[j for j in range(images) if j != own] for own in positive]
    negatives = torch.tensor(np.stack([random.choice(row, count) for row in others]))
    return features(batch, width, seed=9, dtype=dtype), bank, positive, negatives


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("sizes", [(4, 6, 9, 5), (1, 2, 2, 1), (3, 16, 40, 60)], ids=str)
def test_contrastive_value_and_gradient_equal_the_reference(sizes, dtype):
    anchors, bank, positive, negatives = bank_and_choice(*sizes, dtype=dtype)
    a, b = anchors.double().numpy(), bank.double().numpy()
    mean = float(special.hyp0f1(sizes[1] / 2, 1 / (4 * 0.2**2)))

    def expected(x):
        return ref.contrastive(x, b, positive.numpy(), negatives.numpy(), 0.2, mean)

    value, gradient = value_and_gradient(
        lambda x: contrastive_loss(x, bank, positive, negatives, 0.2), anchors
    )
    (rtol, atol), (grad_rtol, grad_atol) = TOLERANCE[dtype]
    np.testing.assert_allclose(value, expected(a).mean(), rtol, atol)
    np.testing.assert_allclose(
        gradient.double().numpy(), reference.gradient(expected, a), grad_rtol, grad_atol
    )
    values = contrastive_loss(anchors, bank, positive, negatives, 0.2, reduction="none")
    np.testing.assert_allclose(values, expected(a), rtol, atol)


def test_the_normaliser_is_what_a_random_bank_measures():
    """The released code's Z: M times the mean of exp(cosine / τ) over a random bank."""
    for width, temperature in [(128, 0.07), (16, 0.2), (3, 0.5)]:
        closed = log_mean_exp_cosine(width, temperature)
        assert closed == pytest.approx(
            np.log(special.hyp0f1(width / 2, 1 / (4 * temperature**2))), rel=1e-10
        )
        bank = features(20_000, width, seed=1, shift=0.0)
        measured = (bank[:, 0] / bank.norm(dim=1) / temperature).exp().mean()
        assert closed == pytest.approx(float(measured.log()), abs=0.05)


def test_contrastive_has_no_overflow_where_the_exponential_has():
    anchors, bank, positive, negatives = bank_and_choice(dtype=torch.float32)
    for own in (bank[positive], -bank[positive], 0 * anchors, 1e30 * anchors):
        value, gradient = value_and_gradient(
            lambda x: contrastive_loss(x, bank, positive, negatives, 0.005), own
        )
        assert value.isfinite() and gradient.isfinite().all()


def test_contrastive_prefers_the_own_image():
    _, bank, positive, negatives = bank_and_choice()
    right = contrastive_loss(bank[positive], bank, positive, negatives, 0.2)
    assert right < contrastive_loss(-bank[positive], bank, positive, negatives, 0.2)
    assert right < contrastive_loss(bank[negatives[:, 0]], bank, positive, negatives, 0.2)
    copied = bank.clone().requires_grad_()
    contrastive_loss(
        bank[positive].clone().requires_grad_(), copied, positive, negatives
    ).backward()
    assert copied.grad is None


def test_contrastive_scale_rotation_and_order():
    anchors, bank, positive, negatives = bank_and_choice()
    value = contrastive_loss(anchors, bank, positive, negatives)
    turn, order = orthogonal(6), torch.tensor([2, 0, 3, 1])
    for same in (
        contrastive_loss(7 * anchors @ turn, bank @ turn, positive, negatives),
        contrastive_loss(anchors[order], bank, positive[order], negatives[order]),
        contrastive_loss(anchors, bank, positive, negatives.flip(1)),
        contrastive_loss(anchors, torch.cat([bank, bank]), positive, negatives),  # M cancels
    ):
        torch.testing.assert_close(same, value)
    assert not torch.isclose(contrastive_loss(anchors.flip(0), bank, positive, negatives), value)


def test_contrastive_refuses_what_does_not_fit():
    anchors, bank, positive, negatives = bank_and_choice()
    among = negatives.clone()
    among[2, 3] = positive[2]
    fine = {"anchors": anchors, "bank": bank, "positive": positive, "negatives": negatives}
    for change, message in [
        ({"temperature": 0.0}, "temperature: 0.0"),
        ({"reduction": "sum"}, "reduction: 'sum'"),
        ({"anchors": anchors[0]}, "anchors: shape [6], expected features [B, d]"),
        ({"anchors": anchors[:, :5]}, "anchors: shape [4, 5] on cpu, expected [B, 6] on cpu"),
        ({"bank": bank.to("meta")}, "anchors: shape [4, 6] on cpu, expected [B, 6] on meta"),
        ({"bank": bank.long()}, "bank: dtype torch.int64"),
        ({"positive": positive[:3]}, "positive: torch.int64 [3] on cpu, expected int64 [4]"),
        ({"positive": positive.float()}, "positive: torch.float32 [4] on cpu, expected int64 [4]"),
        (
            {"negatives": negatives[:3]},
            "negatives: torch.int64 [3, 5] on cpu, expected int64 [4, N]",
        ),
        (
            {"negatives": negatives[:, :0]},
            "negatives: torch.int64 [4, 0] on cpu, expected int64 [4, N]",
        ),
        ({"positive": positive.to("meta")}, "positive: torch.int64 [4] on meta, expected int64"),
        ({"negatives": negatives[0]}, "negatives: torch.int64 [5] on cpu, expected int64 [4, N]"),
        ({"negatives": negatives + 9}, "negatives: values from"),
        ({"positive": positive - 9}, "positive: values from"),
        ({"negatives": among}, "negatives: the positive is among them"),
    ]:
        with says(message):
            contrastive_loss(**fine | change)


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """The number of values of the largest tensor that any operation makes."""

    values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        sizes = [x.numel() for x in torch.utils._pytree.tree_leaves(made) if hasattr(x, "numel")]
        self.values = max(self.values, *sizes) if sizes else self.values
        return made


@pytest.mark.parametrize("name", CASES)
def test_no_relation_makes_a_table_of_all_pairs_times_all_features(name):
    """[16, 1024]: B² d would be 262,144 values, and takes most of the time, too."""
    student = features(16, 4, 16, 16, dtype=torch.float32).requires_grad_()
    teacher = features(16, 1024, seed=1, dtype=torch.float32)
    with Largest() as largest:
        CASES[name][0](student, teacher).backward()
    assert largest.values <= 16 * 1024


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["distance", "angle"])
def test_long_rows_with_equal_ones_and_a_blank_one(name, dtype):
    """Longer than the batch is large: they are compared in other coordinates."""
    student, teacher = (features(6, 20, seed=k, dtype=dtype, shift=3.0) for k in (1, 2))
    student[3] = student[2]
    student[4] = 0
    loss, expected = CASES[name]
    value, gradient = value_and_gradient(loss, student, teacher)
    s, t = student.double().numpy(), teacher.double().numpy()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    np.testing.assert_allclose(value, expected(s, t).mean(), tolerance)
    alone = [0, 1, 4, 5]  # the reference has no derivative at the rows that are equal
    by_step = np.empty((4, 20))
    for place, row in enumerate(alone):

        def moved(x, row=row):
            return expected(np.concatenate([s[:row], x, s[row + 1 :]]), t)

        by_step[place] = reference.gradient(moved, s[row : row + 1])[0]
    np.testing.assert_allclose(
        gradient[alone], by_step, rtol=0, atol=(20 * tolerance) * np.abs(by_step).max()
    )
    close = student.clone()
    close[3] = close[2] + torch.randn(20, dtype=dtype, generator=torch.Generator()) * 0.1
    nearby = expected(close.double().numpy(), t).mean()
    np.testing.assert_allclose(loss(close, teacher), nearby, tolerance)
