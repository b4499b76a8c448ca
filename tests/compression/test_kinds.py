"""An argument of another kind is refused by name, with what came and what was expected."""

import re

import pytest
from small import make_data, make_model
from torch import nn

from kdlab import compression
from kdlab.compression import Quantized

DATA = make_data()
X = DATA.train.x[:2]
MODEL = make_model("cnn_tiny", DATA)
QUANTIZED = Quantized(nn.Identity())
PAIR = (MODEL, {"sha256": "..."})  # as load_teacher gives it


def says(*parts):
    """A message that starts with the argument's name and holds all parts in this order."""
    return pytest.raises(ValueError, match="^" + ".*".join(map(re.escape, parts)))


NOT_DATA = ("data: a Tensor came", "expected a data set", "kdlab.datasets.load")
NOT_EXAMPLE = ("example: a Data came", "expected inputs [B, ...]", "data.train.x[:2]")
NOT_MODEL = ("model: a tuple came", "expected a torch.nn.Module", "load_teacher", "the first")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compression.quantize(MODEL, X), NOT_DATA),
        (lambda: compression.quantize(PAIR, DATA), NOT_MODEL),
        (lambda: compression.quantize_aware(MODEL, X), NOT_DATA),
        (lambda: compression.quantize_aware(MODEL, DATA, PAIR), ("teacher: a tuple came",)),
        (lambda: compression.round_weights(PAIR, 4), NOT_MODEL),
        (lambda: compression.prune_weights(PAIR, 0.5), NOT_MODEL),
        (lambda: compression.prune_channels(MODEL, DATA, 0.5), NOT_EXAMPLE),
        (lambda: compression.prune_channels(PAIR, X, 0.5), NOT_MODEL),
        (lambda: compression.sparsity(PAIR), NOT_MODEL),
        (lambda: compression.recover(MODEL, MODEL, DATA), ("data: a Staged came", "a data set")),
        (lambda: compression.recover(MODEL, DATA, PAIR), ("teacher: a tuple came", "the first")),
        (lambda: compression.recover(PAIR, DATA), ("pruned: a tuple came",)),
        (lambda: compression.factorize(PAIR), NOT_MODEL),
        (
            lambda: compression.prune_and_round(MODEL, X, kind="weights", share=0.5, bits=4),
            NOT_DATA,
        ),
        (
            lambda: compression.export(MODEL, DATA, "s.onnx"),
            ("path: a Data came, expected the path of a file", "student.onnx"),
        ),
        (lambda: compression.export(MODEL, "s.onnx", X), NOT_DATA),
        (lambda: compression.export(PAIR, "s.onnx", DATA), NOT_MODEL),
        (lambda: compression.compress(MODEL, X, {}, path="s.onnx"), NOT_DATA),
        (lambda: compression.compress(PAIR, DATA, {}, path="s.onnx"), NOT_MODEL),
        (lambda: compression.compress(MODEL, DATA, {}, path=None), ("path: a NoneType came",)),
        (
            lambda: compression.compress(MODEL, DATA, {}, path="s.onnx", teacher=PAIR),
            ("teacher: a tuple came",),
        ),
        (lambda: compression.Nested(MODEL, DATA), NOT_EXAMPLE),
        (lambda: compression.Nested(PAIR, X), NOT_MODEL),
        (lambda: compression.compare_widths(MODEL, X, X), NOT_DATA),
    ],
)
def test_a_wrong_kind_is_named(call, message):
    with says(*message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda m: compression.quantize(m, DATA),
        lambda m: compression.quantize_aware(m, DATA),
        lambda m: compression.round_weights(m, 4),
        lambda m: compression.prune_weights(m, 0.5),
        lambda m: compression.prune_channels(m, X, 0.5),
        lambda m: compression.sparsity(m),
        lambda m: compression.factorize(m),
        lambda m: compression.Nested(m, X),
    ],
)
def test_a_quantized_model_is_not_changed_any_more(call):
    with says("model: it is quantized", "quantize last"):
        call(QUANTIZED)
