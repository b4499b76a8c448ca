"""The vision transformer: equal to a reference in NumPy, for any size that its patches cover."""

import math

import numpy as np
import pytest
import torch
from reference_encoder import encoder, encoder_size
from torch import nn

from kdlab.models import Taps, build, build_for, count_parameters, paths
from kdlab.models.vit import waves


def images(channels=3, height=8, width=12, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, height, width, generator=generator)


def place(row, column, width):
    """Where a patch lies, as four groups of waves: sine and cosine, down and across."""
    quarter = width // 4
    numbers = []
    for axis in (row, column):
        for wave in (math.sin, math.cos):
            numbers += [wave(axis / 10_000 ** (i / (quarter - 1))) for i in range(quarter)]
    return numbers


def embedded(model, image):
    """Tokens of one image, patch by patch."""
    weight = model.embed.patches.weight.detach().numpy()
    bias = model.embed.patches.bias.detach().numpy()
    size, tokens = model.patch, []
    for row in range(image.shape[1] // size):
        for column in range(image.shape[2] // size):
            patch = image[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
            token = (weight * patch[None]).sum((1, 2, 3)) + bias
            tokens.append(token + place(row, column, len(bias)))
    return np.array(tokens)


def make(**options):
    """A model whose weights are all random and large: no zero hides a mistake."""
    options = {"width": 8, "depth": 2, "heads": 2, "patch": 4, **options}
    model = build("vit", 5, 3, **options).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@pytest.mark.parametrize("patch", [2, 4])
def test_the_model_equals_its_formulas(patch):
    model, x = make(patch=patch), images().double()
    weights = "blocks.0.attention.weights"
    with Taps(model, ["embed", weights, f"{weights}:input"]) as taps, torch.no_grad():
        logits = model(x)
    for row, image in enumerate(x.numpy()):
        tokens = embedded(model, image)
        np.testing.assert_allclose(taps["embed"][row], tokens, atol=1e-6)
        expected, probabilities, scores = encoder(taps["embed"][row].numpy(), model.state_dict(), 2)
        np.testing.assert_allclose(logits[row], expected, atol=1e-10)
        np.testing.assert_allclose(taps[weights][row], probabilities, atol=1e-10)
        np.testing.assert_allclose(taps[f"{weights}:input"][row], scores, atol=1e-10)


def test_places_tell_all_patches_apart():
    codes = waves(7, 8, 16)
    assert codes.shape == (56, 16)
    np.testing.assert_allclose(codes[2 * 8 + 5], place(2, 5, 16), atol=1e-6)
    assert torch.cdist(codes, codes).add(torch.eye(56)).min() > 0.1


def test_without_places_the_order_of_patches_does_not_matter(monkeypatch):
    model, x = make(), images().double()
    left, right = x[..., :4], x[..., 4:]
    with torch.no_grad():
        turned = torch.cat([right, left], -1)
        assert not torch.allclose(model(x), model(turned))
        nowhere = lambda rows, columns, width: torch.zeros(rows * columns, width)  # noqa: E731
        monkeypatch.setattr("kdlab.models.vit.waves", nowhere)
        torch.testing.assert_close(model(x), model(turned))


@pytest.mark.parametrize(
    ("shape", "patch", "tokens"), [((1, 28, 28), 7, 16), ((1, 28, 28), 4, 49), ((3, 32, 32), 4, 64)]
)
def test_paths_and_shapes_are_those_that_other_parts_rely_on(shape, patch, tokens):
    model = build_for("vit", shape, 5, patch=patch, width=16, depth=2, heads=2)
    assert (model.depth, model.heads) == (2, 2)
    shapes = {row.path: row.shape for row in paths(model, images(*shape))}
    stream = ["embed", "norm", "blocks.0", "blocks.1"]
    stream += [f"blocks.1.attention.{name}" for name in ("query", "key", "value")]
    assert all(shapes[path] == (2, tokens, 16) for path in stream)
    assert shapes["blocks.0.attention.weights"] == (2, 2, tokens, tokens)
    assert shapes["head"] == (2, 5)


def test_parameter_count():
    model = build("vit", 7, 3, width=12, depth=3, heads=3, patch=4)
    embedding = 3 * 4 * 4 * 12 + 12
    assert count_parameters(model) == embedding + encoder_size(12, 3, 7)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_it_learns(shape):
    """Which half is brighter, in a few steps, in full and in half precision."""
    x = images(*shape, batch=64)
    half = shape[1] // 2
    y = (x[:, :, :half].mean((1, 2, 3)) > x[:, :, half:].mean((1, 2, 3))).long()
    x[:, :, :half] += 0.5 * (2 * y - 1).view(-1, 1, 1, 1)
    for dtype in (torch.float32, torch.bfloat16):
        model = build_for("vit", shape, 2, patch=shape[1] // 4, width=16, depth=2, seed=0)
        update = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(30):
            with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
                loss = nn.functional.cross_entropy(model(x).float(), y)
            update.zero_grad()
            loss.backward()
            update.step()
        assert (model(x).argmax(1) == y).float().mean() > 0.95


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("vit", 5, width=6, heads=1), "width: .*multiple of 4.*got 6"),
        (lambda: build("vit", 5, heads=3), "heads: .*divisor of the width 64.*got 3"),
        (lambda: build("vit", 5, patch=0), "patch: .*got 0"),
        (lambda: build("vit", 5, depht=2), "unknown option 'depht' of 'vit' .did you mean 'depth'"),
        (lambda: build("vit", 5, 1)(images()), r"images: .*\[B, 1, h, w\], got \[2, 3, 8, 12\]"),
        (lambda: build("vit", 5)(images()[0]), r"images: .*got \[3, 8, 12\]"),
        (lambda: build("vit", 5, patch=7)(images()), "images: 8x12 pixels .*patches of 7x7"),
    ],
)
def test_errors_say_what_came_and_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
