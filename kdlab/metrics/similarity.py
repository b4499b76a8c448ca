"""How alike two representations are, and what can be read from one: CKA and linear probes.

Features come as they are tapped: ``[N, ...]``, one entry per sample, as tensors on any device or
NumPy arrays of any real dtype. All is computed in float64. Compared in lesson 02.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = Tensor | NDArray[Any]
FEWEST = 4  # samples; the debiased estimate divides by N − 3


def cka(a: Array, b: Array, *, unbiased: bool = False) -> float:
    """Linear centred kernel alignment of two layers' answers to the same N samples.

    ``CKA = HSIC(K, L) / sqrt(HSIC(K, K) · HSIC(L, L))`` with the Gram matrices ``K = a aᵀ`` and
    ``L = b bᵀ``. By default ``HSIC(K, L) = ‖(a − mean)ᵀ (b − mean)‖²`` (Frobenius), and CKA lies in
    [0, 1]; 1 means equal up to rotation, scale and shift. A general linear map does change it, and
    so it can tell layers apart that have more features than samples.

    With few samples and many features even independent features look alike: the value is biased
    upwards. ``unbiased`` takes the estimator HSIC₁ instead, which is 0 on average for independent
    features; its CKA lies in [-1, 1]. It costs nothing more.

    Args:
        a, b: ``[N, ...]``, at least 4 samples, the same in the same order; all that follows N is
            flattened, and may differ in size.
        unbiased: debias.

    Raises:
        ValueError: different or too few samples, NaN or infinite values, or features that are the
            same for every sample (for ``unbiased``: for every sample but one).

    Source: Kornblith, Norouzi, Lee, Hinton, "Similarity of Neural Network Representations
    Revisited", 2019, arXiv:1905.00414. HSIC₁: Song, Smola, Gretton, Bedo, Borgwardt, "Feature
    Selection via Dependence Maximization", JMLR 2012; in CKA: Nguyen, Raghu, Kornblith, "Do Wide
    and Deep Networks Learn the Same Things?", 2020, arXiv:2010.15327.
    """
    return float(_compare({"a": _centred("a", a)}, {"b": _centred("b", b)}, unbiased)[0, 0])


def cka_matrix(
    features_a: Mapping[str, Array], features_b: Mapping[str, Array], *, unbiased: bool = False
) -> pd.DataFrame:
    """``cka`` of every layer of one model with every layer of another.

    Args:
        features_a: layer → ``[N, ...]``; these are the rows.
        features_b: layer → ``[N, ...]``; these are the columns.
        unbiased: as in ``cka``.

    Raises:
        ValueError: no layers; or as ``cka``, with the layer's name.
    """
    rows, columns = _side("features_a", features_a), _side("features_b", features_b)
    return pd.DataFrame(_compare(rows, columns, unbiased), index=list(rows), columns=list(columns))


def probe_accuracy(
    train_features: Array, train_labels: Array, test_features: Array, test_labels: Array
) -> float:
    """Test accuracy of a linear classifier on a layer's features: what can be read off there.

    The features are pooled to one vector per sample (a map ``[N, c, h, w]`` to its channels' means
    ``[N, c]``, tokens ``[N, n, d]`` to their mean ``[N, d]``), standardised by the training
    features, and given to scikit-learn's logistic regression with its usual L2 penalty (C = 1).
    Nothing is drawn at random.

    Args:
        train_features, test_features: ``[N, d]``, ``[N, n, d]`` or ``[N, c, h, w]``, as many
            channels in both.
        train_labels, test_labels: ``[N]``, whole class numbers, at least two in training.

    Raises:
        ValueError: shapes that do not fit, NaN or infinite features, labels that are no class
            numbers (-1 marks an unlabelled sample), or fewer than two classes.

    Source: Alain, Bengio, "Understanding intermediate layers using linear classifier probes", 2016,
    arXiv:1610.01644.
    """
    from sklearn.linear_model import LogisticRegression  # takes a second to import

    x, y = _labelled("train", train_features, train_labels)
    x_test, y_test = _labelled("test", test_features, test_labels)
    if x.shape[1] != x_test.shape[1]:
        raise ValueError(
            f"test_features: {x_test.shape[1]} channels, expected {x.shape[1]} as in "
            "train_features: read both from the same layer"
        )
    if len(y.unique()) < 2:
        raise ValueError(f"train_labels: only class {int(y[0])}, expected at least two classes")
    mean, std = x.mean(0), x.std(0, correction=0)
    std = torch.where(std > 1e-12 * x.abs().amax(0), std, torch.inf)  # a constant tells nothing
    probe = LogisticRegression(max_iter=1000)
    probe.fit(((x - mean) / std).numpy(), y.numpy())
    return float(probe.score(((x_test - mean) / std).numpy(), y_test.numpy()))


class _Centred(NamedTuple):
    """Centred features, or their Gram matrix where that is smaller.

    Attributes:
        features: [N, p] for p ≤ N, else None.
        gram: [N, N] for p > N, else None.
        energy: [N] squared norm of each sample, the Gram matrix's diagonal.
    """

    features: Tensor | None
    gram: Tensor | None
    energy: Tensor


def _centred(name: str, features: Array) -> _Centred:
    x = _numbers(name, features)
    if len(x) < FEWEST:
        raise ValueError(f"{name}: {len(x)} samples, expected at least {FEWEST}")
    x = x.flatten(1)
    shifted = x - x.mean(0)
    largest = shifted.abs().max()
    given = torch.as_tensor(features).dtype
    noise = torch.finfo(given).eps if given.is_floating_point else 0.0
    if largest <= max(noise, 1e-12) * x.abs().max():
        raise ValueError(
            f"{name}: the features are the same for every sample, so there is nothing to compare; "
            "is the layer dead?"
        )
    shifted /= largest  # the fourth power must be finite
    if shifted.shape[1] <= len(shifted):
        return _Centred(shifted, None, shifted.square().sum(1))
    gram = shifted @ shifted.T
    return _Centred(None, gram, gram.diagonal())


def _side(argument: str, features: Mapping[str, Array]) -> dict[str, _Centred]:
    if not features:
        raise ValueError(f"{argument} is empty: give at least one layer → features [N, ...]")
    return {layer: _centred(f"{argument}[{layer!r}]", x) for layer, x in features.items()}


def _compare(
    rows: Mapping[str, _Centred], columns: Mapping[str, _Centred], unbiased: bool
) -> NDArray[np.float64]:
    sides = [*rows.items(), *columns.items()]
    if len({len(x.energy) for _, x in sides}) > 1:
        told = ", ".join(f"{layer} {len(x.energy)}" for layer, x in sides)
        raise ValueError(
            f"the numbers of samples differ ({told}); expected the same samples in all"
        )
    down, across = (
        [_own_hsic(layer, x, unbiased) ** 0.5 for layer, x in side.items()]
        for side in (rows, columns)
    )
    values = [[_hsic(x, y, unbiased) for y in columns.values()] for x in rows.values()]
    return np.clip(values / np.outer(down, across), -1.0, 1.0)  # beyond by rounding only


def _hsic(a: _Centred, b: _Centred, unbiased: bool) -> float:
    """Return HSIC but for a factor that depends on N alone.

    HSIC₁ is written for Gram matrices without their diagonal. With centred features its row sums
    are minus that diagonal, and so it needs no more than ⟨K, L⟩ and the two diagonals.
    """
    together = float(_dot(a, b))
    if not unbiased:
        return together
    n = len(a.energy)
    diagonals = float(a.energy @ b.energy)
    traces = float(a.energy.sum() * b.energy.sum())
    return together - n / (n - 2) * diagonals + traces / ((n - 1) * (n - 2))


def _dot(a: _Centred, b: _Centred) -> Tensor:
    """Return ⟨K, L⟩ = ‖aᵀ b‖², by the smaller of features and Gram matrix on each side."""
    if a.features is not None and b.features is not None:
        return (a.features.T @ b.features).square().sum()
    if a.gram is not None and b.gram is not None:
        return (a.gram * b.gram).sum()
    if a.features is not None:
        a, b = b, a
    assert a.gram is not None and b.features is not None
    return (b.features * (a.gram @ b.features)).sum()


def _own_hsic(name: str, x: _Centred, unbiased: bool) -> float:
    value = _hsic(x, x, unbiased)
    if value <= 1e-12 * float(x.energy.sum()) ** 2:
        raise ValueError(
            f"{name}: the features differ in one sample only, so the debiased estimate is 0 / 0; "
            "give more samples or use unbiased=False"
        )
    return value


def _numbers(name: str, features: Array) -> Tensor:
    x = torch.as_tensor(features).detach().cpu()
    if x.is_complex() or x.ndim < 2 or 0 in x.shape:
        raise ValueError(
            f"{name}: {x.dtype} {list(x.shape)}, expected real features [N, ...] with at least one "
            "sample and one feature"
        )
    x = x.double()
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name}: NaN or infinite values; has the model diverged?")
    return x


def _labelled(split: str, features: Array, labels: Array) -> tuple[Tensor, Tensor]:
    """Return pooled features [N, d] and labels [N]."""
    name = f"{split}_features"
    x = _numbers(name, features)
    pooled = {2: (), 3: (1,), 4: (2, 3)}
    if x.ndim not in pooled:
        raise ValueError(
            f"{name}: shape {list(x.shape)}, expected [N, d], [N, n, d] or [N, c, h, w]"
        )
    x = x.mean(pooled[x.ndim]) if x.ndim > 2 else x
    y = torch.as_tensor(labels).detach().cpu()
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or y.shape != x.shape[:1]:
        raise ValueError(
            f"{split}_labels: {y.dtype} {list(y.shape)}, expected [{len(x)}] whole class numbers, "
            f"one for each sample of {name}"
        )
    if int(y.min()) < 0:
        raise ValueError(
            f"{split}_labels: {int(y.min())} is no class: leave unlabelled samples (-1) out"
        )
    return x, y.long()
