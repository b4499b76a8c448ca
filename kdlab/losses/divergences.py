"""KL divergences that keep all their digits, however close the two distributions are.

At a temperature T the two sides of a soft-target loss differ by about 1 / T and their divergence is
about 1 / T², so that log-probabilities, which are rounded at about 1e-7, say nothing of it from
T ≈ 1000 on. Here the difference of the logits is formed first, and nothing is subtracted later that
could cancel.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Up to this temperature the difference of log-probabilities, which is faster, is accurate enough:
# to about 1e-7 · (T / difference of the logits)².
PLAIN_UP_TO = 4.0
SMALL = 0.5  # below it e^x - 1 - x is summed as a series
LARGEST_POWER = 60.0  # e to this, times many classes, is a number of single precision


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ_c p_c (log p_c − log q_c) of log-probabilities ``[..., C]``, in nats.

    Both sides stay logarithms, so that a probability that underflows to 0 contributes 0, not NaN.
    Written out, because ``F.kl_div`` has no batching rule and is slow under ``torch.vmap``.
    """
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def tempered_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(softmax(teacher / T) ‖ softmax(student / T)) of logits ``[..., C]``, without T².

    Accurate at every temperature that `check_temperature` lets pass.
    """
    log_p = F.log_softmax(teacher / temperature, dim=-1)
    if temperature <= PLAIN_UP_TO:
        return kl_divergence(log_p, F.log_softmax(student / temperature, dim=-1))
    return divergence(log_p, (student - teacher) / temperature)


def log_softmax_ratio(z: Tensor) -> Tensor:
    """log(C · softmax(z)) of ``[..., C]`` with a small *relative* error where it is near 0.

    It is x − log mean eˣ with x = z − mean(z), and log mean eˣ = log1p(mean (eˣ − 1 − x)) is of
    second order. A logarithm of a softmax is rounded at 1e-7 instead.
    """
    x = z - z.mean(-1, keepdim=True)
    wide = x.detach().abs().amax(-1, keepdim=True) > SMALL
    near = x.masked_fill(wide, 0.0)
    near = near - (near.expm1() - near).mean(-1, keepdim=True).log1p()
    return torch.where(wide, F.log_softmax(x, dim=-1) + math.log(z.shape[-1]), near)


def divergence(log_p: Tensor, gap: Tensor) -> Tensor:
    """KL(p ‖ q) with q_c ∝ p_c · exp(gap_c), for each row: ``[..., C]`` to ``[...]``, in nats.

    For logits t and s at a temperature T take log_p = log_softmax(t / T) and gap = (s − t) / T.
    With x = gap − Σ p · gap it is log Σ p eˣ = log1p(Σ p (eˣ − 1 − x)), a sum without a negative
    term, and its derivative by gap_c is q_c − p_c = p_c · expm1(x_c − KL). Both are accurate to a
    few roundings. A constant added to a row of ``gap`` changes nothing.

    Args:
        log_p: log-probabilities ``[..., C]``; not differentiated.
        gap: finite differences of the same shape and dtype. Gradients flow, also twice.
    """
    return _Divergence.apply(log_p.detach(), gap)


class _Divergence(torch.autograd.Function):
    """A function of its own, because the derivative of e^x - 1 - x by autograd would cancel."""

    generate_vmap_rule = True

    @staticmethod
    def forward(log_p: Tensor, gap: Tensor) -> Tensor:
        p = log_p.exp()
        x = _centred(p, gap)
        tilted = log_p + x  # log of p eˣ, which may be large where p is tiny
        excess = (tilted.amax(-1, keepdim=True) - LARGEST_POWER).clamp(min=0)
        far = (tilted - excess).exp() - p * (1 + x)
        near = p * _second_order(x)
        total = near.where(x.abs() < SMALL, far).sum(-1)
        return total.log1p() + excess.squeeze(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grown: Tensor) -> tuple[None, Tensor]:
        log_p, gap, value = ctx.saved_tensors
        p = log_p.exp()
        y = _centred(p, gap) - value.unsqueeze(-1)  # log q - log p
        far = (log_p + y).exp() - p
        slope = far.where(y > SMALL, p * y.clamp(max=SMALL).expm1())
        return None, grown.unsqueeze(-1) * slope


def _centred(p: Tensor, gap: Tensor) -> Tensor:
    """``gap`` minus its mean under p; twice, because a large mean leaves its rounding behind."""
    for _ in range(2):
        gap = gap - (p * gap).sum(-1, keepdim=True)
    return gap


def _second_order(x: Tensor) -> Tensor:
    """e^x - 1 - x for abs(x) up to `SMALL`, by its series x² (1/2! + x/3! + x²/4! + ...)."""
    last = 16 if x.dtype == torch.float64 else 8
    series = x / math.factorial(last) + 1 / math.factorial(last - 1)
    for order in range(last - 2, 1, -1):
        series = series * x + 1 / math.factorial(order)
    return series * x.square()
