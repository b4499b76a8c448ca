"""How methods call models: any output, memory order, compiled, without parameters."""

import pytest
import torch
from pairs import ATTENTION, ask, cnn, images, make, pair, prepared
from torch import nn

from kdlab.datasets import Split
from kdlab.distillers import available
from kdlab.distillers.gated import Gated, LearnedGate
from kdlab.models import Committee, exit_heads, inherit, logits_of, with_exits

# to compile takes a second, and what depends on it (taps, dry runs) is in these
COMPILED = ("contrastive", "deep_supervision", "gated_teachers", "hints", "overhaul")


class Answer:
    def __init__(self, logits):
        self.logits = logits


FORMS = {
    "view": lambda z: z,
    "tuple": lambda z: (z, None),
    "dict": lambda z: {"loss": z.sum(), "logits": z},
    "object": Answer,
}


class Foreign(nn.Module):
    """Somebody's model: it needs contiguous images and returns its logits in some form."""

    def __init__(self, inside, form):
        super().__init__()
        for name, part in inside.named_children():
            self.add_module(name, part)
        self.form = form

    def forward(self, x):
        x = x.view(len(x), -1).view(len(x), 1, 16, 16)
        for part in self.children():
            x = part(x)
        return FORMS[self.form](x)


def strided(split):
    """The same images with their samples side by side in memory."""
    moved = torch.empty(*split.x.shape[1:], len(split)).permute(3, 0, 1, 2)
    return Split(moved.copy_(split.x), split.y)


def foreign(name, form):
    student, teacher = pair(name)
    if name == "gated_teachers":
        teacher = Committee(Foreign(member, form) for member in teacher.members)
    else:
        teacher = Foreign(teacher, form)
    return Foreign(student, form).eval(), teacher.eval()


def compiled(name, form):
    student, teacher = pair(name)
    if form == "compiled":
        return torch.compile(student, backend="eager"), torch.compile(teacher, backend="eager")
    student.compile(backend="eager")
    teacher.compile(backend="eager")
    return student, teacher


def terms(name, student, teacher, train):
    torch.manual_seed(0)
    method = prepared(make(name), student, teacher, train)
    found = ask(method, student, teacher, train, torch.arange(8))
    if found:
        sum(found.values()).backward()
        assert any(p.grad is not None and p.grad.any() for p in student.parameters())
    return found


@pytest.mark.parametrize("name", [name for name in available("classes") if name not in ATTENTION])
def test_every_method_calls_every_model(name):
    expected = terms(name, *pair(name), images())
    forms = (*FORMS, "compiled", "compiled in place") if name in COMPILED else FORMS
    for form in forms:
        models = foreign(name, form) if form in FORMS else compiled(name, form)
        found = terms(name, *models, strided(images()))
        assert found.keys() == expected.keys(), form
        for term, value in found.items():
            torch.testing.assert_close(value, expected[term], rtol=1e-4, atol=1e-6)


class Lookup(nn.Module):
    """A teacher without any parameter."""

    def __init__(self):
        super().__init__()
        self.stage2, self.pool = nn.AvgPool2d(4), nn.Flatten()

    def forward(self, x):
        return self.pool(self.stage2(x))[:, :4]


@pytest.mark.parametrize(
    "name", ["soft_targets", "hints", "contrastive", "overhaul", "channel_gated_hints"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_teacher_without_parameters(name, dtype):
    options = {"layers": "stage2"} if name == "overhaul" else {}
    method = prepared(make(name, **options), cnn(4, 1), Lookup().eval(), images(12, dtype))
    found = ask(method, cnn(4, 1), Lookup().eval(), images(12, dtype), torch.arange(8))
    assert all(bool(term.isfinite()) for term in found.values())


@pytest.mark.parametrize("sees", ["image", "answer"])
@pytest.mark.parametrize("form", ["dict", "compiled"])
def test_a_learned_gate_asks_any_teacher(sees, form):
    models = foreign("gated", form) if form in FORMS else compiled("gated", form)
    method = Gated(gate=LearnedGate(sees, steps=2, share=1.0))
    prepared(method, *models, images())
    assert "soft" in ask(method, *models, images(), torch.arange(8))


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        ("tuple", torch.bfloat16),
        ("dict", torch.float64),
        ("object", torch.float32),
        ("view", torch.float32),
        ("compiled", torch.float64),
        ("compiled in place", torch.float32),
    ],
)
def test_exits_of_any_model(form, dtype):
    model, _ = foreign("labels", form) if form in FORMS else compiled("labels", form)
    model.to(dtype)
    x = strided(images(4)).x
    heads = exit_heads(model, ["stage1", "stage2"], x)
    both = with_exits(model, {"stage1": heads[0], "stage2": heads[1]})
    x = x.to(dtype).contiguous()
    with torch.no_grad():
        logits = both(x)
        own = logits_of(model(x))
    assert logits.shape == (4, 3, 4)
    torch.testing.assert_close(logits[:, -1], own.to(logits.dtype))
    answered, number = both.answer(x, 2.0)
    assert answered.shape == (4, 4) and (number == 2).all()


def test_exits_after_a_conv1d_read_its_places():
    model = nn.Sequential(nn.Flatten(2), nn.Conv1d(1, 6, 8, 8), nn.Flatten(), nn.Linear(192, 4))
    heads = exit_heads(model.eval(), ["1"], images(4).x)
    assert heads[0].after.in_features == 6
    exits = with_exits(model, {"1": heads[0]})
    x = images(4).x
    early = heads[0](model[1](model[0](x)).mT)
    torch.testing.assert_close(exits(x)[:, 0], early)
    torch.testing.assert_close(exits.answer(x, 0.0)[0], early)


@pytest.mark.parametrize("form", ["compiled", "compiled in place"])
def test_a_compiled_student_inherits_from_a_compiled_teacher(form):
    student, teacher = compiled("weight_transfer", form)
    plain, from_whom = pair("weight_transfer")
    said = inherit(student, teacher, strided(images()).x)
    assert str(said) == str(inherit(plain, from_whom, images().x))
    for mine, expected in zip(student.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, expected)
