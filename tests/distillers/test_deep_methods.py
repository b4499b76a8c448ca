"""Deep supervision, self-distillation and learned links: who is taught, and what remains."""

import copy
import re

import numpy as np
import pytest
import torch

from kdlab import losses
from kdlab.datasets import Split, from_arrays
from kdlab.distillers import (
    AttentionLinks,
    DeepSupervision,
    Labels,
    Outputs,
    SelfDistillation,
    SoftTargets,
    build,
)
from kdlab.models import Taps, build_for, with_exits
from kdlab.training import fit

STAGES = ("stage1", "stage2")


def make_data(n=48, size=16, classes=4):
    rng = np.random.default_rng(0)
    patterns = rng.random((classes, size, size, 1))
    y = np.arange(n) % classes
    x = (0.6 * patterns[y] + 0.4 * rng.random((n, size, size, 1))).astype(np.float32)
    return from_arrays(x, y, x[:8], y[:8], x_val=x[:8], y_val=y[:8])


DATA = make_data()
TOKENS = Split(torch.randint(3, 12, (8, 6)), torch.arange(8) % 4)
TOKENS.x[::2, 4:] = 0


def model(name, seed=0, **options):
    return build_for(name, DATA.shape, 4, seed=seed, **options)


def prepared(method, student, teacher=None, train=DATA.train):
    torch.manual_seed(1)
    with torch.no_grad():
        method.prepare(student.eval(), teacher.eval() if teacher else None, train)
    return method


def outputs(net, taps, images, grad=True):
    with Taps(net, taps) as read, torch.set_grad_enabled(grad):
        logits = net(images)
        return Outputs(logits, {path: read[path] for path in taps}, images)


def ask(method, student, teacher=None, split=DATA.train):
    said = outputs(teacher, method.teacher_taps, split.x[:8], grad=False) if teacher else None
    return method(outputs(student, method.student_taps, split.x[:8]), said, split.y[:8])


def says(*parts):
    return pytest.raises(ValueError, match="^" + ".*".join(map(re.escape, parts)))


# ---- who is taught ---------------------------------------------------------------------------


def reached(student):
    """The model's parts that got a gradient."""
    return {
        name
        for name, part in student.named_children()
        if any(p.grad is not None and p.grad.any() for p in part.parameters())
    }


def test_a_head_teaches_the_stages_below_it_and_not_the_teacher():
    student, teacher = model("cnn_tiny"), model("cnn", 1)
    method = prepared(DeepSupervision("stage2", feature_weight=1.0), student, teacher)
    torch.stack(list(ask(method, student, teacher).values())).sum().backward()
    assert reached(student) == {"stem", "stage1", "stage2"}
    assert all(p.grad is not None and p.grad.any() for p in method.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_only_its_own_labels_reach_the_deepest_exit():
    student = model("cnn_tiny")
    method = prepared(SelfDistillation(alpha=0.5, feature_weight=1.0), student)
    terms = ask(method, student)
    own = terms.pop("hard")
    torch.stack(list(terms.values())).sum().backward(retain_graph=True)
    assert reached(student) == {"stem", "stage1", "stage2"}
    assert all(p.grad is not None and p.grad.any() for p in method.parameters())
    own.backward()
    assert reached(student) == {"stem", "stage1", "stage2", "stage3", "head"}


def test_links_teach_all_linked_layers_of_the_student_alone():
    student, teacher = model("cnn_tiny"), model("cnn", 1)
    method = prepared(AttentionLinks(), student, teacher).train()
    (value,) = ask(method, student, teacher).values()
    value.backward()
    assert reached(student) == {"stem", "stage1", "stage2", "stage3"}
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in method.parameters())


# ---- training --------------------------------------------------------------------------------

RUNS = {
    "deep_supervision": (SoftTargets, {"feature_weight": 1.0, "balance": "loss"}),
    "self_distillation": (None, {}),
    "attention_links": (SoftTargets, {}),
}


@pytest.mark.parametrize("pair", [("cnn_tiny", "resnet8"), ("mobilenetv2", "cnn_tiny")], ids=str)
@pytest.mark.parametrize("name", RUNS)
def test_what_is_owned_moves_in_training_and_is_in_the_state(name, pair):
    base, options = RUNS[name]
    method, start = build(name, **options), {}

    def first(moment):
        start.update(copy.deepcopy(method.state_dict()) if not start else {})

    student, teacher = model(pair[0]), model(pair[1], 1) if base else None
    budget = {"epochs": 2, "batch_size": 16, "lr": 0.01, "device": "cpu", "callbacks": [first]}
    run = fit(student, DATA, base() + method if base else method, teacher=teacher, **budget)
    assert all(np.isfinite(value) for value in run.history.last.values())
    state = method.state_dict()
    assert dict(method.named_parameters()).keys() <= state.keys()
    assert all(not torch.equal(start[key], value) for key, value in state.items())
    assert not method.in_tournament and method.complete == (base is None)
    if base is None:
        assert {"hard", "exit_hard", "exit_soft", "exit_feature"} <= run.history.last.keys()
    elif name == "attention_links":
        assert {"links", "link_entropy"} <= run.history.last.keys()
        torch.testing.assert_close(method.links.sum(1), torch.ones(3))
        assert method.links.std() > 0
    else:
        weights = [run.history.last[f"weight_{path}"] for path in STAGES]
        assert {"exit_hard", "exit_soft", "exit_feature"} <= run.history.last.keys()
        assert sum(weights) == pytest.approx(2) and weights[0] != pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", ["deep_supervision", "self_distillation"])
def test_exits_after_training_are_the_heads(name):
    student, teacher = model("cnn_tiny"), model("cnn", 1)
    method = build(name)
    base = Labels() + method if name == "deep_supervision" else method
    fit(student, DATA, base, teacher=teacher, epochs=1, batch_size=16, lr=0.01, device="cpu")
    exits = with_exits(student, method.exits)
    images = DATA.test.x
    with torch.no_grad():
        got = exits(images)
        taps = outputs(student, STAGES, images).taps
        for number, path in enumerate(STAGES):
            torch.testing.assert_close(got[:, number], method.exits[path](taps[path]))
        hard = [losses.hard_label_loss(got[:, k], DATA.test.y) for k in range(2)]
        terms = ask(method, student, teacher, DATA.test)
    torch.testing.assert_close(terms["exit_hard"], (1 - method.alpha) * sum(hard))


@pytest.mark.parametrize("name", RUNS)
def test_texts_work_and_padding_changes_nothing(name):
    options = {"vocabulary": 12, "width": 8, "depth": 2, "max_length": 16}
    student = build_for("transformer", (6,), 4, seed=0, **options)
    teacher = build_for("transformer", (6,), 4, seed=1, **options | {"width": 12})
    blocks = ("blocks.0", "blocks.1")
    layers = {"student_layers": blocks, "teacher_layers": blocks, "weight": 1.0}
    if name != "attention_links":
        layers = {"layers": ("blocks.0",)}
    base, _ = RUNS[name]
    teacher = teacher if base else None
    method = prepared(build(name, **layers), student, teacher, TOKENS).eval()
    longer = Split(torch.cat([TOKENS.x, torch.zeros(8, 3, dtype=torch.int64)], 1), TOKENS.y)
    short, long = (ask(method, student, teacher, split) for split in (TOKENS, longer))
    # AFD's is a mean over all places, 6 or 9 of them
    scale = 1.5 if name == "attention_links" else 1.0
    for key, value in short.items():
        torch.testing.assert_close(scale * long[key], value, atol=1e-5, rtol=1e-4)
    torch.stack(list(short.values())).sum().backward()
    assert "blocks" in reached(student)


def test_what_needs_no_teacher_takes_none():
    student = model("cnn_tiny")
    assert not DeepSupervision(alpha=0.0).needs_teacher and DeepSupervision().needs_teacher
    assert DeepSupervision(alpha=0.0, feature_weight=1.0).needs_teacher
    assert DeepSupervision().needs_only_logits and SelfDistillation().needs_only_logits
    assert not DeepSupervision(feature_weight=1.0).needs_only_logits
    method = prepared(DeepSupervision(alpha=0.0), student)
    assert list(ask(method, student)) == ["exit_hard"]
    with says("teacher: DeepSupervision needs a teacher"):
        ask(prepared(DeepSupervision(), student), student)


def test_wrong_options_and_layers_are_refused_by_name():
    student = model("cnn_tiny")
    for wrong in (DeepSupervision, SelfDistillation):
        with says("layers: none came"):
            wrong(())
        with says("alpha: 1.5 came"):
            wrong(alpha=1.5)
        with says("feature_weight: -1"):
            wrong(feature_weight=-1)
        with says("temperature: 0"):
            wrong(temperature=0)
        with says("paths: the model has no layer 'stge1' (did you mean 'stage1'"):
            prepared(wrong("stge1"), student, student)
    with says('balance: \'los\' came, expected "equal", "loss" or'):
        DeepSupervision(balance="los")
    with says("balance: 1 numbers came, expected one per layer, 2"):
        DeepSupervision(balance=(1.0,))
    with says("balance: -1.0"):
        DeepSupervision(balance=(1.0, -1.0))
    with says("embedding: 'stage3' gives shape [2, 24, 2, 2], expected [B, d]"):
        prepared(SelfDistillation(embedding="stage3"), student)
    with says("student_layers: ('stage1',) came, expected at least 2 paths"):
        AttentionLinks("stage1")
    with says("teacher_layers: () came, expected at least 1"):
        AttentionLinks(teacher_layers=())
    with says("width: 0"):
        AttentionLinks(width=0)
    with says("weight: -1"):
        AttentionLinks(weight=-1)
    with says("teacher: none came"):
        prepared(AttentionLinks(), student)
    with says("teacher: AttentionLinks needs a teacher"):
        ask(prepared(AttentionLinks(), student, student), student)
