"""A transformer encoder in NumPy, one token after the other, from the papers' formulas."""

import math

import numpy as np
from scipy.special import erf


def layer_norm(x, weight, bias):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias


def softmax(row):
    shifted = np.exp(row - row.max())
    return shifted / shifted.sum()


def attention(x, get, heads):
    """Outputs [N, d], probabilities and raw scores [h, N, N] of the tokens x [N, d]."""
    query, key, value = (
        x @ get(f"{n}.weight").T + get(f"{n}.bias") for n in ("query", "key", "value")
    )
    size = x.shape[1] // heads
    mixed, weights, scores = np.zeros_like(x), [], []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores.append(query[:, part] @ key[:, part].T / math.sqrt(size))
        weights.append(np.array([softmax(row) for row in scores[-1]]))
        for token in range(len(x)):
            for other in range(len(x)):
                mixed[token, part] += weights[-1][token, other] * value[other, part]
    return mixed @ get("output.weight").T + get("output.bias"), np.array(weights), np.array(scores)


def encoder(x, state, heads):
    """Logits [C], and the first block's probabilities and scores, of embedded tokens x [N, d]."""
    state = {name: value.double().numpy() for name, value in state.items()}
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    first = None
    for block in range(depth):

        def get(name, block=block):
            return state[f"blocks.{block}.{name}"]

        normed = layer_norm(x, get("attention_norm.weight"), get("attention_norm.bias"))
        out, *seen = attention(normed, lambda name, get=get: get(f"attention.{name}"), heads)
        first, x = first or seen, x + out
        normed = layer_norm(x, get("feed_forward_norm.weight"), get("feed_forward_norm.bias"))
        wide = normed @ get("feed_forward.0.weight").T + get("feed_forward.0.bias")
        wide = wide * (1 + erf(wide / math.sqrt(2))) / 2
        x = x + wide @ get("feed_forward.2.weight").T + get("feed_forward.2.bias")
    x = layer_norm(x, state["norm.weight"], state["norm.bias"]).mean(0)
    return x @ state["head.weight"].T + state["head.bias"], *first


def encoder_size(width, depth, classes):
    """Parameters of all but the embedding."""
    linear = 4 * (width * width + width)
    feed_forward = width * 4 * width + 4 * width + 4 * width * width + width
    return depth * (linear + feed_forward + 2 * 2 * width) + 2 * width + (width + 1) * classes
