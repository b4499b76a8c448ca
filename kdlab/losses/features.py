"""Losses between inner layers of a student and of a teacher: values, maps, flows, distributions.

Conventions of all of them: feature maps ``[B, c, h, w]``; ``reduction="none"`` gives one value per
image ``[B]``; the teacher's side is detached; half precision is computed, and returned, in float32.
Shapes must fit already: making them fit (a regressor, a resizing) is the work of the distillers.
What counts as an activation or not is in `kdlab.losses.boundaries`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.losses.checks import (
    check_features,
    check_positive,
    check_reduction,
    check_temperature,
    compute_dtype,
    prepare_features,
    reduce,
    unit,
    values_are_checked,
)
from kdlab.losses.divergences import tempered_divergence

ATTENTION_NORMS = ("released", "paper")


def hint_loss(student: Tensor, teacher: Tensor, *, reduction: str = "mean") -> Tensor:
    """Hint: the mean squared difference of two layers, 1/n · ‖s − t‖² with n features per image.

    The paper writes ½‖·‖², a sum over the features; a mean lets one weight serve layers of any
    size, and is what later benchmarks compute.

    Args:
        student: features ``[B, c, h, w]``, ``[B, N, d]`` or ``[B, d]``, after the regressor.
        teacher: features of the same shape, finite.
        reduction: "mean" over the images, or "none": ``[B]``.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; an empty batch; a teacher with NaN or
            infinite features; an unknown reduction.

    Source: Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets",
    ICLR 2015, arXiv:1412.6550. Derived in lesson 02.
    """
    check_reduction(reduction)
    student, teacher = prepare_features(student, teacher, (2, 3, 4))
    square = F.mse_loss(student, teacher, reduction="none")
    return reduce(square.flatten(1).mean(1), None, reduction)


def attention_map(features: Tensor, power: float = 2.0) -> Tensor:
    """Where a layer looks: A = Σ_c |f_c|^p at every place, scaled to ‖A‖₂ = 1 for each image.

    An image whose features are all 0 has the map 0, with a gradient of 0.

    Args:
        features: ``[B, c, h, w]``.
        power: p ≥ 1; a higher one stresses the strongest channels.

    Returns:
        ``[B, h, w]``, float32 (float64 for float64). Gradients flow; detach nothing here.

    Raises:
        ValueError: no feature map; p < 1.

    Source: as `attention_transfer_loss`. Derived in lesson 02.
    """
    check_features("features", features)
    check_positive("power", power)
    if power < 1:
        raise ValueError(f"power: {power!r}, expected at least 1: below it |f|^p has no slope at 0")
    values = features.to(compute_dtype(features))
    # The map has no scale, so dividing by the largest entry changes nothing but keeps |f|^p, whose
    # square is needed, in range.
    fixed, places = values.detach(), (1, 2, 3)
    peak = torch.maximum(fixed.amax(places, keepdim=True), -fixed.amin(places, keepdim=True))
    scaled = values / peak.clamp(min=1e-12)
    # fewer tables as large as the features, which take most of the time
    energy = (scaled.square() if power == 2 else scaled.abs().pow(power)).sum(1)
    return unit(energy.flatten(1), 1).view_as(energy)


def attention_transfer_loss(
    student: Tensor,
    teacher: Tensor,
    power: float = 2.0,
    *,
    norm: str = "released",
    reduction: str = "mean",
) -> Tensor:
    """Attention transfer: the distance between two `attention_map`s A_S, A_T of unit length.

    Two definitions are in use, and weights for one do not fit the other:

    - "released", the authors' code and all benchmarks: the mean ‖A_S − A_T‖² / (h · w);
    - "paper", equation (2): the length ‖A_S − A_T‖₂, not squared.

    For each image paper² = h · w · released. The paper's gradient has the same size however close
    the maps are (it is 0 only where they are equal); the released one fades.

    Args:
        student, teacher: ``[B, c, h, w]``; the channels may differ.
        power: p of the map, at least 1; 2 in the paper's experiments.
        norm: "released" or "paper".
        reduction: "mean" or "none": ``[B]``.

    Raises:
        ValueError: as `hint_loss`; p < 1; an unknown norm.

    Source: Zagoruyko, Komodakis, "Paying More Attention to Attention: Improving the Performance of
    Convolutional Neural Networks via Attention Transfer", ICLR 2017, arXiv:1612.03928. Derived in
    lesson 02.
    """
    check_reduction(reduction)
    if norm not in ATTENTION_NORMS:
        raise ValueError(f'norm: {norm!r}, expected "released" or "paper"')
    student, teacher = prepare_features(student, teacher, any_channels=True)
    gap = attention_map(student, power) - attention_map(teacher, power)
    square = gap.square().flatten(1)
    if norm == "released":
        return reduce(square.mean(1), None, reduction)
    total = square.sum(1)
    # sqrt has no gradient at 0; a masked root has the subgradient 0 there.
    equal = total == 0
    return reduce(total.masked_fill(equal, 1.0).sqrt().masked_fill(equal, 0.0), None, reduction)


def flow_matrix(first: Tensor, second: Tensor) -> Tensor:
    """How a network flows from one layer to another: G = F₁ F₂ᵀ / (h · w), the FSP matrix.

    One batched matrix product of ``[B, c₁, h·w]`` and ``[B, h·w, c₂]``.

    Args:
        first: ``[B, c1, h, w]``.
        second: ``[B, c2, h, w]``, of the same size.

    Returns:
        ``[B, c1, c2]``, float32 (float64 for float64). Gradients flow; detach nothing here.

    Raises:
        ValueError: no feature maps, or maps whose B, h or w differ.

    Source: as `flow_loss`.
    """
    check_features("first", first)
    check_features("second", second)
    if first.shape[:1] + first.shape[2:] != second.shape[:1] + second.shape[2:]:
        raise ValueError(
            f"second: shape {list(second.shape)}, expected B, h and w of first, "
            f"{list(first.shape)}: pool the larger map (the distillers do so)"
        )
    dtype = compute_dtype(first, second)
    places = first.shape[2] * first.shape[3]
    return first.to(dtype).flatten(2) @ second.to(dtype).flatten(2).mT / places


def flow_loss(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], *, reduction: str = "mean"
) -> Tensor:
    """FSP: the mean squared difference of the two networks' `flow_matrix`, 1/(c₁c₂) · ‖G_S − G_T‖².

    The paper sums over the entries of G; the mean, as in later benchmarks, lets one weight serve
    layers of any width.

    Args:
        student: the maps of two layers, ``[B, c1, h, w]`` and ``[B, c2, h, w]``.
        teacher: the same of the teacher; c1 and c2 as the student's, h and w may be others.
        reduction: "mean" or "none": ``[B]``.

    Raises:
        ValueError: as `flow_matrix` and `hint_loss`; other channels.

    Source: Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation: Fast Optimization, Network
    Minimization and Transfer Learning", CVPR 2017 (not on arXiv). Compared in lesson 02.
    """
    check_reduction(reduction)
    mine, theirs = flow_matrix(*student), flow_matrix(*teacher)
    mine, theirs = prepare_features(mine, theirs, (3,))
    return reduce((mine - theirs).square().flatten(1).mean(1), None, reduction)


def neuron_selectivity_loss(student: Tensor, teacher: Tensor, *, reduction: str = "mean") -> Tensor:
    """NST: squared maximum mean discrepancy (MMD²) between the sets of channels of two maps.

    Each channel is a point: its map f, flattened and of unit length. With the kernel
    k(f, g) = (f · g)², the paper's polynomial one with d = 2 and c = 0, over c_S and c_T channels,

    MMD² = 1/c_S² Σ k(s, s') + 1/c_T² Σ k(t, t') − 2/(c_S c_T) Σ k(s, t).

    A sum of squared products is the squared norm of a Gram matrix, so no pair of channels is ever
    formed: the cost is that of a batched matrix product. With S, T the matrices ``[c, h·w]``
    this is ‖SᵀS / c_S − TᵀT / c_T‖², of size (h·w)², or, where the channels are
    fewer than the places, the three norms of SSᵀ, TTᵀ and STᵀ. A channel that is 0 everywhere
    counts as the point 0, with a gradient of 0.

    Args:
        student, teacher: ``[B, c, h, w]``; the channels may differ.
        reduction: "mean" or "none": ``[B]``.

    Raises:
        ValueError: as `hint_loss`.

    Source: Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
    2017, arXiv:1707.01219. Compared in lesson 02.
    """
    check_reduction(reduction)
    student, teacher = prepare_features(student, teacher, any_channels=True)
    # Divided by √c, the squared norms below carry the factors 1/c² and 1/(c_S c_T).
    mine, theirs = (unit(x.flatten(2), 2) * x.shape[1] ** -0.5 for x in (student, teacher))
    if mine.shape[2] <= max(mine.shape[1], theirs.shape[1]):
        return reduce(_squared_norm(mine.mT @ mine - theirs.mT @ theirs), None, reduction)
    own = _squared_norm(mine @ mine.mT) + _squared_norm(theirs @ theirs.mT)
    return reduce(own - 2 * _squared_norm(mine @ theirs.mT), None, reduction)


def _squared_norm(matrices: Tensor) -> Tensor:
    return matrices.square().sum((1, 2))


def variational_information_loss(
    mean: Tensor, teacher: Tensor, variance: Tensor, *, reduction: str = "mean"
) -> Tensor:
    """VID: −log q(t | s) of a normal distribution, ½ (log σ_c² + (t − μ)² / σ_c²), as a mean.

    A lower bound on the mutual information of the two layers is maximised: the student's features
    predict the teacher's, μ = μ(s), and each channel c has a learned variance σ_c², so that what
    cannot be predicted weighs less. The constant ½ log 2π is left out. The paper sums over
    the features; the mean is what benchmarks use. At the best variance, the mean of
    (t − μ)², the value is ½ (log σ² + 1): it may be negative.

    Args:
        mean: the student's prediction μ ``[B, c, h, w]`` (or ``[B, c]``).
        teacher: features t of the same shape.
        variance: σ² ``[c]``, above 0, such as softplus(α) + ε with a trained α.
        reduction: "mean" or "none": ``[B]``.

    Raises:
        ValueError: as `hint_loss`; a variance of another shape, or not above 0.

    Source: Ahn, Hu, Damianou, Lawrence, Dai, "Variational Information Distillation for Knowledge
    Transfer", CVPR 2019, arXiv:1904.05835. Compared in lesson 02.
    """
    check_reduction(reduction)
    mean, teacher = prepare_features(mean, teacher, (2, 4))
    if variance.shape != mean.shape[1:2]:
        raise ValueError(
            f"variance: shape {list(variance.shape)}, expected {list(mean.shape[1:2])}, "
            "one variance per channel"
        )
    if values_are_checked() and not bool((variance > 0).all()):
        raise ValueError(
            f"variance: {float(variance.min()):g} among them, expected values above 0: "
            "use softplus(α) + ε"
        )
    variance = variance.to(mean.dtype).view(-1, *[1] * (mean.dim() - 2))
    values = 0.5 * (variance.log() + (teacher - mean).square() / variance)
    return reduce(values.flatten(1).mean(1), None, reduction)


def channel_wise_loss(
    student: Tensor, teacher: Tensor, temperature: float = 4.0, *, reduction: str = "mean"
) -> Tensor:
    """CWD: T² · KL(teacher ‖ student) of each channel's softmax over the places, averaged.

    With φ(f) = softmax(f_c / T) over the h · w places of channel c:
    T² / C · Σ_c KL(φ(t_c) ‖ φ(s_c)). Each channel says where, never how much: adding a constant to
    a channel changes nothing.

    Args:
        student, teacher: ``[B, c, h, w]``.
        temperature: T from 0.001 to 1e9.
        reduction: "mean" or "none": ``[B]``.

    Raises:
        ValueError: as `hint_loss`; T out of its range.

    Source: Shu, Liu, Gao, Yan, Shen, "Channel-wise Knowledge Distillation for Dense Prediction",
    ICCV 2021, arXiv:2011.13256. Compared in lesson 02.
    """
    check_reduction(reduction)
    check_temperature("temperature", temperature)
    student, teacher = prepare_features(student, teacher)
    values = tempered_divergence(student.flatten(2), teacher.flatten(2), temperature)
    return reduce(temperature**2 * values.mean(1), None, reduction)
