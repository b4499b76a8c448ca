"""Losses between the attention of two transformers, and between their hidden states.

Conventions of all of them: token vectors ``[B, N, d]``; attention scores ``[B, h, N, N]``, a row
for each token that asks, a column for each that is asked, before the softmax; a mask ``[B, N]``,
bool, True for a token and False for padding. Padding takes part in no softmax and in no mean, and
gets a gradient of exactly 0, whatever stands there. ``reduction="none"`` gives one value per sample
``[B]``, the mean over its tokens; the teacher's side is detached; half precision is computed, and
returned, in float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.losses.checks import (
    check_count,
    check_features,
    check_reduction,
    compute_dtype,
    prepare,
    reduce,
)
from kdlab.losses.divergences import kl_divergence


def self_attention_relation(x: Tensor, relation_heads: int, mask: Tensor | None = None) -> Tensor:
    """Whom each token resembles: log softmax(X Xᵀ / √d_r) of each relation head.

    The d features are cut into relation heads of d_r = d / relation_heads features each, whatever
    heads the network itself has. So two networks of any widths give tables of one shape.

    Args:
        x: queries, keys, values or any other token vectors ``[B, N, d]``.
        relation_heads: how many heads, a divisor of d.
        mask: bool ``[B, N]``, True = a token.

    Returns:
        Log-probabilities ``[B, relation_heads, N, N]``, float32 (float64 for float64). At padded
        columns they are so low that the probability is 0, yet finite; padded rows mean nothing.
        Gradients flow; detach nothing here.

    Raises:
        ValueError: no token vectors; relation heads that do not divide d; a mask that does not fit.

    Source: as `relation_loss`.
    """
    check_features("x", x, (3,))
    _check_heads("x", x, relation_heads)
    _check_token_mask(mask, x)
    x = x.to(compute_dtype(x))
    return _relation(x if mask is None else x.where(mask.unsqueeze(-1), 0.0), relation_heads, mask)


def relation_loss(
    student: Tensor,
    teacher: Tensor,
    relation_heads: int,
    mask: Tensor | None = None,
    *,
    reduction: str = "mean",
) -> Tensor:
    """Multi-head self-attention relations: mean KL(R_T ‖ R_S) of `self_attention_relation`.

    With R = softmax(X Xᵀ / √d_r) for each of the A relation heads: 1/(A·n) Σ_heads Σ_tokens KL over
    a sample's n tokens. MiniLMv2 adds this up for queries, keys and values; MiniLM's relation of
    values is the same with the network's own heads. Only inner products are compared: turning all
    vectors of a relation head alike, in one network, changes nothing. With a single relation
    head the order of a network's own heads does not matter either.

    Args:
        student: queries, keys, values or hidden states ``[B, N, d]``.
        teacher: the same of the teacher ``[B, N, d']``; the widths may differ.
        relation_heads: A, a divisor of both widths; the paper takes 48 for a width of 768.
        mask: bool ``[B, N]``, True = a token.
        reduction: "mean" over the samples that have a token, or "none": ``[B]``.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; an empty batch; relation heads that
            do not divide a width; a teacher with NaN or infinity at a token; an unknown reduction.

    Sources: Wang, Bao, Huang, Dong, Wei, "MiniLMv2: Multi-Head Self-Attention Relation Distillation
    for Compressing Pretrained Transformers", Findings of ACL 2021, arXiv:2012.15828; Wang, Wei,
    Dong, Bao, Yang, Zhou, "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression
    of Pre-Trained Transformers", NeurIPS 2020, arXiv:2002.10957. Derived in lesson 04.
    """
    check_reduction(reduction)
    _check_alike(student, teacher, 3, (0, 1))
    _check_heads("student", student, relation_heads)
    _check_heads("teacher", teacher, relation_heads)
    _check_token_mask(mask, student)
    student, teacher = prepare(student, teacher, mask)
    log_s, log_t = (_relation(x, relation_heads, mask) for x in (student, teacher))
    return _mean_over_tokens(kl_divergence(log_t, log_s).mean(1), mask, reduction)


def attention_distribution_loss(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, reduction: str = "mean"
) -> Tensor:
    """Self-attention distributions: mean KL(A_T ‖ A_S), A = softmax of the scores Q Kᵀ / √d_k.

    1/(h·n) Σ_heads Σ_tokens KL over the h heads and a sample's n tokens, head by head: both
    networks need the same number. It takes the scores and not the probabilities, of which the
    smallest are rounded to 0.

    Args:
        student: scores ``[B, h, N, N]``, finite at pairs of tokens.
        teacher: scores of the same shape.
        mask: bool ``[B, N]``, True = a token.
        reduction: "mean" over the samples that have a token, or "none": ``[B]``.

    Raises:
        ValueError: as `relation_loss`; other heads.

    Source: Wang, Wei, Dong, Bao, Yang, Zhou, "MiniLM: Deep Self-Attention Distillation for
    Task-Agnostic Compression of Pre-Trained Transformers", NeurIPS 2020, arXiv:2002.10957. Derived
    in lesson 04.
    """
    check_reduction(reduction)
    student, teacher = _prepare_scores(student, teacher, mask)
    log_s, log_t = (_log_attention(x, mask) for x in (student, teacher))
    return _mean_over_tokens(kl_divergence(log_t, log_s).mean(1), mask, reduction)


def attention_score_loss(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, reduction: str = "mean"
) -> Tensor:
    """Attention scores: mean (s − t)² over the heads and over all pairs of a sample's tokens.

    TinyBERT compares what goes into the softmax. A number added to a whole row, which changes no
    probability, counts here.

    Args:
        student: scores ``[B, h, N, N]``, finite at pairs of tokens.
        teacher: scores of the same shape.
        mask: bool ``[B, N]``, True = a token.
        reduction: "mean" over the samples that have a token, or "none": ``[B]``.

    Raises:
        ValueError: as `attention_distribution_loss`.

    Source: Jiao, Yin, Shang, Jiang, Chen, Li, Wang, Liu, "TinyBERT: Distilling BERT for Natural
    Language Understanding", Findings of EMNLP 2020, arXiv:1909.10351. Compared in lesson 04.
    """
    check_reduction(reduction)
    student, teacher = _prepare_scores(student, teacher, mask)
    # padded rows and columns are 0 on both sides, so only the number of rows has to be mended
    rows = F.mse_loss(student, teacher, reduction="none").mean(1).sum(-1)
    return _mean_over_tokens(rows / _lengths(rows, mask), mask, reduction)


def hidden_state_loss(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, reduction: str = "mean"
) -> Tensor:
    """Hidden states: mean (s − t)² over a sample's tokens and the d features.

    Args:
        student: hidden states ``[B, N, d]``, after a linear map to the teacher's width.
        teacher: hidden states of the same shape, finite at tokens.
        mask: bool ``[B, N]``, True = a token.
        reduction: "mean" over the samples that have a token, or "none": ``[B]``.

    Raises:
        ValueError: as `relation_loss`; other widths.

    Source: Jiao, Yin, Shang, Jiang, Chen, Li, Wang, Liu, "TinyBERT: Distilling BERT for Natural
    Language Understanding", Findings of EMNLP 2020, arXiv:1909.10351. Compared in lesson 04.
    """
    check_reduction(reduction)
    _check_alike(student, teacher, 3, (0, 1, 2))
    _check_token_mask(mask, student)
    student, teacher = prepare(student, teacher, mask)
    rows = F.mse_loss(student, teacher, reduction="none").mean(-1)
    return _mean_over_tokens(rows, mask, reduction)


def _relation(x: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    parts = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    # scaled on both sides, so that large features overflow no sooner than their product must
    parts = parts * parts.shape[-1] ** -0.25
    return _log_attention(parts @ parts.mT, mask)


def _log_attention(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Log-probabilities along the last axis, those of padded columns very low but finite.

    Minus infinity would make 0 · (∞ − ∞) in a divergence, and NaN where a sample has no token.
    """
    if mask is not None:
        lowest = torch.finfo(scores.dtype).min / 2
        scores = scores.masked_fill(~mask[:, None, None, :], lowest)
    return F.log_softmax(scores, dim=-1)


def _lengths(rows: Tensor, mask: Tensor | None) -> Tensor:
    """How many tokens each sample of ``rows`` ``[B, N]`` has, ``[B, 1]``, and 1 for none."""
    everywhere = torch.ones_like(rows, dtype=torch.bool)
    return (everywhere if mask is None else mask).sum(1, keepdim=True).clamp(min=1)


def _mean_over_tokens(rows: Tensor, mask: Tensor | None, reduction: str) -> Tensor:
    """The mean of ``rows`` ``[B, N]``, 0 at padding, over each sample's tokens, reduced."""
    if mask is None:
        return reduce(rows.mean(1), None, reduction)
    values = rows.sum(1) / _lengths(rows, mask).squeeze(1)
    return reduce(values, mask.any(1), reduction)


def _prepare_scores(student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Check a pair of scores; return both in the computing dtype, 0 where padding takes part."""
    _check_alike(student, teacher, 4, (0, 1, 2, 3))
    if student.shape[2] != student.shape[3]:
        raise ValueError(
            f"student: shape {list(student.shape)}, expected attention scores [B, h, N, N]"
        )
    _check_token_mask(mask, student)
    both = None if mask is None else (mask[:, :, None] & mask[:, None, :]).unsqueeze(1)
    return prepare(student, teacher, both)


def _check_alike(student: Tensor, teacher: Tensor, rank: int, same: tuple[int, ...]) -> None:
    """Raise ValueError unless both have ``rank`` axes, the axes ``same`` equal, and one device."""
    for name, tensor in (("student", student), ("teacher", teacher)):
        if rank == 4 and tensor.dim() != 4:
            raise ValueError(
                f"{name}: shape {list(tensor.shape)}, expected attention scores [B, h, N, N]"
            )
        check_features(name, tensor, (rank,))
    differ = [axis for axis in same if student.shape[axis] != teacher.shape[axis]]
    if differ:
        why = CAUSES[rank, differ[0]]
        raise ValueError(
            f"teacher: shape {list(teacher.shape)}, student: {list(student.shape)}; {why}"
        )
    if teacher.device != student.device:
        raise ValueError(
            f"teacher: on {teacher.device}, expected student's {student.device}: "
            "move one of them with .to(device)"
        )


TOKENS_DIFFER = "expected equally many tokens: do both cut the input in the same way?"
CAUSES = {  # why two shapes do not fit, by rank and by the first axis that differs
    (3, 0): "expected the same samples: do both see the same batch?",
    (3, 1): TOKENS_DIFFER,
    (3, 2): "expected equal widths: map the student's with a linear layer (the distiller does so)",
    (4, 0): "expected the same samples: do both see the same batch?",
    (4, 1): "expected equally many heads, since head is compared with head: relation_loss needs no "
    "such thing",
    (4, 2): TOKENS_DIFFER,
    (4, 3): TOKENS_DIFFER,
}


def _check_heads(name: str, x: Tensor, relation_heads: int) -> None:
    check_count("relation_heads", relation_heads)
    if x.shape[-1] % relation_heads:
        raise ValueError(
            f"relation_heads: {relation_heads}, expected a divisor of the width {x.shape[-1]} of "
            f"{name} {list(x.shape)}"
        )


def _check_token_mask(mask: Tensor | None, x: Tensor) -> None:
    """Raise ValueError unless ``mask`` is None or bool ``[B, N]`` of ``x``'s B and N."""
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise ValueError(f"mask: dtype {mask.dtype}, expected torch.bool (True = a token)")
    wanted = [x.shape[0], x.shape[2] if x.dim() == 4 else x.shape[1]]
    if list(mask.shape) != wanted:
        raise ValueError(
            f"mask: shape {list(mask.shape)}, expected {wanted}, one for each token of "
            f"{list(x.shape)}"
        )
