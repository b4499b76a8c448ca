"""CKA against the papers' formulas written with N × N matrices; probes against known answers."""

import itertools
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kdlab.metrics import cka, cka_matrix, probe_accuracy, similarity

PROVED = settings(derandomize=True, deadline=None, max_examples=25)
BOTH = pytest.mark.parametrize("unbiased", [False, True])


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def related(n=40, p=6, q=9, seed=0):
    """Two layers with something in common."""
    random = np.random.default_rng(seed)
    a = random.normal(size=(n, p)) + 3
    return a, a @ random.normal(size=(p, q)) + random.normal(size=(n, q))


def hsic_0(k, ell):
    """Kornblith et al.: tr(K H L H) / (N − 1)²."""
    n = len(k)
    h = np.eye(n) - np.ones((n, n)) / n
    return np.trace(k @ h @ ell @ h) / (n - 1) ** 2


def hsic_1(k, ell):
    """Song et al., equation for the unbiased estimator, on matrices without their diagonal."""
    n, one = len(k), np.ones(len(k))
    k, ell = k - np.diag(np.diag(k)), ell - np.diag(np.diag(ell))
    middle = (one @ k @ one) * (one @ ell @ one) / ((n - 1) * (n - 2))
    return (np.trace(k @ ell) + middle - 2 / (n - 2) * (one @ k @ ell @ one)) / (n * (n - 3))


def reference(a, b, unbiased):
    a, b = (x.reshape(len(x), -1) for x in (a, b))
    k, ell = a @ a.T, b @ b.T
    hsic = hsic_1 if unbiased else hsic_0
    return hsic(k, ell) / np.sqrt(hsic(k, k) * hsic(ell, ell))


@BOTH
@PROVED
@given(n=st.integers(5, 14), p=st.integers(1, 30), q=st.integers(1, 30), seed=st.integers(0, 2**31))
def test_cka_equals_the_papers_formula_in_every_form(unbiased, n, p, q, seed):
    """Fewer features than samples, more, and one of each: three ways through the code."""
    a, b = related(n, p, q, seed)
    expected = reference(a, b, unbiased)
    assert cka(a, b, unbiased=unbiased) == pytest.approx(expected, abs=1e-9)
    assert cka(b, a, unbiased=unbiased) == pytest.approx(expected, abs=1e-9)


def test_the_smaller_of_features_and_gram_matrix_is_kept():
    """50,000 features of 10 samples must not become a matrix of 50,000 by 50,000."""
    wide, narrow = (similarity._centred("x", normal(*shape)) for shape in ((10, 30), (30, 10)))
    assert wide.features is None and wide.gram.shape == (10, 10)
    assert narrow.gram is None and narrow.features.shape == (30, 10)


def test_the_debiased_estimate_is_a_mean_over_all_quadruples():
    """HSIC₁ is a U-statistic: it averages, over four different samples, an unbiased estimate."""
    a, b = related(7, 3, 2)
    k, ell = a @ a.T, b @ b.T
    estimates = [
        k[i, j] * ell[i, j] + k[i, j] * ell[q, r] - 2 * k[i, j] * ell[i, q]
        for i, j, q, r in itertools.permutations(range(7), 4)
    ]
    assert hsic_1(k, ell) == pytest.approx(np.mean(estimates))


@BOTH
def test_what_changes_nothing(unbiased):
    a, b = related()
    rotation = np.linalg.qr(normal(9, 9, seed=4))[0]
    expected = cka(a, b, unbiased=unbiased)
    order = np.random.default_rng(1).permutation(len(a))
    for same in (
        cka(a, b @ rotation, unbiased=unbiased),
        cka(a, -1e-3 * b, unbiased=unbiased),
        cka(a * 1e5, b, unbiased=unbiased),
        cka(a, b + normal(9, seed=3), unbiased=unbiased),
        cka(a[order], b[order], unbiased=unbiased),
        cka(a, b[:, ::-1].copy(), unbiased=unbiased),
        cka(a.reshape(40, 2, 3), b.reshape(40, 3, 3, 1), unbiased=unbiased),
        cka(torch.tensor(a), torch.tensor(b).requires_grad_(), unbiased=unbiased),
        cka(a * 1e80, b * 1e-80, unbiased=unbiased),
    ):
        assert same == pytest.approx(expected, abs=1e-9)
    assert cka(a, 2 * a @ np.linalg.qr(normal(6, 6))[0] - 7, unbiased=unbiased) == pytest.approx(1)


@BOTH
def test_what_changes_it(unbiased):
    a, b = related()
    plain = cka(a, b, unbiased=unbiased)
    assert abs(cka(a, b[::-1].copy(), unbiased=unbiased) - plain) > 0.2  # the samples of one side
    stretched = a * np.array([9, 1, 1, 1, 1, 1])  # a general linear map
    assert cka(a, stretched, unbiased=unbiased) < 0.8


def test_unrelated_features_of_few_samples_look_alike_unless_debiased():
    """40 samples, 400 features: the plain value is close to 1 although nothing is shared."""
    pairs = [(normal(40, 400, seed=s), normal(40, 400, seed=s + 100)) for s in range(12)]
    plain = [cka(a, b) for a, b in pairs]
    debiased = [cka(a, b, unbiased=True) for a, b in pairs]
    assert min(plain) > 0.85
    assert abs(np.mean(debiased)) < 0.02 and max(map(abs, debiased)) < 0.15
    assert min(debiased) < 0 < max(debiased)


def test_many_samples_need_no_debiasing():
    a, b = related(2000)
    assert cka(a, b) == pytest.approx(cka(a, b, unbiased=True), abs=0.005)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int32])
def test_any_dtype_gives_what_its_float64_copy_gives(dtype, unbiased):
    a, b = ((10 * torch.tensor(x)).to(dtype) for x in related())
    expected = cka(a.double(), b.double(), unbiased=unbiased)
    assert cka(a, b, unbiased=unbiased) == expected


def test_rounding_leads_nowhere_beyond_one():
    assert max(cka(a, a) for a in (normal(6, 2, seed=seed) for seed in range(40))) <= 1


def test_large_half_precision_features_are_finite():
    a = torch.tensor(6e4 * np.sign(normal(9, 5)), dtype=torch.float16)
    assert cka(a, a) == pytest.approx(1)


@BOTH
def test_matrix_holds_every_pair_by_name(unbiased):
    a, b = related()
    wide = normal(40, 8, 3, 3)
    rows, columns = {"stage1": a, "stage2": wide}, {"stage1": b, "stage2": a, "head": b[:, :2]}
    table = cka_matrix(rows, columns, unbiased=unbiased)
    assert list(table.index) == ["stage1", "stage2"]
    assert list(table.columns) == ["stage1", "stage2", "head"]
    for (row, x), (column, y) in itertools.product(rows.items(), columns.items()):
        assert table.loc[row, column] == pytest.approx(reference(x, y, unbiased), abs=1e-9)


def says(*parts):
    return pytest.raises(ValueError, match=".*".join(map(re.escape, parts)))


A, B = related(10)


@BOTH
def test_cka_refuses(unbiased):
    with says("the numbers of samples differ (a 10, b 9); expected the same samples"):
        cka(A, B[:9], unbiased=unbiased)
    with says("b: 3 samples, expected at least 4"):
        cka(A, B[:3], unbiased=unbiased)
    with says("a: torch.float64 [10], expected real features [N, ...]"):
        cka(A[:, 0], B, unbiased=unbiased)
    with says("b: torch.float64 [10, 0]"):
        cka(A, B[:, :0], unbiased=unbiased)
    with says("a: torch.complex128"):
        cka(A + 1j, B, unbiased=unbiased)
    for bad in (np.nan, np.inf):
        broken = B.copy()
        broken[2, 1] = bad
        with says("b: NaN or infinite values; has the model diverged?"):
            cka(A, broken, unbiased=unbiased)
    for constant in (np.zeros((10, 3)), 0.1 + 1e-15 * A, np.full((10, 50), 1e-30)):
        with says("a: the features are the same for every sample", "is the layer dead?"):
            cka(constant, B, unbiased=unbiased)
    with says("features_b['late']: the features are the same"):
        cka_matrix({"x": A}, {"early": B, "late": 0 * B}, unbiased=unbiased)
    with says("differ (stage1 10, stage1 9)"):
        cka_matrix({"stage1": A}, {"stage1": B[:9]}, unbiased=unbiased)
    with says("features_a is empty"):
        cka_matrix({}, {"x": B}, unbiased=unbiased)
    with says("features_b is empty"):
        cka_matrix({"x": A}, {}, unbiased=unbiased)


def test_rounding_of_a_constant_in_float32_is_no_signal():
    constant = torch.full((10, 3), 0.7)
    constant[::2] = torch.nextafter(constant[::2], torch.tensor(1.0))
    with says("a: the features are the same for every sample"):
        cka(constant, B)


def test_one_sample_that_differs_is_too_little_for_the_debiased_estimate():
    lone = np.zeros((10, 3))
    lone[4] = 1
    assert cka(lone, lone) == pytest.approx(1)
    with says("a: the features differ in one sample only", "use unbiased=False"):
        cka(lone, B, unbiased=True)


def blobs(n=300, classes=5, d=8, gap=3.0, seed=0):
    """Classes around centres of their own: features [n, d], labels [n]."""
    random = np.random.default_rng(seed)
    centres = gap * np.random.default_rng(99).normal(size=(classes, d))
    y = np.arange(n) % classes
    return centres[y] + random.normal(size=(n, d)), y


def test_probe_equals_scikit_learns_pipeline():
    (x, y), (x_test, y_test) = blobs(gap=0.4), blobs(gap=0.4, seed=1)
    scale = np.array([1e-3, 1, 1e3, 1, 1, 1, 1, 7]) + 0 * x
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    expected = pipeline.fit(x * scale, y).score(x_test * scale, y_test)
    assert 0.3 < expected < 0.9  # neither chance nor perfect
    assert probe_accuracy(x * scale, y, x_test * scale, y_test) == pytest.approx(expected)


def test_probe_reads_what_is_there_and_nothing_else():
    (x, y), (x_test, y_test) = blobs(), blobs(seed=1)
    assert probe_accuracy(x, y, x_test, y_test) > 0.97
    noise = probe_accuracy(normal(300, 8), y, normal(300, 8, seed=1), y_test)
    assert noise < 0.35  # chance is 0.2
    ring = normal(400, 2)
    inside = (np.linalg.norm(ring, axis=1) < 1.18).astype(int)  # half of them; no line parts them
    assert probe_accuracy(ring[:200], inside[:200], ring[200:], inside[200:]) < 0.65


def test_probe_is_deterministic_and_blind_to_scale_and_shift():
    (x, y), (x_test, y_test) = blobs(gap=0.5), blobs(gap=0.5, seed=1)
    first = probe_accuracy(x, y, x_test, y_test)
    assert probe_accuracy(x, y, x_test, y_test) == first
    assert probe_accuracy(100 * x - 7, y, 100 * x_test - 7, y_test) == pytest.approx(first)
    tensors = (torch.tensor(v) for v in (x, y, x_test, y_test))
    assert probe_accuracy(*tensors) == first


@pytest.mark.parametrize("shape", [(300, 8, 2, 3), (300, 6, 8)])
def test_maps_are_pooled_over_places_and_tokens_over_tokens(shape):
    (x, y), (x_test, y_test) = blobs(gap=0.5), blobs(gap=0.5, seed=1)
    expected = probe_accuracy(x, y, x_test, y_test)
    places = 1 + normal(*shape)
    channel_axis = 1 if len(shape) == 4 else 2
    others = tuple(axis for axis in (1, 2, 3)[: len(shape) - 1] if axis != channel_axis)
    places -= places.mean(others, keepdims=True)

    def spread(values):
        return places + np.expand_dims(values, others)

    assert probe_accuracy(spread(x), y, spread(x_test), y_test) == pytest.approx(expected)


def test_a_dead_channel_does_no_harm():
    (x, y), (x_test, y_test) = blobs(gap=0.5), blobs(gap=0.5, seed=1)
    expected = probe_accuracy(x, y, x_test, y_test)
    for constant in (0.0, 0.1):
        dead = np.full((300, 1), constant)
        dead[::2] = np.nextafter(constant, 1)  # rounding is no signal
        beside = np.hstack([x, dead]), np.hstack([x_test, dead + 5])  # nothing learned, so ignored
        assert probe_accuracy(beside[0], y, beside[1], y_test) == expected


def test_a_class_that_training_never_saw_counts_as_wrong():
    (x, y), (x_test, y_test) = blobs(), blobs(seed=1)
    known = y != 4
    assert probe_accuracy(x[known], y[known], x_test, y_test) == pytest.approx(0.8, abs=0.03)


def test_probe_refuses():
    x, y = blobs(20)
    with says("train_features: NaN or infinite"):
        probe_accuracy(x * np.nan, y, x, y)
    with says("test_features: shape [20, 2, 2, 2, 1], expected [N, d]"):
        probe_accuracy(x, y, x.reshape(20, 2, 2, 2, 1), y)
    with says("test_features: 7 channels, expected 8"):
        probe_accuracy(x, y, x[:, :7], y)
    with says("train_labels: torch.int64 [19], expected [20] whole class numbers"):
        probe_accuracy(x, y[:19], x, y)
    with says("test_labels: torch.float64 [20], expected [20] whole"):
        probe_accuracy(x, y, x, y + 0.0)
    with says("train_labels: torch.bool [20], expected [20] whole"):
        probe_accuracy(x, y > 1, x, y)
    with says("train_labels: -1 is no class", "unlabelled"):
        probe_accuracy(x, np.where(y == 2, -1, y), x, y)
    with says("train_labels: only class 1, expected at least two"):
        probe_accuracy(x, 0 * y + 1, x, y)
