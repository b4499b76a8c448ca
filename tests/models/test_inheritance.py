"""A student inherits from its teacher: which blocks, which channels, the same ones everywhere."""

import copy

import pytest
import torch
from torch import nn
from widening import (
    Dense,
    Flattened,
    Gated,
    Halved,
    Padded,
    Words,
    chain,
    inverted,
    kept_in,
    lively,
    number_places,
    residual,
    widen,
)

from kdlab.models import build, inherit
from kdlab.models.blocks import BLOCKS
from kdlab.models.flow import Flow
from kdlab.models.mobilenet import mobilenetv2
from kdlab.models.resnet import resnet
from kdlab.models.wide_resnet import wide_resnet

IMAGES = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(3)).double()
TOKENS = torch.tensor([[0, 3, 6, 2], [5, 5, 1, 0]])


def mlp(hidden, activation="relu"):
    return build("mlp", 5, in_features=432, hidden=hidden, activation=activation)


# Two builders of one kind of model, narrow and wide, and where their channels meet.
FAMILIES = {
    "cnn": (lambda: build("cnn_tiny", 5), lambda: build("cnn_large", 5), chain),
    "cnn, deep": (
        lambda: build("cnn", 5, widths=(2, 3), depth=2),
        lambda: build("cnn", 5, widths=(4, 8), depth=2),
        chain,
    ),
    "resnet": (
        lambda: resnet(5, depth=14, widths=(4, 4, 6, 8)),
        lambda: resnet(5, depth=14, widths=(6, 6, 12, 16)),
        residual,
    ),
    "resnet x4": (
        lambda: resnet(5, depth=8, widths=(2, 4, 8, 8)),
        lambda: resnet(5, depth=8, widths=(4, 8, 12, 16)),
        residual,
    ),
    "wide resnet": (
        lambda: wide_resnet(5, depth=16, widen=2),
        lambda: wide_resnet(5, depth=16, widen=3),
        residual,
    ),
    "mobilenet": (
        lambda: mobilenetv2(5, width=0.13, expansion=2),
        lambda: mobilenetv2(5, width=0.25, expansion=3),
        inverted,
    ),
    "mlp": (lambda: mlp((6, 4)), lambda: mlp((9, 8)), chain),
    "flattened": (lambda: Flattened(3), lambda: Flattened(7), Flattened.LABELS),
    "dense": (lambda: Dense(3), lambda: Dense(8), Dense.LABELS),
    "gated": (lambda: Gated(4), lambda: Gated(6), Gated.LABELS),
    "halved": (lambda: Halved(3), lambda: Halved(7), Halved.LABELS),
    "padded": (lambda: Padded(3), lambda: Padded(5), Padded.LABELS),
    "words": (lambda: Words(4), lambda: Words(7), Words.LABELS),
}
NORMED = ["cnn", "resnet", "resnet x4", "wide resnet", "mobilenet"]


def example_of(model):
    return TOKENS if isinstance(model, Words) else IMAGES


def outputs(model):
    return model.eval()(example_of(model)).detach()


def same(a, b):
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def family(name):
    narrow, wide, labels = FAMILIES[name]
    truth, teacher = lively(narrow()), lively(wide(), seed=1)
    widen(truth, teacher, labels(truth) if callable(labels) else labels)
    return truth, teacher, lively(narrow(), seed=2)


@pytest.mark.parametrize(
    ("name", "importance"),
    [(name, "l1") for name in FAMILIES] + [(name, "batch_norm") for name in NORMED],
)
def test_a_student_hidden_in_its_teacher_is_found(name, importance):
    """The teacher's other channels do nothing: what remains must compute exactly the same."""
    truth, teacher, student = family(name)
    assert not same(student, truth)
    inherit(student, teacher, example_of(teacher), importance=importance)
    assert same(student, truth)
    torch.testing.assert_close(outputs(student), outputs(teacher), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_channels_are_kept_wherever_they_flow(name):
    """Random channels: only what is chosen together agrees."""
    narrow, wide, labels = FAMILIES[name]
    student, teacher = narrow(), number_places(wide())
    labels = labels(student) if callable(labels) else labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inherit(student.double(), teacher, example_of(teacher), importance="random")
    found = kept_in(student, teacher, labels)
    for places in found.values():
        for where, channels in places:
            assert channels == places[0][1], f"{where} differs from {places[0][0]}"
    assert len({str(places[0][1]) for places in found.values()}) > len(found) // 2


@pytest.mark.parametrize("name", FAMILIES)
def test_a_student_like_its_teacher_becomes_a_copy(name):
    _, wide, _ = FAMILIES[name]
    teacher, student = lively(wide()), lively(wide(), seed=1)
    before = copy.deepcopy(teacher)
    report = inherit(student, teacher, example_of(teacher), importance="random")
    assert same(student, teacher) and same(teacher, before)
    assert torch.equal(outputs(student), outputs(teacher))
    assert not report.left and not report.unused
    assert all(len(kept) == report.out_of[layer] for layer, kept in report.channels.items())


@pytest.mark.parametrize("name", ["shufflenetv1", "shufflenetv2"])
def test_channels_are_followed_through_shuffles_and_splits(name):
    teacher, student = lively(build(name, 5)), lively(build(name, 5), seed=1)
    report = inherit(student, teacher, IMAGES, importance="random")
    assert torch.equal(outputs(student), outputs(teacher)) and not report.left


@pytest.mark.parametrize(
    ("large", "small"),
    [
        ("resnet56", "resnet20"),
        ("resnet20", "resnet8"),
        ("resnet32x4", "resnet8x4"),
        ("resnet32x4", "resnet20"),
        ("resnet8x4", "resnet8"),
        ("wrn_40_2", "wrn_16_2"),
        ("wrn_40_2", "wrn_16_1"),
        ("vgg13", "vgg8"),
    ],
)
def test_pairs_of_the_literature(large, small):
    teacher, student = build(large, 5, seed=0), build(small, 5, seed=1)
    before = copy.deepcopy(student.state_dict())
    report = inherit(student, teacher, IMAGES.float())
    assert not report.left and report.unused
    assert torch.isfinite(student(IMAGES.float())).all()
    for name, value in student.state_dict().items():
        if value.dim() > 1:
            assert not torch.equal(value, before[name]), name
            layer, source = name.removesuffix(".weight"), teacher.state_dict()
            kept = report.channels[layer]
            rows = source[f"{report.layers[layer]}.weight"][kept]
            assert torch.isin(value.flatten()[::97], rows).all()


@pytest.mark.parametrize(
    ("rule", "small", "large", "expected"),
    [
        ("spread", 6, 12, [0, 2, 4, 7, 9, 11]),  # the released code of DistilBERT
        ("spread", 3, 12, [0, 6, 11]),
        ("spread", 3, 9, [0, 4, 8]),
        ("spread", 3, 10, [0, 5, 9]),  # a half goes up
        ("spread", 2, 5, [0, 4]),
        ("spread", 1, 9, [0]),
        ("every", 6, 12, [0, 2, 4, 6, 8, 10]),
        ("every", 2, 5, [0, 2]),
        ("every", 3, 5, [0, 1, 3]),
        ("first", 3, 9, [0, 1, 2]),
        ("last", 3, 9, [6, 7, 8]),
    ],
)
def test_which_blocks(rule, small, large, expected):
    assert list(BLOCKS[rule](small, large)) == expected


def numbered(model):
    """Each block's weights are its number."""
    for stage in (1, 2, 3):
        for number, block in enumerate(getattr(model, f"stage{stage}")):
            for parameter in block.parameters():
                parameter.data.fill_(number)
    return model


@pytest.mark.parametrize(
    ("rule", "plain", "projected"),
    [
        ("spread", [0, 4, 8], [0, 4, 8]),
        ("every", [0, 3, 6], [0, 3, 6]),
        ("last", [6, 7, 8], [0, 7, 8]),  # only a block with a projection can change the width
    ],
)
def test_blocks_come_from_where_the_rule_says(rule, plain, projected):
    teacher = numbered(resnet(5, depth=56, widths=(4, 4, 6, 8)))
    student = resnet(5, depth=20, widths=(4, 4, 6, 8))
    report = inherit(student, teacher, IMAGES.float(), blocks=rule)
    for stage, expected in ((1, plain), (2, projected), (3, projected)):
        for number, source in enumerate(expected):
            block = getattr(student, f"stage{stage}")[number]
            assert all((p == source).all() for p in block.parameters())
            layer = f"stage{stage}.{number}.conv1"
            assert report.layers[layer] == f"stage{stage}.{source}.conv1"
    assert "stage2.5.bn1" in report.unused and "head" not in report.unused


def test_a_block_without_projection_takes_the_nearest_such_block():
    teacher = numbered(resnet(5, depth=32, widths=(4, 8, 8, 8)))
    student = resnet(5, depth=20, widths=(4, 4, 8, 8))
    report = inherit(student, teacher, IMAGES.float())
    sources = [report.layers[f"stage1.{number}.conv2"] for number in range(3)]
    assert sources == ["stage1.1.conv2", "stage1.2.conv2", "stage1.4.conv2"]


def test_rows_of_layers_are_taken_block_by_block():
    """Convolution, norm, ReLU stand side by side in a Sequential; Linear layers in a ModuleList."""
    teacher, student = build("vgg13", 5, seed=0), build("vgg8", 5, seed=1)
    report = inherit(student, teacher, IMAGES.float(), blocks="last")
    assert report.layers["stem.0"] == "stem.0"  # stem.3 reads 64 channels, an image has 3
    assert report.layers["stem.1"] == "stem.1"
    assert report.layers["stage1.1"] == "stage1.4" and report.layers["stage1.2"] == "stage1.5"
    student, teacher = mlp((8,)), mlp((8, 8, 8))
    inherit(student, teacher, IMAGES.float())
    assert torch.equal(student.layers[0].weight, teacher.layers[0].weight)
    assert torch.equal(student.layers[1].weight, teacher.layers[3].weight)
    student = mlp((4,), activation="gelu")
    assert inherit(student, teacher, IMAGES.float(), blocks="every").layers == {
        "layers.0": "layers.0",
        "layers.1": "layers.3",  # the second of two is layers.2, but there the classes do not fit
    }


class Pair(nn.Module):
    """Two convolutions that are added, a norm, a reader."""

    def __init__(self, w):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, w, 1, bias=False), nn.Conv2d(3, w, 1, bias=False)
        self.n, self.c = nn.BatchNorm2d(w), nn.Linear(w, 5)

    def forward(self, x):
        return self.c(self.n(self.a(x) + self.b(x)).mean((2, 3)))


def pair():
    """Sums of |weights|: a: 4, 1, 2, 3; b: 1, 3.5, 0, 2.5; of both: 5, 4.5, 2, 5.5."""
    teacher = Pair(4)
    for conv, sums in ((teacher.a, [4, -1, 2, -3]), (teacher.b, [1, 3.5, 0, 2.5])):
        signs = torch.tensor([0.5, -0.25, 0.25])
        conv.weight.data[:, :, 0, 0] = torch.tensor(sums)[:, None] * signs
    teacher.n.weight.data = torch.tensor([0.5, -0.1, -2.0, 1.0])
    teacher.c.weight.data[:, 0] = 100  # who reads a channel does not make it important
    return teacher


@pytest.mark.parametrize(
    ("importance", "width", "expected"),
    [("l1", 1, [3]), ("l1", 2, [0, 3]), ("l1", 3, [0, 1, 3]), ("batch_norm", 2, [2, 3])],
)
def test_the_most_important_channels_are_kept_in_order(importance, width, expected):
    teacher, student = pair(), Pair(width)
    report = inherit(student, teacher, IMAGES.float(), importance=importance)
    for layer in "abn":
        assert report.channels[layer].tolist() == expected and report.out_of[layer] == 4
    assert torch.equal(student.a.weight, teacher.a.weight[expected])
    assert torch.equal(student.b.weight, teacher.b.weight[expected])
    assert torch.equal(student.n.running_var, teacher.n.running_var[expected])
    assert torch.equal(student.c.weight, teacher.c.weight[:, expected])


def test_an_embedding_writes_its_channels():
    def model(w):
        return nn.Sequential(nn.Embedding(7, w), nn.Flatten(), nn.Linear(4 * w, 5))

    teacher, student = model(4), model(2)
    teacher[0].weight.data[:, [1, 3]] *= 100
    inherit(student, teacher, TOKENS)
    assert torch.equal(student[0].weight, teacher[0].weight[:, [1, 3]])
    assert torch.equal(student[2].weight, teacher[2].weight[:, 1::2])


def test_of_equals_the_first_are_kept():
    teacher, student = Pair(64), Pair(8)
    for weight in teacher.parameters():
        weight.data.fill_(1.0)
    assert inherit(student, teacher, IMAGES.float()).channels["a"].tolist() == list(range(8))


def test_random_channels_depend_on_the_seed_alone():
    def kept(seed):
        torch.manual_seed(seed)
        report = inherit(student, teacher, IMAGES.float(), importance="random")
        return [report.channels[layer].tolist() for layer in ("stem.0", "stem.1", "stage2.1")]

    teacher, student = build("cnn_large", 5, seed=0), build("cnn_tiny", 5)
    with torch.random.fork_rng(devices=[]):
        first, again, other = kept(0), kept(0), kept(1)
    report = inherit(student, teacher, IMAGES.float())
    assert first == again and first != other and first[0] == first[1]
    assert first[0] != report.channels["stem.0"].tolist()


class Heads(nn.Module):
    """Attention whose heads tie channels together; blocks in a row."""

    def __init__(self, w, blocks):
        super().__init__()
        self.words = nn.Embedding(7, w)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(w, 2, 2 * w, batch_first=True) for _ in range(blocks)
        )
        self.out = nn.Linear(w, 5)

    def forward(self, x):
        x = self.words(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x.mean(1))


class Grouped(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, w, 1), nn.Conv2d(w, w, 1, groups=2)
        self.c = nn.Linear(w, 5)

    def forward(self, x):
        return self.c(self.b(self.a(x)).mean((2, 3)))


class Mixed(nn.Module):
    """Its channels pass one function before they are read."""

    def __init__(self, w, function):
        super().__init__()
        self.a, self.c, self.function = nn.Conv2d(3, w, 1), nn.Linear(w, 5), function

    def forward(self, x):
        return self.c(self.function(self.a(x)).mean((2, 3)))


class ChannelsLast(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


def test_tied_channels_can_lose_blocks_but_no_width():
    teacher, student = Heads(8, 4), Heads(8, 2)
    report = inherit(student, teacher, TOKENS)
    assert report.layers["blocks.1.linear1"] == "blocks.3.linear1"
    assert same(student.blocks[1], teacher.blocks[3])
    with pytest.raises(ValueError, match=r"\[7, 4\].*\[7, 8\]: 4 for 8, but "):
        inherit(Heads(4, 2), teacher, TOKENS)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda x: x.softmax(1), "softmax"),
        (lambda x: x.cumsum(1), "cumsum"),
        (lambda x: x * x.mean(1, keepdim=True), "mean"),
        (lambda x: x + torch.linspace(0, 1, x.shape[1])[:, None, None], "add"),
        (lambda x: nn.functional.group_norm(x, 2), "2 groups"),
        (lambda x: nn.functional.pixel_shuffle(x, 2), "a.weight"),
        (lambda x: x + x.index_select(1, (torch.arange(x.shape[1]) < 2).long()), "another way"),
        (lambda x: x.unflatten(1, (2, -1)).flatten(1, 2), "several axes"),
    ],
)
def test_what_mixes_channels_keeps_them_all(function, why):
    def model(w):
        mixed = Mixed(w, function)
        mixed.c = nn.Linear(mixed.function(torch.zeros(1, w, 4, 4)).shape[1], 5)
        return mixed

    teacher, student = model(8), model(8)
    inherit(student, teacher, IMAGES.float())
    assert same(student, teacher)
    with pytest.raises(ValueError, match=why):
        inherit(model(4), teacher, IMAGES.float())


def test_a_tensor_that_is_gone_leaves_no_channels_to_others():
    weight = torch.ones(4)
    flow = Flow([weight])
    with flow:
        for _ in range(20):
            weight * 2  # Python gives its place in memory, and so its id, to the next tensor
            assert flow.of(torch.zeros(4)) == (None,)


def test_groups_of_a_convolution_keep_all_channels():
    with pytest.raises(ValueError, match="a convolution of 2 groups ties them together"):
        inherit(Grouped(4), Grouped(8), IMAGES.float())


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (
            lambda: build("cnn_large", 5),
            lambda: build("cnn_tiny", 5),
            r"^student: stem.0.weight is \[32, 3, 3, 3\], the teacher's stem.0.weight is "
            r"\[8, 3, 3, 3\]: the student is wider, 32 channels for 8; choose .*strict=False",
        ),
        (
            lambda: build("resnet8", 5),
            lambda: build("vgg8", 5),
            "^student: stage1.0.conv1 has no counterpart: in the teacher stage1.1 is a Conv2d "
            "with no parts; choose",
        ),
        (
            lambda: build("resnet20", 5),
            lambda: build("resnet8", 5),
            "stage1.1.conv1 has no counterpart: in the teacher stage1 is a Sequential with the "
            "parts 0;",
        ),
        (
            lambda: build("cnn_tiny", 4),
            lambda: build("cnn_large", 5),
            r"head.weight is \[4, 24\], the teacher's head.weight is \[5, 96\]: 4 for 5, but the "
            "number of classes",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(400, 5)),
            lambda: nn.Sequential(nn.Conv2d(3, 4, 5), nn.Flatten(), nn.Linear(256, 5)),
            r"0.weight is \[4, 3, 3, 3\], .* \[4, 3, 5, 5\]: 3 for 5, but the size of a kernel",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(200, 5)),
            lambda: nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(200, 5)
            ),
            r"2.weight is \[5, 200\], .*3.weight is \[5, 200\]: .* another way",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(288, 5)),
            lambda: nn.Sequential(
                nn.Conv2d(3, 8, 1), ChannelsLast(), nn.Flatten(), nn.Linear(1152, 5)
            ),
            r"2.weight is \[5, 288\], .*3.weight is \[5, 1152\]: .* another way",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(576, 5)),
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(432, 5), nn.Linear(5, 5)),
            r"0.weight is \[4, 3, 1, 1\], .*1.weight is \[5, 432\]: another kind of layer",
        ),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(432, 5)),
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(432, 5, bias=False)),
            "1.bias has no counterpart in the teacher, which has no 1.bias",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_changed(student, teacher, message):
    student, teacher = student(), teacher()
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(ValueError, match=message):
        inherit(student, teacher, IMAGES.float())
    after = student.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_channels_without_a_batch_norm_have_no_scale():
    with pytest.raises(ValueError, match="no layer that this importance is read from"):
        inherit(mlp((4,)), mlp((8,)), IMAGES.float(), importance="batch_norm")


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="unknown importance 'l2'; known: l1, "):
        inherit(mlp(()), mlp(()), IMAGES.float(), importance="l2")
    with pytest.raises(ValueError, match=r"^unknown blocks 'lst' .did you mean 'last'"):
        inherit(mlp(()), mlp(()), IMAGES.float(), blocks="lst")


def test_layers_that_do_not_fit_may_keep_their_start():
    teacher, student = build("resnet8x4", 5, seed=0), build("resnet20", 5, seed=1)
    before = copy.deepcopy(student.state_dict())
    report = inherit(student, teacher, IMAGES.float(), strict=False)
    after = student.state_dict()
    assert "stage2.1.conv1" in report.left and "stage2.0.conv1" in report.layers
    assert report.left.keys().isdisjoint(report.layers)
    for name in (name for name in before if name.endswith("conv1.weight")):
        left = name.removesuffix(".weight") in report.left
        assert torch.equal(after[name], before[name]) == left
    assert "stage2.1.conv1 keeps its start: stage2.1.conv1 has no counterpart" in str(report)
    assert "stage2.0.conv1 <- stage2.0.conv1: 32 of 128" in str(report)
    with pytest.raises(ValueError, match="none of its layers has a counterpart"):
        inherit(Words(4), Words(2), TOKENS, strict=False)


def test_modes_are_restored_and_inference_mode_does_no_harm():
    teacher, student = build("cnn_large", 5).train(), build("cnn_tiny", 5)
    teacher.stage1.eval()
    modes = [module.training for module in teacher.modules()]
    plain = copy.deepcopy(student)
    inherit(plain, teacher, IMAGES.float())
    with torch.inference_mode():  # here operations arrive that are made of others
        inherit(student, teacher, IMAGES.float())
    assert same(student, plain)
    assert [module.training for module in teacher.modules()] == modes
    assert all(p.requires_grad and not p.is_inference() for p in student.parameters())
    student(IMAGES.float()).sum().backward()


class Tied(nn.Module):
    """One layer under two names, a number that is no vector."""

    def __init__(self, w):
        super().__init__()
        self.a, self.factor = nn.Linear(3, w), nn.Parameter(torch.ones(()))
        self.b = self.c = nn.Linear(w, w)
        self.d = nn.Linear(w, 5)

    def forward(self, x):
        return self.d(self.c(self.b(self.a(x.mean((2, 3)))))) * self.factor


def test_shared_layers_and_single_numbers():
    teacher, student = Tied(8), Tied(4)
    teacher.factor.data.fill_(3.0)
    for layer in (teacher.a, teacher.b):
        layer.weight.data[[0, 2, 4, 6]] *= 100
    report = inherit(student, teacher, IMAGES.float())
    even = [0, 2, 4, 6]
    assert torch.equal(student.b.weight, teacher.b.weight[even][:, even])
    assert student.factor == 3.0 and student.b is student.c
    assert report.channels["a"].tolist() == even
