"""Early exits: what they say, where they stop, what each costs, and that they leave no trace."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdlab.models import ExitHead, build, exit_heads, paths, with_exits
from kdlab.models.exits import mean_over_places, padding_mask
from kdlab.training import predict

IMAGES = torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([[2, 5, 7, 0, 0], [2, 9, 4, 3, 6]])
STAGES = ("stage1", "stage2")


def made(name="cnn_tiny", layers=STAGES, inputs=IMAGES, classes=5, **options):
    """A model and its exits, after a forward in training mode so that no norm is at its start."""
    model = build(name, classes, 1, seed=0, **options)
    torch.manual_seed(1)
    heads = exit_heads(model, layers, inputs[:2])
    model.train()
    model(inputs)
    return model, with_exits(model, dict(zip(layers, heads, strict=True)))


def layer_output(model, path, inputs):
    """Read without Taps."""
    kept = []
    handle = model.get_submodule(path).register_forward_hook(lambda m, a, out: kept.append(out))
    model(inputs)
    handle.remove()
    return kept[0][0] if isinstance(kept[0], tuple) else kept[0]


@pytest.mark.parametrize(
    "name",
    ["cnn_tiny", "resnet8", "wrn_16_1", "vgg8", "mobilenetv2"],
)
def test_each_exit_is_its_head_on_its_layer_and_the_last_is_the_model(name):
    model, exits = made(name)
    with torch.no_grad():
        got = exits(IMAGES)
        assert got.shape == (6, 3, 5)
        for number, path in enumerate(STAGES):
            want = exits.heads[number](layer_output(model, path, IMAGES))
            torch.testing.assert_close(got[:, number], want)
        torch.testing.assert_close(got[:, 2], model(IMAGES))
    torch.testing.assert_close(predict(exits, IMAGES, device="cpu"), got, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "layers", "options"),
    [
        ("transformer", ("blocks.0", "blocks.1"), {"depth": 3, "width": 8, "vocabulary": 12}),
        ("gru", ("layers.0",), {"depth": 2, "width": 8, "vocabulary": 12}),
    ],
)
def test_texts_have_exits_that_padding_does_not_change(name, layers, options):
    model, exits = made(name, layers, TOKENS, **options)
    with torch.no_grad():
        got = exits(TOKENS)
        longer = torch.cat([TOKENS, torch.zeros(2, 3, dtype=torch.int64)], 1)
        torch.testing.assert_close(exits(longer), got, atol=1e-5, rtol=1e-4)
        states = layer_output(model, layers[0], TOKENS)
        head = exits.heads[0]
        short = head.after(head.before(states)[0, :3].mean(0))
        torch.testing.assert_close(got[0, 0], head.classifier(short), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(exits.answer(TOKENS, 2.0)[0], model(TOKENS))


def test_images_as_tokens_and_plain_vectors_have_exits_too():
    _, exits = made("vit", ("blocks.0",), depth=2, width=8)
    assert exits(IMAGES).shape == (6, 2, 5)
    _, exits = made("mlp", ("layers.0",), in_features=256)
    assert exits(IMAGES).shape == (6, 2, 5)


def test_the_mean_is_over_what_is_no_padding():
    x = torch.arange(12.0).view(1, 3, 4)
    mask = torch.tensor([[True, False, False]])
    assert mean_over_places(x, mask).tolist() == [[0, 1, 2, 3]]
    assert mean_over_places(x, ~mask).tolist() == [[6, 7, 8, 9]]
    assert mean_over_places(x).tolist() == [[4, 5, 6, 7]]
    assert mean_over_places(x, mask & ~mask).eq(0).all()
    assert mean_over_places(x.view(1, 3, 2, 2)).tolist() == [[1.5, 5.5, 9.5]]
    assert padding_mask(TOKENS).tolist()[0] == [True] * 3 + [False] * 2
    assert padding_mask(IMAGES) is None and padding_mask(None) is None


def by_hand(logits, threshold):
    """The rule in plain Python: the first exit that is sure enough."""
    number = []
    for sample in logits.double():
        sure = [float((z - z.max()).exp().div((z - z.max()).exp().sum()).max()) for z in sample]
        first = [k for k, s in enumerate(sure) if s >= threshold]
        number.append(first[0] if first else len(sure) - 1)
    return torch.tensor(number)


def spread():
    """Exits of a model that leave at different places."""
    model, exits = made(classes=3)
    with torch.no_grad():
        for head, scale in zip(exits.heads, (6, 12), strict=True):
            head.classifier.weight.mul_(scale)
    return model, exits


def test_a_sample_takes_the_first_exit_that_is_sure():
    _, exits = spread()
    with torch.no_grad():
        logits = exits(IMAGES)
    used = set()
    for threshold in torch.linspace(0.3, 1, 15).tolist():
        answer, number = exits.answer(IMAGES, threshold)
        assert number.tolist() == by_hand(logits, threshold).tolist()
        torch.testing.assert_close(answer, logits[torch.arange(6), number])
        used |= {tuple(number.tolist())}
        for k in range(6):  # alone as in a batch
            alone, at = exits.answer(IMAGES[k : k + 1], threshold)
            assert at == number[k]
            torch.testing.assert_close(alone[0], answer[k], atol=1e-5, rtol=1e-4)
    assert any(len(set(numbers)) == 3 for numbers in used)


def test_nobody_waits_at_0_and_everybody_above_1():
    model, exits = spread()
    with torch.no_grad():
        logits = exits(IMAGES)
    answer, number = exits.answer(IMAGES, 0)
    assert number.tolist() == [0] * 6
    torch.testing.assert_close(answer, logits[:, 0])
    answer, number = exits.answer(IMAGES, 1.001)
    assert number.tolist() == [2] * 6
    torch.testing.assert_close(answer, model(IMAGES))
    with torch.no_grad():
        model.head.weight.fill_(torch.nan)
    assert exits.answer(IMAGES, 1.001)[0].isnan().all()  # an unsure last exit answers all the same


def test_what_lies_behind_the_exit_is_not_computed():
    model, exits = spread()
    called = []
    for name, part in model.named_children():
        part.register_forward_hook(lambda *_, name=name: called.append(name))
    exits.answer(IMAGES, 0)
    assert called == ["stem", "stage1"]
    called.clear()
    exits.answer(IMAGES, 2)
    assert called == ["stem", "stage1", "stage2", "stage3", "pool", "head"]


def test_a_cost_is_what_is_computed_up_to_the_exit():
    _, exits = spread()
    costs = exits.costs(IMAGES)
    assert costs[0] < costs[1] < costs[2] and len(costs) == 3
    with torch.no_grad():
        sure = exits(IMAGES).softmax(-1).amax(-1)
    k = int((sure[:, 1] - sure[:, 0]).argmax())  # the first exit is less sure than the second
    for number, threshold in enumerate((0, float(sure[k, :2].mean()), 2)):
        with FlopCounterMode(display=False) as counter:
            _, left_at = exits.answer(IMAGES[k : k + 1], threshold)
        assert left_at == number and counter.get_total_flops() == costs[number]


def test_costs_of_a_tiny_network_by_hand():
    _, exits = made("cnn", widths=(2, 3, 4), inputs=IMAGES[..., :8, :8])
    stem = 16 * 9 * 1 * 2  # 4x4 places, 3x3 filter, 1 channel to 2
    stage1 = 16 * 9 * 2 * 2
    stage2 = 4 * 9 * 2 * 3  # pooled to 2x2 first
    stage3 = 1 * 9 * 3 * 4
    head1 = 16 * (2 * 4 + 4 * 4 + 4 * 4) + 4 * 5  # three 1x1 convolutions at 4x4, then 4 to 5
    head2 = 4 * (3 * 4 + 4 * 4 + 4 * 4) + 4 * 5
    first = stem + stage1 + head1
    second = first + stage2 + head2
    assert exits.costs(IMAGES[..., :8, :8]) == (2 * first, 2 * second, 2 * (second + stage3 + 20))
    assert exits.costs(IMAGES[:1, :, :8, :8]) == exits.costs(IMAGES[..., :8, :8])


def test_a_head_shrinks_a_map_to_about_4_by_4():
    head = ExitHead((1, 8, 14, 21), 5, 24)
    assert head.before(torch.randn(2, 8, 14, 21)).shape == (2, 24, 4, 4)
    inner = [m for m in head.before if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in inner] == [6, 6, 24] and inner[1].stride == (3, 5)
    assert head.embed(torch.randn(2, 8, 14, 21)).shape == (2, 24)
    assert head(torch.randn(2, 8, 14, 21).bfloat16()).dtype == torch.float32


def test_heads_are_as_wide_as_what_the_classifier_reads():
    model = build("cnn_tiny", 5, 1, seed=0)
    modes = {module: module.training for module in model.modules()}
    assert exit_heads(model, STAGES, IMAGES)[0].classifier.in_features == 24
    assert exit_heads(model, STAGES, IMAGES, width=7)[1].classifier.in_features == 7
    assert all(module.training == modes[module] for module in model.modules())


def test_the_model_stays_as_it_was_and_heads_can_be_dropped():
    model = build("cnn_tiny", 5, 1, seed=0).eval()
    weights, before = copy.deepcopy(model.state_dict()), model(IMAGES)
    exits = with_exits(model, dict(zip(STAGES, exit_heads(model, STAGES, IMAGES), strict=True)))
    exits.answer(IMAGES, 0)
    exits.costs(IMAGES)
    exits(IMAGES)
    assert exits.model is model and list(model.state_dict()) == list(weights)
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert all(not module._forward_hooks for module in model.modules())
    assert torch.equal(model(IMAGES), before)
    assert {key.split(".")[0] for key in exits.state_dict()} == {"model", "heads"}


def test_hooks_go_even_when_a_forward_fails():
    model, exits = made()
    with pytest.raises(ValueError, match="images: "):
        exits.answer(IMAGES[0], 0.5)
    assert all(not module._forward_hooks for module in model.modules())


def test_exits_are_in_the_models_order_and_in_eval_mode():
    model = build("cnn_tiny", 5, 1, seed=0)
    heads = exit_heads(model, ("stage2", "stage1"), IMAGES)
    exits = with_exits(model, {"stage2": heads[0], "stage1": heads[1]})
    assert exits.layers == STAGES and exits.heads[0] is heads[1] and not exits.training
    assert exits.costs(IMAGES)[0] < exits.costs(IMAGES)[1]


class Deaf(nn.Module):
    """Has a layer that no forward reaches and one of five dimensions."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(2, 2)
        self.inner = nn.Unflatten(1, (1, 1))

    def forward(self, x):
        return self.inner(x).flatten(1)


def test_errors_name_what_came_and_what_was_expected():
    model, exits = made()
    for threshold in (float("nan"), "high", None):
        with pytest.raises(ValueError, match=r"^threshold: .* came, expected a number"):
            exits.answer(IMAGES, threshold)
    with pytest.raises(ValueError, match=r"^layers: none came"):
        exit_heads(model, (), IMAGES)
    with pytest.raises(ValueError, match="did you mean 'stage1'"):
        exit_heads(model, ("stge1",), IMAGES)
    with pytest.raises(ValueError, match=r"nothing to read yet"):
        exit_heads(Deaf(), ("unused",), IMAGES)
    with pytest.raises(ValueError, match=r"^layers: 'inner': shape: \[6, 1, 1, 16, 16\] came"):
        exit_heads(Deaf(), ("inner",), IMAGES)
    with pytest.raises(ValueError, match=r"^heads: none came"):
        with_exits(model, {})
    with pytest.raises(ValueError, match="did you mean 'stage1'"):
        with_exits(model, {"stge1": exits.heads[0]})
    assert "stage1" in {layer.path for layer in paths(model)}
