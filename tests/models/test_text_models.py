"""Models of texts: equal to a reference in NumPy, blind to padding, and as large as they say."""

import copy

import numpy as np
import pytest
import torch
from reference_encoder import encoder, encoder_size, layer_norm
from torch import nn

from kdlab import models
from kdlab.models import Taps, before_activation, build, build_for, count_parameters, inherit, paths

TEXTS = models.available((6,))
RECURRENT = ("lstm", "gru")
# Three texts of 6, 4 and 1 tokens, padded to 7.
TOKENS = torch.tensor([[2, 5, 6, 7, 5, 9, 0], [2, 8, 9, 4, 0, 0, 0], [2, 0, 0, 0, 0, 0, 0]])
LENGTHS = (6, 4, 1)


def make(name, seed=0, **options):
    """A model in eval mode whose weights are all random and large: no zero hides a mistake."""
    model = build(name, 5, vocabulary=20, seed=seed, **{"width": 8, "depth": 2, **options}).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model.eval()


def hidden(model):
    rows = "blocks" if hasattr(model, "blocks") else "layers"
    return [f"{rows}.{i}" for i in range(len(getattr(model, rows)))]


def test_there_are_models_of_texts():
    assert TEXTS == ("transformer", "lstm", "gru")
    assert set(TEXTS).isdisjoint(models.available((3, 8, 8)))
    assert {*TEXTS, *models.available((3, 8, 8))} == set(models.available())


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_the_transformer_equals_its_formulas(heads):
    model = make("transformer", heads=heads, max_length=7)
    state = model.state_dict()
    weights = "blocks.0.attention.weights"
    with Taps(model, ["embed", weights, f"{weights}:input"]) as taps, torch.no_grad():
        logits = model(TOKENS)
    for row, length in enumerate(LENGTHS):
        words = state["embed.tokens.weight"][TOKENS[row, :length]]
        x = (words + state["embed.positions.weight"][:length]).numpy()
        x = layer_norm(x, *(state[f"embed.norm.{name}"].numpy() for name in ("weight", "bias")))
        np.testing.assert_allclose(taps["embed"][row, :length], x, atol=1e-10)
        expected, probabilities, scores = encoder(x, state, heads)
        np.testing.assert_allclose(logits[row], expected, atol=1e-10)
        there = slice(0, length)
        np.testing.assert_allclose(taps[weights][row, :, there, there], probabilities, atol=1e-10)
        raw = taps[f"{weights}:input"][row]
        np.testing.assert_allclose(raw[:, there, there], scores, atol=1e-10)
        assert raw.isfinite().all()
        assert (taps[weights][row, :, :, length:] == 0).all()
    torch.testing.assert_close(taps[weights].sum(-1), torch.ones(3, heads, 7).double())


def test_paths_and_shapes_are_those_that_other_parts_rely_on():
    model = build_for("transformer", (7,), 5, vocabulary=20, width=8, depth=3, heads=2)
    assert (model.depth, model.heads, model.max_length) == (3, 2, 7)
    shapes = {row.path: row.shape for row in paths(model, TOKENS)}
    stream = ["embed", "norm", *(f"blocks.{i}" for i in range(3))]
    stream += [f"blocks.{i}.attention.{n}" for i in range(3) for n in ("query", "key", "value")]
    assert all(shapes[path] == (3, 7, 8) for path in stream)
    assert all(shapes[f"blocks.{i}.attention.weights"] == (3, 2, 7, 7) for i in range(3))
    assert shapes["head"] == (3, 5)
    for name in RECURRENT:
        shapes = {row.path: row.shape for row in paths(make(name), TOKENS)}
        assert shapes["embed"] == shapes["layers.0"] == shapes["layers.1"] == (3, 7, 8)


@pytest.mark.parametrize("name", TEXTS)
def test_padding_changes_nothing(name):
    """More of it, other vectors for it, other texts beside: what is said of a text stays."""
    model = make(name)
    with Taps(model, hidden(model)) as taps, torch.no_grad():
        logits = model(TOKENS)
        kept = {path: taps[path] for path in taps}
        longer = nn.functional.pad(TOKENS, (0, 9))
        other = copy.deepcopy(model)
        embedding = other.embed.tokens if name == "transformer" else other.embed
        embedding.weight[0] += 100
        torch.testing.assert_close(model(longer), logits)
        torch.testing.assert_close(other(TOKENS), logits)
        for row, length in enumerate(LENGTHS):
            torch.testing.assert_close(model(TOKENS[row : row + 1, :length])[0], logits[row])
            for path in taps:
                torch.testing.assert_close(taps[path][0], kept[path][row, :length])


@pytest.mark.parametrize("name", TEXTS)
def test_padding_gets_no_gradient(name):
    model = make(name)
    model(TOKENS).square().sum().backward()
    embedding = model.embed.tokens if name == "transformer" else model.embed
    touched = embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist()
    assert touched == [2, 4, 5, 6, 7, 8, 9]


def test_a_row_of_padding_alone_stays_finite():
    for name in TEXTS:
        assert make(name)(torch.zeros(2, 5, dtype=torch.int64)).isfinite().all()


def test_without_positions_the_order_does_not_matter():
    model, shuffled = make("transformer"), TOKENS[:1, [3, 0, 5, 1, 4, 2]]
    plain = TOKENS[:1, :6]
    with torch.no_grad():
        assert not torch.allclose(model(plain), model(shuffled))
        model.embed.positions.weight.zero_()
        torch.testing.assert_close(model(plain), model(shuffled))
        with Taps(model, ["blocks.1"]) as taps:
            model(plain)
            states = taps["blocks.1"][:, [3, 0, 5, 1, 4, 2]]
            model(shuffled)
            torch.testing.assert_close(taps["blocks.1"], states)


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_model_reads_from_left_to_right(name):
    model, changed = make(name), TOKENS[:1].clone()
    changed[0, 3] = 11
    with Taps(model, ["layers.1"]) as taps, torch.no_grad():
        model(TOKENS[:1])
        before = taps["layers.1"]
        model(changed)
        after = taps["layers.1"]
    assert torch.equal(before[0, :3], after[0, :3])
    assert all((before[0, i] != after[0, i]).any() for i in range(3, 6))


def test_a_recurrent_model_answers_from_the_mean_of_its_states():
    model = make("gru")
    with Taps(model, ["layers.1"]) as taps, torch.no_grad():
        logits = model(TOKENS)
        for row, length in enumerate(LENGTHS):
            mean = taps["layers.1"][row, :length].mean(0)
            torch.testing.assert_close(model.head(mean), logits[row])


def test_parameter_counts():
    width, depth, classes, words, length = 12, 3, 7, 50, 9
    embedding = (words + length) * width + 2 * width
    model = build_for(
        "transformer", (length,), classes, vocabulary=words, width=width, depth=depth, heads=3
    )
    assert count_parameters(model) == embedding + encoder_size(width, depth, classes)
    for name, gates in (("lstm", 4), ("gru", 3)):
        model = build_for(name, (length,), classes, vocabulary=words, width=width, depth=depth)
        layer = gates * (2 * width * width + 2 * width)
        assert count_parameters(model) == words * width + depth * layer + (width + 1) * classes


@pytest.mark.parametrize("name", TEXTS)
def test_every_parameter_gets_a_finite_gradient(name):
    model = build_for(name, (7,), 5, vocabulary=20, seed=0)
    nn.functional.cross_entropy(model(TOKENS), torch.arange(3)).backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), path
        # A key's bias adds the same to all of a query's scores, which softmax does not see.
        assert parameter.grad.abs().max() > 1e-9 or path.endswith("key.bias"), path


@pytest.mark.parametrize("name", TEXTS)
def test_half_precision(name):
    model = build_for(name, (7,), 5, vocabulary=20, seed=0, width=16, dropout=0.0)
    exact = model(TOKENS).detach()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(TOKENS)
    logits.float().sum().backward()
    torch.testing.assert_close(logits.float().detach(), exact, rtol=0.05, atol=0.02)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", TEXTS)
def test_seed_decides_the_weights_and_nothing_else(name):
    state = torch.get_rng_state()
    first, second, other = (build(name, 5, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    pairs = list(zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.head.weight, other.head.weight)


@pytest.mark.parametrize("name", TEXTS)
def test_dropout_works_in_training_alone(name):
    model = build_for(name, (7,), 5, vocabulary=20, seed=0, dropout=0.5)
    torch.manual_seed(0)
    assert not torch.equal(model(TOKENS), model(TOKENS))
    model.eval()
    assert torch.equal(model(TOKENS), model(TOKENS))


def test_activations_of_a_transformer_can_be_swapped():
    plain, smooth = (
        build("transformer", 5, vocabulary=20, seed=0, activation=name).eval()
        for name in (None, "tanh")
    )
    kinds = [type(block.feed_forward[1]) for block in smooth.blocks]
    assert kinds == [nn.Tanh] * 4
    assert all(map(torch.equal, plain.state_dict().values(), smooth.state_dict().values()))
    assert not torch.allclose(plain(TOKENS), smooth(TOKENS))
    assert before_activation(plain, "blocks.0", TOKENS) == "blocks.0"
    assert before_activation(plain, "blocks.0.feed_forward.1") == "blocks.0.feed_forward.1:input"


def test_a_shallower_student_inherits_every_second_block():
    """As DistilBERT does."""
    teacher, student = make("transformer", depth=4), make("transformer", depth=2, seed=1)
    report = inherit(student, teacher, TOKENS, blocks="every")
    assert report.layers["blocks.1.attention.query"] == "blocks.2.attention.query"
    for name, value in student.state_dict().items():
        source = name.replace("blocks.1", "blocks.2")
        assert torch.equal(value, teacher.state_dict()[source]), name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("transformer", 5, width=10), "heads: .*divisor of the width 10.*got 4"),
        (lambda: build("transformer", 5, heads=0), "heads: .*got 0"),
        (lambda: build("transformer", 5, depth=0), "depth: .*got 0"),
        (lambda: build("transformer", 5, vocabulary=2.5), "vocabulary: .*got 2.5"),
        (lambda: build("transformer", 5, max_length=0), "max_length: .*got 0"),
        (lambda: build("transformer", 5, dropout=1.0), "dropout: .*got 1.0"),
        (lambda: build("lstm", 5, width=0), "width: .*got 0"),
        (lambda: build("gru", 5, dropout=-0.1), "dropout: .*got -0.1"),
        (lambda: build("gru", 5, heads=2), "unknown option 'heads' of 'gru'"),
        (lambda: build("lstm", 5, activation="relu"), "activation: 'lstm' has none .*got 'relu'"),
        (lambda: build_for("lstm", (1, 8, 8), 5), r"'lstm' reads texts.*\(1, 8, 8\).*mlp, cnn"),
        (lambda: build_for("mlp", (48,), 5), r"'mlp' reads images.*\(48,\).*transformer, lstm"),
        (lambda: build_for("lstm", (0,), 5), "data_shape: .*got"),
        (lambda: build_for("lstm", (4, 8), 5), "data_shape: .*got"),
        (lambda: make("lstm")(TOKENS.float()), r"tokens: .*int64.*float32 of shape \[3, 7\]"),
        (lambda: make("gru")(TOKENS[0]), r"tokens: .*shape \[7\]"),
        (lambda: make("transformer")(TOKENS + 11), "from 0 to 19, got 11 to 20; .*vocabulary="),
        (lambda: make("gru")(TOKENS - 1), "from 0 to 19, got -1 to 8"),
        (lambda: make("transformer", max_length=6)(TOKENS), "tokens: 7 a text, .* 6 places"),
    ],
)
def test_errors_say_what_came_and_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
