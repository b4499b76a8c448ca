"""The exercises of lesson 04."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdlab.exercises import Exercise, function, number
from kdlab.models.attention import AttentionWeights

WIDTHS = (64, 48)  # of teacher and student
COSTS, SHARES = (1.0, 2.0, 4.0), (0.5, 0.3, 0.2)  # of three exits, and who leaves there

_PROBES = torch.Generator().manual_seed(4)
_QUERY, _KEY = (torch.randn(3, 2, 5, 4, generator=_PROBES) for _ in range(2))
_ROWS = torch.rand(3, 5, generator=_PROBES) * torch.tensor([[1.0], [6.0], [2.0]])
_MASK = torch.arange(5) < torch.tensor([[4], [2], [3]])  # padding in each: no row is all -inf


def _scores(query: Tensor, key: Tensor) -> Tensor:
    return query @ key.mT / math.sqrt(query.shape[-1])


def _only(mask: Tensor, scores: Tensor) -> Tensor:
    return scores.masked_fill(~mask[:, None, None, :], -math.inf)


def _attention(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    weights: Tensor = AttentionWeights()(_scores(query, key), ~mask)
    return weights


def _not_scaled(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    return _only(mask, query @ key.mT).softmax(-1)


def _scaled_by_size(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    return _only(mask, query @ key.mT / query.shape[-1]).softmax(-1)


def _reads_padding(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    return _scores(query, key).softmax(-1)


def _hides_tokens(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    return _only(~mask, _scores(query, key)).softmax(-1)


def _masked_too_late(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    return _scores(query, key).softmax(-1) * mask[:, None, None, :]


def _masked_scores_are_zero(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    return (_scores(query, key) * mask[:, None, None, :]).softmax(-1)


def _over_queries(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    return _scores(query, key).masked_fill(~mask[:, None, :, None], -math.inf).softmax(-2)


def _masked_over_queries(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    return _only(mask, _scores(query, key)).softmax(-2).nan_to_num()


def _no_softmax(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    return _only(mask, _scores(query, key))


def _rows_too(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    return _attention(query, key, mask) * mask[:, None, :, None]


def _mean_of_texts(rows: Tensor, mask: Tensor) -> Tensor:
    return ((rows * mask).sum(1) / mask.sum(1)).mean()


def _padding_counts(rows: Tensor, mask: Tensor) -> Tensor:
    return rows.mean()


def _padding_divides(rows: Tensor, mask: Tensor) -> Tensor:
    return (rows * mask).mean()


def _long_texts_count_more(rows: Tensor, mask: Tensor) -> Tensor:
    return (rows * mask).sum() / mask.sum()


def _one_for_each_text(rows: Tensor, mask: Tensor) -> Tensor:
    return (rows * mask).sum(1) / mask.sum(1)


def _sum_of_texts(rows: Tensor, mask: Tensor) -> Tensor:
    return _one_for_each_text(rows, mask).sum()


OVER_KEYS = "each row is shared out over the tokens that it looks at: use the last axis"

EXERCISES = [
    Exercise(
        "attention",
        function(
            _attention,
            [(_QUERY, _KEY, _MASK), (3 * _QUERY, _KEY, _MASK)],
            diagnoses=[
                (_not_scaled, "divide the scores by the root of the size of a head"),
                (_scaled_by_size, "divide by the root of the size of a head, not by the size"),
                (_reads_padding, "padding is read, too: it must get a weight of 0"),
                (_hides_tokens, "this hides the tokens and reads the padding: turn the mask round"),
                (_masked_too_late, "the rows no longer sum to 1: take padding out of the scores"),
                (_masked_scores_are_zero, "a score of 0 is an ordinary score: exp(0) is 1"),
                (_over_queries, OVER_KEYS),
                (_masked_over_queries, OVER_KEYS),
                (_no_softmax, "these are the scores: the softmax is missing"),
                (_rows_too, "only columns are padding that must not be read; leave the rows"),
            ],
        ),
        (
            "The scores are query @ key.mT, divided by the root of the last size.",
            "Before the softmax, give each column of padding the score minus infinity.",
            "scores.masked_fill(~mask[:, None, None, :], float('-inf')).softmax(dim=-1)",
        ),
    ),
    Exercise(
        "mean over tokens",
        function(
            _mean_of_texts,
            [(_ROWS, _MASK), (_ROWS.flip(1), _MASK)],
            diagnoses=[
                (_padding_counts, "padding counts like a token: set its rows to 0 first"),
                (
                    _padding_divides,
                    "divide by the number of tokens, not by the length with padding",
                ),
                (_long_texts_count_more, "each text counts once: first a mean for each text"),
                (_one_for_each_text, "that is one number for each text: take their mean"),
                (_sum_of_texts, "it is B times too large: average over the texts"),
            ],
        ),
        (
            "rows * mask is 0 where there is no token.",
            "mask.sum(dim=1) counts the tokens of each text.",
            "Sum over dim 1, divide by that count, then take the mean over the texts.",
        ),
    ),
    Exercise(
        "most relation heads",
        number(math.gcd(*WIDTHS), tolerance=0, close=0),
        (
            "The features of each width are cut into that many equal parts.",
            "So the number must divide both widths.",
            "It is the largest common divisor of both widths: math.gcd.",
        ),
    ),
    Exercise(
        "mean cost",
        number(sum(c * s for c, s in zip(COSTS, SHARES, strict=True)), tolerance=1e-6, close=0.05),
        (
            "The cost of an exit is all that a text has paid when it leaves there.",
            "Weigh the cost of each exit with the share that leaves there.",
            "The sum of cost times share over the three exits.",
        ),
    ),
]
