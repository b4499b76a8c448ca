"""Losses between inner layers that look at signs, factors and sizes instead of single values.

Conventions as in `kdlab.losses.features`: one value per image with ``reduction="none"``, the
teacher detached, half precision computed in float32, shapes that fit already.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.losses.checks import (
    check_positive,
    check_reduction,
    prepare_features,
    reduce,
    unit,
    values_are_checked,
)

LEVELS = (4, 2, 1)


def activation_boundary_loss(
    student: Tensor, teacher: Tensor, margin: float = 1.0, *, reduction: str = "mean"
) -> Tensor:
    """AB: is each neuron on the same side of 0, with a margin? A squared hinge, summed.

    With pre-activations s, t and margin m, over all neurons of an image:
    Σ [t > 0] · max(0, m − s)² + [t ≤ 0] · max(0, m + s)². Only the sign of t counts.

    Args:
        student: pre-activations ``[B, c, h, w]``, ``[B, N, d]`` or ``[B, d]``: what goes *into* the
            ReLU.
        teacher: pre-activations of the same shape.
        margin: m > 0.
        reduction: "mean" over the images, or "none": ``[B]``.

    Raises:
        ValueError: as `hint_loss`; a margin ≤ 0.

    Source: Heo, Lee, Yun, Choi, "Knowledge Transfer via Distillation of Activation Boundaries
    Formed by Hidden Neurons", AAAI 2019, arXiv:1811.03233. Compared in lesson 02.
    """
    check_reduction(reduction)
    check_positive("margin", margin)
    student, teacher = prepare_features(student, teacher, (2, 3, 4))
    towards = torch.where(teacher > 0, student, -student)
    return reduce(F.relu(margin - towards).square().flatten(1).sum(1), None, reduction)


def factor_transfer_loss(student: Tensor, teacher: Tensor, *, reduction: str = "mean") -> Tensor:
    """FT: mean absolute difference of two factors, each of unit length: 1/n · ‖s/‖s‖ − t/‖t‖‖₁.

    The factors themselves are compared, with their signs. A public benchmark
    compares their squares instead, for which f and −f are the same. A factor of
    zeros stays 0, with a gradient of 0. The paper writes a sum; the mean over the n entries is its
    released code's, and the weight 500 belongs to it.

    Args:
        student: the translator's factor ``[B, k, h, w]``, ``[B, N, d]`` or ``[B, d]``.
        teacher: the paraphraser's factor, of the same shape.
        reduction: "mean" or "none": ``[B]``.

    Raises:
        ValueError: as `hint_loss`.

    Source: Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor
    Transfer", NeurIPS 2018, arXiv:1802.04977. Compared in lesson 02.
    """
    check_reduction(reduction)
    student, teacher = prepare_features(student, teacher, (2, 3, 4))
    gap = unit(student.flatten(1), 1) - unit(teacher.flatten(1), 1)
    return reduce(gap.abs().mean(1), None, reduction)


def overhaul_loss(
    student: Tensor, teacher: Tensor, margin: Tensor, *, reduction: str = "mean"
) -> Tensor:
    """OFD: partial squared distance to the teacher's margin ReLU, summed over the features.

    The target is max(t, m_c) with a negative margin m_c per channel: what is deep below 0 is
    forgotten by the ReLU anyway, so only "clearly negative" is asked of the student. With t̂ the
    target, a feature counts (s − t̂)², but 0 where s ≤ t̂ ≤ 0.

    Args:
        student: pre-activations ``[B, c, h, w]``.
        teacher: pre-activations of the same shape.
        margin: m ``[c]``, none above 0, such as `batch_norm_margin`.
        reduction: "mean" over the images, or "none": ``[B]``.

    Raises:
        ValueError: as `hint_loss`; a margin of another shape, or above 0.

    Source: Heo, Kim, Yun, Park, Kwak, Choi, "A Comprehensive Overhaul of Feature Distillation",
    ICCV 2019, arXiv:1904.01866. Compared in lesson 02.
    """
    check_reduction(reduction)
    student, teacher = prepare_features(student, teacher)
    if margin.shape != teacher.shape[1:2]:
        raise ValueError(
            f"margin: shape {list(margin.shape)}, expected {list(teacher.shape[1:2])}, "
            "one margin per channel"
        )
    if values_are_checked() and not bool((margin <= 0).all()):
        raise ValueError(
            f"margin: {float(margin.max()):g} among them, expected none above 0: "
            "it is the mean of a channel's negative values"
        )
    target = torch.maximum(teacher, margin.detach().to(teacher.dtype).view(-1, 1, 1))
    counts = (student > target) | (target > 0)
    values = (student - target).square().where(counts, 0.0)
    return reduce(values.flatten(1).sum(1), None, reduction)


@torch.no_grad()
def batch_norm_margin(norm: nn.Module) -> Tensor:
    """E[x | x < 0] of each channel after a batch norm, read from its parameters: ``[c]``.

    After the norm a channel is about normal with mean β and deviation σ = |γ|. With a = β / σ, the
    normal density φ and distribution Φ, E[x | x < 0] = β − σ φ(a) / Φ(−a) = −σ (h(a) − a) with the
    hazard h(a) = φ(a) / Φ(−a).

    Both φ and Φ(−a) vanish for large a, so h comes from the scaled erfcx, and beyond a = 8, where
    h(a) − a cancels, from the continued fraction 1 / (a + 2 / (a + 3 / (a + …))). The authors' code
    takes −3σ instead where Φ(−a) ≤ 0.001; the exact value there is only −0.3σ, and it falls with a.
    With γ = 0 the limit is min(β, 0).

    Args:
        norm: a batch norm with scale and shift, such as ``nn.BatchNorm2d``.

    Raises:
        ValueError: a module without scale and shift.

    Source: as `overhaul_loss`; the continued fraction is Laplace's.
    """
    scale, shift = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if scale is None or shift is None:
        raise ValueError(
            f"norm: {norm!r} has no scale and shift, expected a batch norm with affine=True"
        )
    sigma = scale.double().abs().clamp(min=1e-30)
    a = shift.double() / sigma
    hazard = math.sqrt(2 / math.pi) / torch.special.erfcx(a / math.sqrt(2))
    tail = torch.zeros_like(a)
    for step in range(60, 0, -1):
        tail = step / (a.clamp(min=8.0) + tail)
    return (-sigma * torch.where(a > 8, tail, hazard - a)).to(scale.dtype)


def hierarchical_context_loss(
    student: Tensor, teacher: Tensor, *, reduction: str = "mean"
) -> Tensor:
    """HCL: mean squared difference at several scales, from every place up to the whole image.

    Both maps are compared as they are and average-pooled to 4×4, 2×2 and 1×1, with the weights 1,
    ½, ¼, ⅛ divided by their sum. A scale that is not smaller than the map is left out, and the
    next one takes its weight.

    Args:
        student, teacher: ``[B, c, h, w]``.
        reduction: "mean" or "none": ``[B]``.

    Raises:
        ValueError: as `hint_loss`.

    Source: Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021,
    arXiv:2104.09044; scales and weights are those of the released code. Compared in lesson 02.
    """
    check_reduction(reduction)
    student, teacher = prepare_features(student, teacher)
    gap = student - teacher  # pooling is linear, so the difference is pooled once
    height, width = gap.shape[2:]
    sizes = [(min(n, height), min(n, width)) for n in LEVELS if n < max(height, width)]
    scales = [gap, *(F.adaptive_avg_pool2d(gap, size) for size in sizes)]
    weights = 0.5 ** torch.arange(len(scales), dtype=gap.dtype, device=gap.device)
    values = torch.stack([scale.square().flatten(1).mean(1) for scale in scales], dim=1)
    return reduce(values @ (weights / weights.sum()), None, reduction)
