"""Slopes and the losses on them: closed forms, second derivatives, noise, batch norm, errors.

The references are NumPy in float64 and know no automatic differentiation: the slope of a two-layer
network is written out, and the loss's gradient by the weights is a complex step on that.
"""

import numpy as np
import pytest
import reference
import torch
from cases import value_and_gradient
from torch import nn

from kdlab.losses import (
    gradient_attention_loss,
    hard_label_loss,
    input_gradient,
    jacobian_matching_loss,
    sobolev_loss,
    unchecked_values,
)

B, D, H, K = 5, 4, 6, 3
Y = np.array([0, 2, 1, 2, 0])


# ---- references ------------------------------------------------------------------------------


def unit(s):
    s = s.reshape(len(s), -1)
    return s / np.sqrt((s**2).sum(1, keepdims=True))


def jacobian_matching(s, t):
    return ((unit(s) - unit(t)) ** 2).sum(1)


def sobolev(s, t):
    return np.array([[((a - b) ** 2).sum() for a, b in zip(x, y, strict=True)] for x, y in
                     zip(s, t, strict=True)]).mean(1)  # fmt: skip


def gradient_attention(s, t):
    return ((s - t) ** 2).reshape(len(s), -1).sum(1) / 2


LOSSES = {
    "jacobian": (jacobian_matching_loss, jacobian_matching, (B, 2, 3, 2)),
    "sobolev": (sobolev_loss, sobolev, (B, K, 2, 3)),
    "gradient_attention": (gradient_attention_loss, gradient_attention, (B, 2, 3)),
}

SMOOTH = {
    "tanh": (torch.tanh, np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "softplus": (
        nn.functional.softplus,
        lambda z: np.log1p(np.exp(z)),
        lambda z: 1 / (1 + np.exp(-z)),
    ),
}


def network(seed):
    random = np.random.default_rng(seed)
    return [random.normal(size=shape) for shape in [(H, D), (H,), (K, H), (K,)]]


X = np.random.default_rng(9).normal(size=(B, D))
TEACHER = network(1)


def forward(weights, x, kind):
    """Logits [B, K] in torch."""
    w1, b1, w2, b2 = weights
    return SMOOTH[kind][0](x @ w1.T + b1) @ w2.T + b2


def closed_form(weights, x, kind):
    """Logits [B, K] and Jacobian [B, K, D] in NumPy: W₂ diag(φ′(W₁x + b₁)) W₁."""
    w1, b1, w2, b2 = weights
    z = x @ w1.T + b1
    return SMOOTH[kind][1](z) @ w2.T + b2, np.einsum("kh,bh,hd->bkd", w2, SMOOTH[kind][2](z), w1)


def slopes(method, weights, x, kind):
    """What each method compares, in NumPy: one slope, the whole Jacobian, that of the CE."""
    logits, jacobian = closed_form(weights, x, kind)
    if method == "sobolev":
        return jacobian
    if method == "jacobian":
        return jacobian[np.arange(B), Y]
    errors = np.exp(reference.log_softmax(logits)) - np.eye(K)[Y]
    return np.einsum("bk,bkd->bd", errors, jacobian)


def torch_slopes(method, weights, kind, create_graph=True):
    x = torch.tensor(X, requires_grad=True)
    logits = forward(weights, x, kind)
    if method == "sobolev":
        rows = [input_gradient(logits, x, v, create_graph=create_graph) for v in torch.eye(K)]
        return torch.stack(rows, 1)
    if method == "jacobian":
        top = nn.functional.one_hot(torch.tensor(Y), K)
        return input_gradient(logits, x, top, create_graph=create_graph)
    errors = hard_label_loss(logits, torch.tensor(Y), reduction="none")
    return input_gradient(errors, x, create_graph=create_graph)


def tensors(weights):
    return [torch.tensor(w, requires_grad=True) for w in weights]


def pair(shape, seed=0, dtype=torch.float64, scale=1.0):
    random = np.random.default_rng([seed, *shape])
    return [torch.tensor(scale * random.normal(size=shape)).to(dtype) for _ in range(2)]


# ---- values and gradients --------------------------------------------------------------------


@pytest.mark.parametrize("kind", SMOOTH)
@pytest.mark.parametrize("method", LOSSES)
def test_slopes_equal_the_closed_form(method, kind):
    got = torch_slopes(method, tensors(TEACHER), kind)
    np.testing.assert_allclose(got.detach(), slopes(method, TEACHER, X, kind), 1e-12, 1e-14)


def test_slopes_by_weights_of_all_forms():
    x = torch.tensor(X, requires_grad=True)
    logits = forward(tensors(TEACHER), x, "tanh")
    jacobian = closed_form(TEACHER, X, "tanh")[1]
    each = np.random.default_rng(3).normal(size=(B, K))
    for weights in (each[0], each):
        got = input_gradient(logits, x, torch.tensor(weights), create_graph=False)
        expected = np.einsum("bk,bkd->bd", np.broadcast_to(weights, (B, K)), jacobian)
        np.testing.assert_allclose(got, expected, 1e-12, 1e-14)
        assert not got.requires_grad
    one = input_gradient(logits[:, 1], x, torch.tensor(each[:, 1]), create_graph=False)
    np.testing.assert_allclose(one, each[:, 1:2] * jacobian[:, 1], 1e-12)


def test_the_weights_of_the_outputs_are_not_differentiated():
    x = torch.tensor(X, requires_grad=True)
    weights = torch.ones(K, dtype=torch.float64, requires_grad=True)
    slope = input_gradient(forward(tensors(TEACHER), x, "tanh"), x, weights, create_graph=True)
    slope.square().sum().backward()
    assert weights.grad is None and x.grad.any()


@pytest.mark.parametrize("method", LOSSES)
def test_value_and_gradient_by_the_slopes(method):
    loss, expected, shape = LOSSES[method]
    for seed in range(3):
        student, teacher = pair(shape, seed)
        s, t = student.numpy(), teacher.numpy()
        np.testing.assert_allclose(loss(student, teacher, reduction="none"), expected(s, t), 1e-12)
        value, gradient = value_and_gradient(loss, student, teacher)
        np.testing.assert_allclose(value, expected(s, t).mean(), 1e-12)
        by_step = reference.gradient(lambda z: expected(z, t), s)  # noqa: B023
        np.testing.assert_allclose(gradient, by_step, 1e-10, 1e-14)


@pytest.mark.parametrize("kind", SMOOTH)
@pytest.mark.parametrize("method", LOSSES)
def test_gradient_by_the_weights_equals_a_complex_step(method, kind):
    """The double backward, against the closed-form slope of a network with shifted weights."""
    loss, expected, _ = LOSSES[method]
    student = network(2)
    weights = tensors(student)
    teacher = slopes(method, TEACHER, X, kind)
    loss(torch_slopes(method, weights, kind), torch.tensor(teacher)).backward()
    for place, weight in enumerate(weights):

        def shifted(w, place=place):
            moved = [w if i == place else v.astype(complex) for i, v in enumerate(student)]
            return expected(slopes(method, moved, X, kind), teacher)

        got = 0 * weight if weight.grad is None else weight.grad
        by_step = reference.gradient(shifted, student[place])
        np.testing.assert_allclose(got.detach(), by_step, 1e-9, 1e-12)
        assert by_step.any() == (place < 3 or method == "gradient_attention")


@pytest.mark.parametrize("method", LOSSES)
def test_gradcheck_and_gradgradcheck_of_the_loss(method):
    loss, _, shape = LOSSES[method]
    student, teacher = pair(shape)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student)
    assert torch.autograd.gradgradcheck(lambda s: loss(s, teacher), student)


@pytest.mark.parametrize("kind", SMOOTH)
@pytest.mark.parametrize("method", LOSSES)
def test_gradcheck_and_gradgradcheck_through_the_slope(method, kind):
    """By the weights: the second derivative of the network, and the third."""
    teacher = torch.tensor(slopes(method, TEACHER, X, kind))
    weights = tensors(network(2))

    def term(*weights):
        return LOSSES[method][0](torch_slopes(method, weights, kind), teacher)

    moved = weights if method == "gradient_attention" else weights[:3]
    rest = weights[len(moved) :]
    assert torch.autograd.gradcheck(lambda *w: term(*w, *rest), moved)
    assert torch.autograd.gradgradcheck(lambda *w: term(*w, *rest), moved)


# ---- what the formulas promise ---------------------------------------------------------------


@pytest.mark.parametrize("method", LOSSES)
def test_zero_at_identity_and_symmetric_in_the_batch(method):
    loss, _, shape = LOSSES[method]
    student, teacher = pair(shape)
    value, gradient = value_and_gradient(loss, teacher, teacher)
    assert value == 0 and gradient.abs().max() < 1e-15
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(
        loss(student[order], teacher[order], reduction="none"),
        loss(student, teacher, reduction="none")[order],
    )
    torch.testing.assert_close(
        loss(student.repeat_interleave(2, 0), teacher.repeat_interleave(2, 0)),
        loss(student, teacher),
    )
    assert loss(student, teacher) > 0.1


@pytest.mark.parametrize("method", LOSSES)
def test_teacher_gets_no_gradient_and_student_does(method):
    loss, _, shape = LOSSES[method]
    student, teacher = (z.requires_grad_() for z in pair(shape))
    loss(student, teacher).backward()
    assert teacher.grad is None and student.grad.any()


def test_jacobian_matching_sees_directions_only():
    student, teacher = pair((B, 2, 3, 2))
    values = jacobian_matching_loss(student, teacher, reduction="none")
    flat = student.flatten(1), teacher.flatten(1)
    torch.testing.assert_close(values, 2 - 2 * nn.functional.cosine_similarity(*flat))
    torch.testing.assert_close(jacobian_matching_loss(7 * student, 0.3 * teacher), values.mean())
    turn = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    torch.testing.assert_close(
        jacobian_matching_loss(flat[0] @ turn, flat[1] @ turn), values.mean()
    )
    torch.testing.assert_close(
        jacobian_matching_loss(-teacher, teacher, reduction="none"),
        torch.full((B,), 4.0, dtype=torch.float64),
    )


def test_sobolev_is_the_jacobians_distance_in_any_basis():
    student, teacher = pair((B, K, 4))
    full = (student - teacher).square().sum((1, 2)) / K
    torch.testing.assert_close(sobolev_loss(student, teacher, reduction="none"), full)
    turn = torch.linalg.qr(torch.randn(K, K, dtype=torch.float64))[0]
    turned = [torch.einsum("jk,bkd->bjd", turn, z) for z in (student, teacher)]
    torch.testing.assert_close(sobolev_loss(*turned, reduction="none"), full)
    torch.testing.assert_close(sobolev_loss(3 * student, 3 * teacher), 9 * full.mean())
    one = sobolev_loss(student[:, :1], teacher[:, :1])
    torch.testing.assert_close(one, 2 * gradient_attention_loss(student[:, 0], teacher[:, 0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", LOSSES)
def test_finite_in_every_dtype(method, dtype):
    loss, _, shape = LOSSES[method]
    for scale in (1e-3 if dtype == torch.float16 else 1e-7, 1.0, 1e4):
        student, teacher = pair(shape, dtype=dtype, scale=scale)
        student[0], teacher[1] = 0, 0
        student[2], teacher[2] = 0, 0
        student[4], teacher[4] = student[3], teacher[3]
        value, gradient = value_and_gradient(loss, student, teacher)
        assert value.dtype == torch.float32 and gradient.dtype == dtype
        assert value.isfinite() and gradient.isfinite().all()


def test_a_zero_slope_has_no_direction():
    student, teacher = pair((4, 3), dtype=torch.float32)
    student[0], teacher[1], student[2], teacher[2] = 0, 0, 0, 0
    values = jacobian_matching_loss(student, teacher, reduction="none")
    torch.testing.assert_close(values[:3], torch.tensor([1.0, 1.0, 0.0]))
    _, gradient = value_and_gradient(jacobian_matching_loss, student, teacher)
    assert not gradient[0].any() and not gradient[2].any() and gradient[3].any()


def test_half_precision_is_computed_in_single():
    for method, (loss, _, shape) in LOSSES.items():
        student, teacher = pair(shape, dtype=torch.bfloat16)
        torch.testing.assert_close(
            loss(student, teacher), loss(student.float(), teacher.float()), msg=method
        )
        assert loss(student.double(), teacher).dtype == torch.float64


def test_who_is_masked_takes_no_part():
    student, teacher = pair((B, 4))
    mask = torch.tensor([True, False, True, False, True])
    values = gradient_attention_loss(student, teacher, reduction="none")
    expected = values * mask
    student[1], teacher[3] = torch.nan, torch.inf
    loss = gradient_attention_loss
    torch.testing.assert_close(loss(student, teacher, mask=mask, reduction="none"), expected)
    value, gradient = value_and_gradient(loss, student, teacher, mask=mask)
    torch.testing.assert_close(value, expected.sum() / 3)
    assert not gradient[~mask].any() and gradient[mask].all()
    nobody = torch.zeros(B, dtype=torch.bool)
    value, gradient = value_and_gradient(loss, student, teacher, mask=nobody)
    assert value == 0 and not gradient.any()


# ---- noise is Jacobian matching in disguise ---------------------------------------------------


def gap_and_derivatives(shift):
    """g = f_S − f_T of one output, with its value, slope and Laplacian at X."""
    student, teacher = tensors(network(2)), tensors(TEACHER)

    def g(x):
        return (forward(student, x, "tanh") - forward(teacher, x, "softplus"))[..., 0] - shift

    x = torch.tensor(X, requires_grad=True)
    value = g(x)
    slope = input_gradient(value, x, create_graph=True)
    curvature = sum(
        input_gradient(slope[:, d], x, create_graph=False)[:, d] for d in range(D)
    )  # the trace of the second derivatives
    return g, value.detach(), slope.detach(), curvature


def expected_square(g, sigma):
    """E g(x + σξ)² of standard normal ξ, by Gauss-Hermite quadrature: exact to degree 13."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(7)
    grid = np.stack(np.meshgrid(*[nodes] * D, indexing="ij"), -1).reshape(-1, 1, D)
    weight = np.prod(np.stack(np.meshgrid(*[weights] * D, indexing="ij")), 0).reshape(-1, 1)
    with torch.no_grad():
        squares = g(torch.tensor(X + sigma * grid)).square()
    return (squares * torch.tensor(weight / weight.sum())).sum(0)


def test_matching_values_under_noise_matches_slopes():
    """What noise adds, over σ², tends to ‖∇f_S − ∇f_T‖² + g Δg, with an error of order σ²."""
    g, value, slope, curvature = gap_and_derivatives(0.0)
    limit = slope.square().sum(1) + value * curvature
    assert ((value * curvature).abs() > 0.1 * limit.abs()).any()  # it is not to be left out
    errors = []
    for sigma in (0.02, 0.01):
        added = (expected_square(g, sigma) - value**2) / sigma**2
        torch.testing.assert_close(added, limit, rtol=0.02, atol=0.02)
        errors.append((added - limit).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)


def test_where_the_values_agree_noise_adds_the_slopes_alone():
    _, value, _, _ = gap_and_derivatives(0.0)
    g, zero, slope, _ = gap_and_derivatives(value)
    assert zero.abs().max() < 1e-12
    for sigma in (0.02, 0.01):
        added = expected_square(g, sigma) / sigma**2
        torch.testing.assert_close(added, slope.square().sum(1), rtol=0.01, atol=0.01)


# ---- batch norm ------------------------------------------------------------------------------


def batch_normed(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(D, 16), nn.BatchNorm1d(16), nn.Softplus(), nn.Linear(16, 16),
        nn.BatchNorm1d(16), nn.Softplus(), nn.Linear(16, K),
    ).double()  # fmt: skip


def own_slopes(outputs, x):
    """One backward pass for each sample."""
    rows = [torch.autograd.grad(o, x, retain_graph=True)[0][b] for b, o in enumerate(outputs)]
    return torch.stack(rows)


@pytest.mark.parametrize("odd", [0, 1])
def test_in_eval_mode_a_slope_is_the_samples_own_to_the_last_bit(odd):
    model = batch_normed().eval()
    x = torch.randn(8 + odd, D, dtype=torch.float64, requires_grad=True)
    logits = model(x)
    (plain,) = torch.autograd.grad(logits[:, 1].sum(), x, retain_graph=True)
    slope = input_gradient(logits, x, torch.eye(K)[1], create_graph=False)
    assert torch.equal(slope, plain)
    torch.testing.assert_close(slope, own_slopes(logits[:, 1], x))


def test_in_training_mode_batch_norm_hardly_mixes_the_samples():
    errors = {}
    for batch in (32, 512):
        model = batch_normed().train()
        x = torch.randn(batch, D, dtype=torch.float64, requires_grad=True)
        outputs = model(x)[:, 1]
        own = own_slopes(outputs, x)
        (plain,) = torch.autograd.grad(outputs.sum(), x, retain_graph=True)
        slope = input_gradient(outputs, x, create_graph=False)
        errors[batch] = ((slope - own).norm() / own.norm()).item()
        assert (plain - own).norm() / own.norm() > 0.5
    assert errors[32] < 0.25
    assert errors[512] < 0.4 * errors[32]


def test_the_graph_can_be_used_again():
    x = torch.tensor(X, requires_grad=True)
    logits = forward(tensors(TEACHER), x, "tanh")
    first, second = (
        input_gradient(logits, x, torch.eye(K)[0], create_graph=False) for _ in range(2)
    )
    assert torch.equal(first, second)


# ---- errors ----------------------------------------------------------------------------------

Z = torch.zeros(B, D)
LEAF = torch.zeros(B, D, requires_grad=True)
GROWN = LEAF * 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: input_gradient(GROWN, None, Z, create_graph=False), "^inputs: None, exp"),
        (lambda: input_gradient(GROWN, Z, Z, create_graph=False), "^inputs: a tensor without"),
        (lambda: input_gradient(Z, LEAF, Z, create_graph=False), "^outputs: they have no graph"),
        (lambda: input_gradient(GROWN, LEAF, create_graph=False), "^weights: None for outputs"),
        (
            lambda: input_gradient(GROWN, LEAF, Z[:, :2], create_graph=False),
            r"^weights: shape \[5, 2\], expected \[5, 4\] or \[4\]",
        ),
        (
            lambda: input_gradient(GROWN[:, 0], LEAF, Z, create_graph=False),
            r"^weights: shape \[5, 4\], expected \[5\]$",
        ),
        (
            lambda: input_gradient(GROWN[:3], LEAF, Z[:3], create_graph=False),
            r"^outputs: shape \[3, 4\].*B = 5",
        ),
        (
            lambda: input_gradient(GROWN.sum(), LEAF, create_graph=False),
            r"^outputs: shape \[\], expected \[B\]",
        ),
        (
            lambda: input_gradient(GROWN, LEAF.clone(), Z, create_graph=False),
            "^inputs: the outputs do not depend on them",
        ),
        (lambda: jacobian_matching_loss(Z, Z[:4]), r"^teacher: shape \[4, 4\], expected student"),
        (lambda: jacobian_matching_loss(Z[0], Z[0]), r"^student: shape \[4\].*\[B, \.\.\.\]"),
        (lambda: sobolev_loss(Z, Z), r"^student: shape \[5, 4\].*\[B, k, \.\.\.\]"),
        (lambda: sobolev_loss(Z[:0, None], Z[:0, None]), "^student: shape .*no side of 0"),
        (lambda: gradient_attention_loss(Z.long(), Z), "^student: dtype torch.int64"),
        (lambda: gradient_attention_loss(Z, Z.long()), "^teacher: dtype torch.int64"),
        (lambda: gradient_attention_loss(Z, Z.to("meta")), "^teacher: on meta, expected student's"),
        (lambda: gradient_attention_loss(Z, Z / 0), "^teacher: NaN or infinite slopes"),
        (lambda: sobolev_loss(Z[None], 1 / Z[None]), "^teacher: NaN or infinite slopes"),
        (lambda: gradient_attention_loss(Z, Z, mask=Z[:, 0]), r"^mask: torch.float32 of shape"),
        (lambda: gradient_attention_loss(Z, Z, mask=Z > 0), r"^mask: torch.bool of shape \[5, 4\]"),
        (lambda: jacobian_matching_loss(Z, Z, reduction="sum"), "^reduction: 'sum'"),
        (lambda: sobolev_loss(Z, Z, reduction="sum"), "^reduction: 'sum'"),
        (lambda: gradient_attention_loss(Z, Z, reduction="sum"), "^reduction: 'sum'"),
    ],
)
def test_errors_say_what_came_and_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_values_need_not_be_checked():
    with unchecked_values():
        assert jacobian_matching_loss(Z, Z / 0).isnan()
