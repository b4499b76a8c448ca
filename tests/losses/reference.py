"""Independent references: every loss again, in NumPy and float64, from the papers' formulas.

Nothing here uses torch. Values come per sample; gradients by the complex step
(W. Squire, G. Trapp, 1998): f'(x) = Im f(x + ih) / h, which has no cancellation, so h = 1e-30 gives
the derivative to machine precision. The functions therefore avoid abs, max and comparisons on
complex numbers.
"""

from collections.abc import Callable

import numpy as np

Array = np.ndarray


def gradient(value: Callable[[Array], Array], x: Array) -> Array:
    """The gradient of the mean of ``value(x)`` with respect to every entry of ``x``."""
    result, step = np.empty_like(x, dtype=np.float64), 1e-30
    for index in np.ndindex(x.shape):
        shifted = x.astype(np.complex128)
        shifted[index] += 1j * step
        result[index] = np.mean(value(shifted)).imag / step
    return result


def log_softmax(z: Array) -> Array:
    z = z - z.real.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def kl(log_p: Array, log_q: Array) -> Array:
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)


def reverse(log_p: Array, log_q: Array) -> Array:
    return (np.exp(log_q) * (log_q - log_p)).sum(axis=-1)


def jensen_shannon(log_p: Array, log_q: Array) -> Array:
    """As the entropy of the mean less the mean entropy, with the larger one taken out first."""
    top = np.maximum(log_p.real, log_q.real)
    log_m = top + np.log((np.exp(log_p - top) + np.exp(log_q - top)) / 2)

    def entropy(log_z: Array) -> Array:
        return -(np.exp(log_z) * log_z).sum(axis=-1)

    return entropy(log_m) - (entropy(log_p) + entropy(log_q)) / 2


def soft_target(
    student: Array, teacher: Array, temperature: float, divergence: Callable[..., Array] = kl
) -> Array:
    values = divergence(log_softmax(teacher / temperature), log_softmax(student / temperature))
    values = temperature**2 * values
    return values.mean(axis=-1) if values.ndim == 2 else values


def standardize(z: Array, eps: float = 1e-7) -> Array:
    centred = z - z.mean(axis=-1, keepdims=True)
    return centred / (np.sqrt((centred**2).mean(axis=-1, keepdims=True)) + eps)


def decoupled_parts(
    student: Array, teacher: Array, targets: Array, temperature: float
) -> tuple[Array, Array]:
    """TCKD and NCKD of each sample, by a loop that takes the target class out of the list."""
    tckd, nckd = [], []
    for z_s, z_t, y in zip(student / temperature, teacher / temperature, targets, strict=True):
        pairs = []
        for z in (z_s, z_t):
            others = np.delete(z, y)
            top = others.real.max()
            rest = top + np.log(np.exp(others - top).sum())
            pairs.append(log_softmax(np.array([z[y], rest])))
        tckd.append(kl(pairs[1], pairs[0]))
        nckd.append(kl(log_softmax(np.delete(z_t, y)), log_softmax(np.delete(z_s, y))))
    return np.array(tckd), np.array(nckd)


def decoupled(
    student: Array, teacher: Array, targets: Array, temperature: float, alpha: float, beta: float
) -> Array:
    tckd, nckd = decoupled_parts(student, teacher, targets, temperature)
    return temperature**2 * (alpha * tckd + beta * nckd)


def pearson_distance(a: Array, b: Array) -> Array:
    """1 − ρ by its textbook formula; two constant vectors are at distance 0."""
    a, b = a - a.mean(), b - b.mean()
    norms = np.sqrt((a**2).sum() * (b**2).sum())
    return 1 - (a * b).sum() / norms if norms.real > 0 else 0 * norms


def dist(student: Array, teacher: Array, temperature: float, beta: float, gamma: float) -> Array:
    """One number, as an array of one: the intra term has no natural value per sample."""
    p, q = np.exp(log_softmax(student / temperature)), np.exp(log_softmax(teacher / temperature))
    inter = np.mean([pearson_distance(p[i], q[i]) for i in range(p.shape[0])])
    intra = np.mean([pearson_distance(p[:, j], q[:, j]) for j in range(p.shape[1])])
    return np.array([temperature**2 * (beta * inter + gamma * intra)])


def ttm(student: Array, teacher: Array, temperature: float, weighted: bool) -> Array:
    """By the power transform of the teacher's probabilities, as the paper defines it."""
    powers = np.exp(log_softmax(teacher)) ** (1 / temperature)
    total = powers.sum(axis=-1, keepdims=True)
    values = kl(np.log(powers / total), log_softmax(student))
    return values * total[..., 0] if weighted else values


def logit_matching(student: Array, teacher: Array) -> Array:
    return ((student - teacher) ** 2).sum(axis=-1) / student.shape[-1]


def batch_relation(student: Array, teacher: Array, temperature: float) -> Array:
    """Pair by pair, a value for each sample."""
    p, q = np.exp(log_softmax(student / temperature)), np.exp(log_softmax(teacher / temperature))
    size = range(len(p))
    gaps = [[(p[i] * p[j]).sum() - (q[i] * q[j]).sum() for j in size] for i in size]
    return (np.array(gaps) ** 2).mean(axis=1)


def class_relation(student: Array, teacher: Array, temperature: float) -> Array:
    """One number, as an array of one."""
    p, q = np.exp(log_softmax(student / temperature)), np.exp(log_softmax(teacher / temperature))
    gaps = np.mean([np.outer(a, a) - np.outer(b, b) for a, b in zip(p, q, strict=True)], axis=0)
    return np.array([(gaps * gaps).sum() / p.shape[1]])


def map_classes(logits: Array, groups: tuple[tuple[int, ...], ...]) -> Array:
    """By the probabilities: sums over the groups, and their logarithms less the total's."""
    p = np.exp(log_softmax(logits))
    sums = np.stack([sum(p[..., k] for k in group) for group in groups], axis=-1)
    return np.log(sums / sums.sum(axis=-1, keepdims=True))


def hard_label(student: Array, targets: Array, smoothing: float) -> Array:
    classes = student.shape[-1]
    wanted = (1 - smoothing) * np.eye(classes)[targets] + smoothing / classes
    return -(wanted * log_softmax(student)).sum(axis=-1)
