"""The attention losses again, in NumPy and float64, by loops over samples, heads and tokens.

From the papers' formulas, on the tokens alone: padding is cut out before anything is computed. Each
gives one value per sample; gradients come by the complex step, as in `reference`.
"""

import numpy as np
from reference import kl, log_softmax

Array = np.ndarray


def per_sample(value):
    """A function of one sample's tokens, as one of a padded batch; 0 for a sample without any."""

    def batched(student: Array, teacher: Array, mask: Array) -> Array:
        values = []
        for s, t, own in zip(student, teacher, mask, strict=True):
            if s.ndim == 3:
                s, t = s[:, own][:, :, own], t[:, own][:, :, own]
            else:
                s, t = s[own], t[own]
            values.append(value(s, t) if own.any() else 0.0)
        return np.array(values)

    return batched


def relation(heads: int):
    """MiniLMv2, equations 6 to 8: relation heads are slices of the concatenated heads."""

    @per_sample
    def value(s: Array, t: Array) -> complex:
        total = 0.0
        for head in range(heads):
            rows = []
            for x in (s, t):
                d = x.shape[1] // heads
                own = x[:, head * d : (head + 1) * d]
                rows.append([[(a * b).sum() / np.sqrt(d) for b in own] for a in own])
            for mine, theirs in zip(*rows, strict=True):
                total = total + kl(log_softmax(np.array(theirs)), log_softmax(np.array(mine)))
        return total / (heads * len(s))

    return value


@per_sample
def distribution(s: Array, t: Array) -> complex:
    """MiniLM, equation 6."""
    heads, tokens = s.shape[:2]
    rows = [(h, i) for h in range(heads) for i in range(tokens)]
    return sum(kl(log_softmax(t[row]), log_softmax(s[row])) for row in rows) / (heads * tokens)


@per_sample
def score(s: Array, t: Array) -> complex:
    """TinyBERT, equation 8: the mean over the heads of the mean squared error of a table."""
    return np.mean([((a - b) ** 2).mean() for a, b in zip(s, t, strict=True)])


@per_sample
def hidden(s: Array, t: Array) -> complex:
    """TinyBERT, equation 9, after the linear map."""
    return ((s - t) ** 2).mean()
