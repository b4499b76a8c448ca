"""Other divergences between tempered softmaxes than KL(teacher ‖ student): reverse, and symmetric.

At a high temperature the two sides differ by about 1 / T and the divergence is about 1 / T², far
below the rounding of log-probabilities. Where all classes of a row are near each other (`NEAR`),
the difference of the logits is taken, and functions of it that begin with its square.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NEAR = 0.5  # as a difference of log-probabilities


def reverse_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(p_S ‖ p_T) of softmax(logits / T) ``[..., C]``, for each row, without T²."""
    return _Reverse.apply(*_sides(student, teacher, temperature))


def jensen_shannon_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """½ KL(p_T ‖ m) + ½ KL(p_S ‖ m), m = ½ (p_T + p_S), of softmax(logits / T), without T²."""
    return _JensenShannon.apply(*_sides(student, teacher, temperature))


def _sides(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    log_p = F.log_softmax(teacher / temperature, dim=-1)
    log_q = F.log_softmax(student / temperature, dim=-1)
    return log_p, log_q, (student - teacher) / temperature


def _log_ratio(log_p: Tensor, log_q: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
    """log q − log p, and whether it is near 0 in all of a row: then its *relative* error is small.

    q ∝ p · e^gap, so it is gap − log Σ p e^gap; the mean of gap is taken out twice, because a large
    one leaves its rounding behind.
    """
    plain = log_q - log_p
    near = (plain.abs() < NEAR).all(-1, keepdim=True)
    p, x = log_p.exp(), gap.where(near, 0.0)
    for _ in range(2):
        x = x - (p * x).sum(-1, keepdim=True)
    x = x - (p * x.expm1()).sum(-1, keepdim=True).log1p()
    return x.where(near, plain), near


class _Reverse(torch.autograd.Function):
    """By autograd the gradient would cancel; it is q · (r − Σ q r) with r = log q − log p."""

    generate_vmap_rule = True

    @staticmethod
    def forward(log_p: Tensor, log_q: Tensor, gap: Tensor) -> Tensor:
        ratio, near = _log_ratio(log_p, log_q, gap)
        close = log_p.exp() * _second_order(ratio.where(near, 0.0))
        return close.where(near, log_q.exp() * ratio).sum(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grown: Tensor) -> tuple[None, None, Tensor]:
        log_p, log_q, gap = ctx.saved_tensors
        ratio, _ = _log_ratio(log_p, log_q, gap)
        return None, None, grown.unsqueeze(-1) * _centred(log_q.exp(), ratio)


class _JensenShannon(torch.autograd.Function):
    """With u = ½ (log q − log p) it is ½ Σ (q − p) u − (p + q) log cosh u.

    The gradient is ½ q · (v − Σ q v) with v = log q − log m = u − log cosh u.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(log_p: Tensor, log_q: Tensor, gap: Tensor) -> Tensor:
        ratio, near = _log_ratio(log_p, log_q, gap)
        p, q, small = log_p.exp(), log_q.exp(), ratio.where(near, 0.0)
        close = p * small.expm1() * small / 2 - (p + q) * _log_cosh(small / 2)
        log_m = _log_mean(log_p, log_q)
        far = p * (log_p - log_m) + q * (log_q - log_m)
        return close.where(near, far).sum(-1) / 2

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grown: Tensor) -> tuple[None, None, Tensor]:
        log_p, log_q, gap = ctx.saved_tensors
        ratio, near = _log_ratio(log_p, log_q, gap)
        half = ratio.where(near, 0.0) / 2
        above = (half - _log_cosh(half)).where(near, log_q - _log_mean(log_p, log_q))
        return None, None, grown.unsqueeze(-1) * _centred(log_q.exp(), above) / 2


def _centred(q: Tensor, values: Tensor) -> Tensor:
    return q * (values - (q * values).sum(-1, keepdim=True))


def _log_mean(log_p: Tensor, log_q: Tensor) -> Tensor:
    return torch.logaddexp(log_p, log_q) - math.log(2)


def _log_cosh(u: Tensor) -> Tensor:
    """For abs(u) up to 1, with a small relative error."""
    return (2 * (u / 2).sinh().square()).log1p()


def _second_order(x: Tensor) -> Tensor:
    """x eˣ − eˣ + 1 for abs(x) up to `NEAR`, by its series Σ x^k (k − 1) / k! from k = 2."""
    last = 16 if x.dtype == torch.float64 else 9
    series = torch.full_like(x, (last - 1) / math.factorial(last))
    for power in range(last - 1, 1, -1):
        series = series * x + (power - 1) / math.factorial(power)
    return series * x.square()
