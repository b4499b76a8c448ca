"""Feature losses again, in NumPy and float64, from the papers' formulas: values per image.

Loops over images, channels and places, where the package has matrix products. Comparisons look at
the real part only, so the complex step of `reference.gradient` stays exact where a slope exists.
"""

import numpy as np
from reference import kl, log_softmax

Array = np.ndarray


def per_image(value):
    """A function of one image's features, as a function of a batch's."""
    return lambda s, t: np.array([value(a, b) for a, b in zip(s, t, strict=True)])


def length(x: Array) -> Array:
    return np.sqrt((x**2).sum())


def magnitude(x: Array) -> Array:
    return np.where(x.real < 0, -x, x)


def pooled(x: Array, rows: int, columns: int) -> Array:
    """Average pooling of [c, h, w] to [c, rows, columns] where both divide the size."""
    c, h, w = x.shape
    return x.reshape(c, rows, h // rows, columns, w // columns).mean(axis=(2, 4))


@per_image
def hint(s: Array, t: Array) -> Array:
    return ((s - t) ** 2).mean()


def attention(x: Array, power: float) -> Array:
    total = np.zeros(x.shape[1:], dtype=x.dtype)
    for channel in x:
        total = total + magnitude(channel) ** power
    return total / length(total)


def attention_transfer(power: float, norm: str):
    def value(s: Array, t: Array) -> Array:
        gap = attention(s, power) - attention(t, power)
        return length(gap) if norm == "paper" else (gap**2).mean()

    return per_image(value)


def flow_matrix(first: Array, second: Array) -> Array:
    places = [(i, j) for i in range(first.shape[1]) for j in range(first.shape[2])]
    return sum(np.outer(first[:, i, j], second[:, i, j]) for i, j in places) / len(places)


def flow(channels: int):
    """Of maps whose first ``channels`` channels are one layer and whose others the next."""

    def value(s: Array, t: Array) -> Array:
        gap = flow_matrix(s[:channels], s[channels:]) - flow_matrix(t[:channels], t[channels:])
        return (gap**2).mean()

    return per_image(value)


@per_image
def neuron_selectivity(s: Array, t: Array) -> Array:
    """The kernel, pair by pair."""
    s, t = ([f / length(f) for f in x] for x in (s, t))

    def mean_kernel(a: list[Array], b: list[Array]) -> Array:
        return np.mean([(f * g).sum() ** 2 for f in a for g in b])

    return mean_kernel(s, s) + mean_kernel(t, t) - 2 * mean_kernel(s, t)


def variational(variance: Array):
    def value(s: Array, t: Array) -> Array:
        parts = [
            0.5 * (np.log(v) + (b - a) ** 2 / v) for a, b, v in zip(s, t, variance, strict=True)
        ]
        return np.mean(parts)

    return per_image(value)


def channel_wise(temperature: float):
    def value(s: Array, t: Array) -> Array:
        rows = [
            kl(log_softmax(b.ravel() / temperature), log_softmax(a.ravel() / temperature))
            for a, b in zip(s, t, strict=True)
        ]
        return temperature**2 * np.mean(rows)

    return per_image(value)


def activation_boundary(margin: float):
    """As the paper's equation (5): the four cases of sign and margin."""

    def value(s: Array, t: Array) -> Array:
        total = 0.0
        for a, b in zip(s.ravel(), t.ravel(), strict=True):
            if b > 0 and a.real < margin:
                total = total + (margin - a) ** 2
            if b <= 0 and a.real > -margin:
                total = total + (margin + a) ** 2
        return total

    return per_image(value)


@per_image
def factor_transfer(s: Array, t: Array) -> Array:
    return magnitude(s / length(s) - t / length(t)).mean()


def overhaul(margin: Array):
    def value(s: Array, t: Array) -> Array:
        total = 0.0
        for a_c, b_c, m in zip(s, t, margin, strict=True):
            for a, b in zip(a_c.ravel(), b_c.ravel(), strict=True):
                target = max(b, m)
                if not a.real <= target <= 0:
                    total = total + (a - target) ** 2
        return total

    return per_image(value)


def hierarchical_context(s: Array, t: Array) -> Array:
    """Of maps whose height and width are multiples of 4 and above 4."""
    levels = [(1.0, None), (0.5, 4), (0.25, 2), (0.125, 1)]

    def value(a: Array, b: Array) -> Array:
        total = 0.0
        for weight, size in levels:
            gap = a - b if size is None else pooled(a, size, size) - pooled(b, size, size)
            total = total + weight * (gap**2).mean()
        return total / 1.875

    return per_image(value)(s, t)
