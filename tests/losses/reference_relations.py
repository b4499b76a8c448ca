"""The relation losses again, in NumPy and float64, by loops over samples, from the papers.

Each function gives one value per sample, whose mean is the loss. As in `reference`, gradients come
by the complex step, so nothing here takes abs, max or the order of complex numbers.
"""

import math

import numpy as np

Array = np.ndarray


def rows(features: Array) -> Array:
    return features.reshape(len(features), -1)


def norm(v: Array) -> complex:
    return np.sqrt((v * v).sum())


def cosine(a: Array, b: Array) -> complex:
    lengths = norm(a) * norm(b)
    return (a * b).sum() / lengths if lengths.real > 0 else 0.0


def huber(x: complex) -> complex:
    if x.real**2 <= 1:
        return x * x / 2
    return (x if x.real > 0 else -x) - 0.5


def similarity_preserving(student: Array, teacher: Array) -> Array:
    def table(f: Array) -> Array:
        gram = np.array([[(a * b).sum() for b in f] for a in f])
        return np.array([g / norm(g) if norm(g).real > 0 else 0 * g for g in gram])

    difference = table(rows(student)) - table(rows(teacher))
    return (difference * difference).sum(axis=1) / len(student)


def distances(f: Array) -> Array:
    size = range(len(f))
    table = np.array([[norm(f[i] - f[j]) if i != j else 0.0 for j in size] for i in size])
    apart = table[table.real > 0]
    return table / apart.mean()


def relational_distance(student: Array, teacher: Array) -> Array:
    difference = distances(rows(student)) - distances(rows(teacher))
    return np.array([np.mean([huber(x) for x in row]) for row in difference])


def angle(a: Array, b: Array, c: Array) -> complex:
    """The cosine of the angle at b."""
    return cosine(a - b, c - b)


def relational_angle(student: Array, teacher: Array) -> Array:
    s, t = rows(student), rows(teacher)
    size = range(len(s))
    return np.array(
        [
            np.mean(
                [
                    huber(angle(s[i], s[j], s[k]) - angle(t[i], t[j], t[k]))
                    for i in size
                    for k in size
                ]
            )
            for j in size
        ]
    )


def correlation_congruence(student: Array, teacher: Array, gamma: float, order: int) -> Array:
    def table(f: Array) -> Array:
        powers = range(order + 1)
        return np.exp(-2 * gamma) * np.array(
            [
                [
                    sum((2 * gamma * cosine(a, b)) ** p / math.factorial(p) for p in powers)
                    for b in f
                ]
                for a in f
            ]
        )

    difference = table(rows(student)) - table(rows(teacher))
    return (difference * difference).mean(axis=1)


def probabilistic_transfer(student: Array, teacher: Array, floor: float = 1e-7) -> Array:
    def conditional(f: Array, i: int) -> Array:
        kernel = [(cosine(f[i], f[j]) + 1) / 2 + floor for j in range(len(f)) if j != i]
        return np.array(kernel) / sum(kernel)

    values = []
    for i in range(len(student)):
        p, q = conditional(rows(teacher), i), conditional(rows(student), i)
        values.append((p * np.log(p / q)).sum() / len(student))
    return np.array(values)


def contrastive(
    anchors: Array, bank: Array, positive: Array, negatives: Array, temperature: float, mean: float
) -> Array:
    """As the paper writes it, with Z = M · mean; plain logarithms of plain probabilities."""
    images, count = len(bank), negatives.shape[1]

    def critic(anchor: Array, row: Array) -> complex:
        h = np.exp((anchor * row).sum() / norm(anchor) / temperature) / (images * mean)
        return h / (h + count / images)

    values = []
    for anchor, own, others in zip(anchors, positive, negatives, strict=True):
        value = -np.log(critic(anchor, bank[own]))
        value = value - sum(np.log(1 - critic(anchor, bank[j])) for j in others)
        values.append(value)
    return np.array(values)


def largest(values: Array) -> complex:
    return values.flat[np.argmax(values.real)]


def instance_edges(student: Array, teacher: Array) -> Array:
    def table(f: Array) -> Array:
        squares = np.array([[((a - b) ** 2).sum() for b in f] for a in f])
        return squares / largest(squares) if largest(squares).real > 0 else squares

    difference = table(rows(student)) - table(rows(teacher))
    return (difference * difference).mean(axis=1)


def instance_transformation(student: tuple[Array, Array], teacher: tuple[Array, Array]) -> Array:
    def moves(first: Array, second: Array) -> Array:
        squares = ((rows(first) - rows(second)) ** 2).sum(axis=1)
        return squares / largest(squares) if largest(squares).real > 0 else squares

    difference = moves(*student) - moves(*teacher)
    return difference * difference
