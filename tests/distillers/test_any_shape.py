"""Every method on inner layers, for every pair of shapes: trains, or is refused in `prepare`."""

import itertools
import re

import pytest
import torch
from pairs import ask, make, prepared
from torch import nn

from kdlab.datasets import Split
from kdlab.distillers import Hints, available
from kdlab.distillers.adapters import shapes
from kdlab.distillers.base import LayerDistiller
from kdlab.distillers.hierarchy import HierarchicalDistiller

BATCH = torch.arange(6)
DATA = Split(torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0)), BATCH % 4)


class Places(nn.Module):
    """[B, c, h, w] as [B, h · w, c]."""

    def forward(self, x):
        return x.flatten(2).mT


class Rows(nn.Module):
    """[B, c, h, w] as [B, c, h · w], the form of what a Conv1d takes and gives."""

    def forward(self, x):
        return x.flatten(2)


def layer(form, before, after):
    return {
        "map": lambda: nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.SiLU()),
        "tokens": lambda: nn.Sequential(nn.Linear(before, after), nn.SiLU()),
        "embedding": lambda: nn.Sequential(nn.Linear(before, after), nn.SiLU()),
        "series": lambda: nn.Sequential(nn.Conv1d(before, after, 3, padding=1), nn.SiLU()),
    }[form]()


ENTER = {
    "map": nn.Identity,
    "tokens": Places,
    "embedding": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "series": Rows,
}


class Net(nn.Module):
    """Two layers of one form, an embedding, logits."""

    def __init__(self, form, width, seed):
        torch.manual_seed(seed)
        super().__init__()
        self.form = form
        self.stem = nn.Sequential(nn.Conv2d(1, width, 4, 4), ENTER[form]())
        self.stage1 = layer(form, width, width)
        self.stage2 = layer(form, width, 2 * width)
        self.pool = nn.Identity()
        self.head = nn.Linear(2 * width, 4)

    def forward(self, x):
        x = self.stage2(self.stage1(self.stem(x)))
        places = {"map": (2, 3), "tokens": 1, "series": 2}.get(self.form)
        return self.head(self.pool(x if places is None else x.mean(places)))


FORMS = tuple(ENTER)
PAIRS = list(itertools.product(FORMS, FORMS))
LAYERED = {
    "attention_links": {"student_layers": ("stage1", "stage2"), "teacher_layers": ("stage2",)},
    "self_distillation": {"layers": ("stage1", "stage2")},
    "self_attention_relations": {"relations": "hidden", "relation_heads": 2},
    "contrastive": {"layers": "stage2"},
    "reused_classifier": {"layers": "stage2"},
    "deep_supervision": {"layers": ("stage1", "stage2"), "feature_weight": 1.0},
}
ON_LAYERS = [
    name
    for name, method in available("classes").items()
    if name in LAYERED or issubclass(method, LayerDistiller | HierarchicalDistiller)
]
REFUSED = {  # what has no meaning: (student, teacher)
    "attention_distributions": set(PAIRS),  # none of these has attention
}
TO_WIDER = {("embedding", form) for form in FORMS if form != "embedding"}
ONE_PLACE = {pair for pair in PAIRS if "embedding" in pair}
for name in ("hints", "channel_gated_hints", "deep_supervision", "masked_generation"):
    REFUSED[name] = TO_WIDER
for name in ("attention_links", "attention_transfer", "channel_wise", "neuron_selectivity"):
    REFUSED[name] = ONE_PLACE
for name in ("hidden_states", "self_attention_relations"):
    REFUSED[name] = ONE_PLACE


def method_for(name):
    options = LAYERED.get(name, {})
    if issubclass(available("classes")[name], LayerDistiller):
        options = {"layers": ("stage1", "stage2"), **options}
    return make(name, **options)


@pytest.mark.parametrize("name", ON_LAYERS)
def test_every_pair_of_shapes_trains_or_is_refused_by_name(name):
    for mine, theirs in PAIRS:
        student, teacher = Net(mine, 4, 1), Net(theirs, 6, 2)
        try:
            method = prepared(method_for(name), student.eval(), teacher.eval(), DATA)
        except ValueError as error:
            assert re.match(r"(layers|student|teacher): ", str(error)), (mine, theirs, error)
            assert re.search(r"stage[12]|blocks", str(error)), (mine, theirs, error)
            assert (mine, theirs) in REFUSED.get(name, ()), (mine, theirs, error)
            continue
        assert (mine, theirs) not in REFUSED.get(name, ()), (mine, theirs)
        terms = ask(method, student, teacher, DATA, BATCH)
        sum(terms.values()).backward()
        grads = [p.grad for p in student.parameters() if p.grad is not None]
        assert all(bool(grad.isfinite().all()) for grad in grads), (mine, theirs)
        reached = student.stage1[0].weight.grad
        assert reached is not None and bool(reached.any()), (mine, theirs)
        assert all(p.grad is None for p in teacher.parameters()), (mine, theirs)


class Turned(nn.Module):
    """A Conv1d whose output is turned into tokens before it leaves."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 1)

    def forward(self, x):
        return self.conv(x).mT


@pytest.mark.parametrize(
    ("parts", "path", "shape"),
    [
        ([Rows(), nn.Conv1d(1, 5, 1, 4)], "1", [2, 64, 5]),
        ([Rows(), nn.Conv1d(1, 5, 1, 4), nn.ReLU()], "2", [2, 64, 5]),
        ([Rows(), nn.Conv1d(1, 5, 1, 4), nn.ReLU()], "2:input", [2, 64, 5]),
        ([Rows(), nn.Conv1d(1, 5, 1, 4), nn.BatchNorm1d(5), nn.MaxPool1d(4)], "3", [2, 16, 5]),
        ([Rows(), nn.Conv1d(1, 16, 1, 16), nn.Dropout(0.1)], "2", [2, 16, 16]),
        ([Rows(), nn.Sequential(nn.Conv1d(1, 5, 1, 4), nn.ReLU())], "1", [2, 64, 5]),
        ([Rows(), nn.Conv1d(1, 4, 1, 4), Turned()], "2", [2, 64, 6]),
        ([Places(), nn.Linear(1, 5)], "1", [2, 256, 5]),
        ([Places(), nn.Linear(1, 5), nn.LayerNorm(5), nn.ReLU()], "3", [2, 256, 5]),
        ([Rows(), nn.Conv1d(1, 4, 1, 4), Rows(), nn.Linear(64, 8)], "3", [2, 4, 8]),
    ],
)
def test_what_has_its_channels_first_is_told_by_the_layers(parts, path, shape):
    model = nn.Sequential(*parts).eval()
    assert list(shapes(model, [path], DATA)[path]) == shape


def test_a_series_is_read_as_its_tokens():
    """The value is that of the same network with its features turned by hand."""
    student, teacher = Net("series", 4, 1).eval(), Net("series", 6, 2).eval()
    method = prepared(Hints("stage2"), student, teacher, DATA)
    said = ask(method, student, teacher, DATA, BATCH)["hint"]
    (regressor,) = method.regressors
    mine, theirs = (
        net.stage2(net.stage1(net.stem(DATA.x[BATCH]))).mT for net in (student, teacher)
    )
    expected = 100 * (regressor(mine) - theirs).square().mean()
    torch.testing.assert_close(said, expected)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (nn.LSTM(16, 5), "expected one entry per sample"),  # [N, B, d], as batch_first is False
        (nn.Flatten(0, 1), "expected one entry per sample"),
    ],
)
@pytest.mark.parametrize("name", ["similarity_preserving", "hints", "contrastive", "relational"])
def test_a_layer_without_one_entry_per_sample_is_refused(name, part, expected):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.part, self.head = part, nn.Linear(256, 4)

        def forward(self, x):
            self.part(x.flatten(1, 2).transpose(0, 1))
            return self.head(x.flatten(1))

    with pytest.raises(ValueError, match=f"^layers: 'part' gives .*{expected}"):
        prepared(make(name, layers={"part": "stage2"}), Mixed(), Net("map", 4, 1).eval(), DATA)
