"""Adapters: any tensor of the student to any shape of the teacher, or a clear refusal."""

import pytest
import torch
from torch import nn

from kdlab.datasets import Split
from kdlab.distillers.adapters import adapter, as_map, match_size, resize, shapes
from kdlab.distillers.base import LayerDistiller, Outputs, layer_pairs
from kdlab.models import build

SHAPES = [
    ((2, 8, 14, 14), (2, 32, 7, 7)),
    ((2, 8, 4, 4), (2, 32, 7, 9)),
    ((2, 8, 7, 4), (2, 8, 4, 7)),
    ((2, 8), (2, 3)),
    ((2, 49, 16), (2, 49, 8)),
    ((2, 49, 16), (2, 50, 8)),
    ((2, 49, 16), (2, 12, 16)),
    ((2, 16, 7, 7), (2, 12, 24)),
    ((2, 49, 16), (2, 8, 14, 14)),
    ((2, 8, 4, 4), (2, 5)),
]


@pytest.mark.parametrize(("mine", "theirs"), SHAPES)
def test_an_adapter_gives_the_teachers_shape_and_can_be_trained(mine, theirs):
    made = adapter("a", torch.Size(mine), "b", torch.Size(theirs))
    features = torch.randn(3, *mine[1:], requires_grad=True)
    out = made(features)
    assert out.shape == (3, *theirs[1:])
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in made.parameters())
    assert features.grad.any(dim=0).all()  # every value of the student counts


@pytest.mark.parametrize(
    ("mine", "theirs"), [((2, 50, 16), (2, 8, 14, 14)), ((2, 5), (2, 8, 4, 4)), ((2, 3), (2, 4, 5))]
)
def test_what_cannot_be_adapted_is_named(mine, theirs):
    with pytest.raises(ValueError) as caught:
        adapter("stage1", torch.Size(mine), "layers.0", torch.Size(theirs))
    for part in ("'stage1'", "'layers.0'", str(list(mine)), str(list(theirs))):
        assert part in str(caught.value)


def test_a_map_of_the_right_size_is_only_convolved():
    made = adapter("a", torch.Size((2, 3, 5, 5)), "b", torch.Size((2, 4, 5, 5)))
    x = torch.randn(2, 3, 5, 5)
    conv = made[-1]
    assert len(made) == 1 and isinstance(conv, nn.Conv2d)
    expected = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], x) + conv.bias.view(-1, 1, 1)
    torch.testing.assert_close(made(x), expected)


def test_resizing_averages_down_and_interpolates_up():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    torch.testing.assert_close(resize(x, (2, 2)), torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]]))
    assert resize(x, (4, 4)) is x
    constant = torch.full((1, 2, 3, 5), 7.0)
    torch.testing.assert_close(resize(constant, (6, 2)), torch.full((1, 2, 6, 2), 7.0))
    flat = nn.functional.interpolate(x, (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(resize(x, (8, 8)), flat)


def test_tokens_keep_their_order_as_maps_and_back():
    tokens = torch.arange(2 * 9 * 4.0).reshape(2, 9, 4)
    assert torch.equal(as_map(tokens)[:, :, 5, 0], tokens[:, 5])
    square = adapter("a", torch.Size((2, 9, 4)), "b", torch.Size((2, 4, 3, 3)))[0](tokens)
    assert torch.equal(square[:, :, 1, 2], tokens[:, 5])
    places = adapter("a", torch.Size((2, 4, 3, 3)), "b", torch.Size((2, 9, 4)))[0](square)
    assert torch.equal(places, tokens)
    assert as_map(torch.randn(2, 5)).shape == (2, 5, 1, 1)
    with pytest.raises(ValueError, match="features: shape"):
        as_map(torch.randn(2))


def test_sizes_match_at_the_smaller_side():
    a, b = match_size(torch.randn(2, 3, 8, 4), torch.randn(2, 5, 6, 6))
    assert a.shape == (2, 3, 6, 4) and b.shape == (2, 5, 6, 4)


def test_one_dry_run_tells_the_shapes():
    model = build("cnn_tiny", 5, 1).eval()
    train = Split(torch.randn(7, 1, 28, 28), torch.zeros(7, dtype=torch.int64))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = shapes(model, ["stage2", "pool"], train)
    assert {k: tuple(v) for k, v in found.items()} == {"stage2": (2, 16, 7, 7), "pool": (2, 24)}
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match="stage9"):
        shapes(model, ["stage9"], train)


def test_layers_come_in_three_forms():
    assert layer_pairs("a") == (("a", "a"),)
    assert layer_pairs(["a", "b"]) == (("a", "a"), ("b", "b"))
    assert layer_pairs({"a": "x", "b": "x"}) == (("a", "x"), ("b", "x"))
    with pytest.raises(ValueError, match="layers: none came"):
        layer_pairs(())
    method = LayerDistiller({"a": "x", "b": "x"}, 2)
    assert method.student_taps == ("a", "b") and method.teacher_taps == ("x",)
    assert not method.complete and not method.needs_only_logits
    a, b, x = torch.ones(2), torch.zeros(2), torch.ones(2)
    inner = Outputs(x, {"a": a.bfloat16(), "b": b.double()}), Outputs(x, {"x": x.bfloat16()})
    read = method.pairs(*inner)
    assert [(mine.dtype, its.dtype) for mine, its in read] == [
        (torch.float32, torch.float32),
        (torch.float64, torch.float32),
    ]
    assert torch.equal(read[0][0], a) and torch.equal(read[1][0], b.double())
    with pytest.raises(ValueError, match="LayerDistiller needs a teacher"):
        method.pairs(Outputs(None), None)
    with pytest.raises(ValueError, match="weight"):
        LayerDistiller("a", -1)
