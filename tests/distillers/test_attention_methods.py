"""Attention methods: losses times weights, layers matched and scheduled, texts and images alike."""

import copy
import re

import numpy as np
import pytest
import torch

from kdlab.datasets import Split, from_arrays
from kdlab.distillers import (
    AttentionDistributions,
    HiddenStates,
    Labels,
    Outputs,
    SelfAttentionRelations,
    SoftTargets,
    available,
    build,
    contestants,
)
from kdlab.distillers.hierarchy import all_alike, climbing, layer_rows, layers_of
from kdlab.losses import (
    attention_distribution_loss,
    attention_score_loss,
    hidden_state_loss,
    relation_loss,
)
from kdlab.models import Taps, build_for
from kdlab.training import fit

METHODS = {
    "self_attention_relations": ["relation"],
    "attention_distributions": ["attention", "value"],
    "hidden_states": ["hidden"],
}
every_method = pytest.mark.parametrize("name", METHODS)
TOKENS = torch.tensor(
    [[2, 5, 6, 7, 8, 9], [2, 9, 4, 0, 0, 0], [2, 6, 6, 3, 0, 0], [2, 0, 0, 0, 0, 0]]
)
Y = torch.tensor([0, 1, 2, 0])
TEXTS = Split(TOKENS, Y)


def text_model(name="transformer", seed=0, **options):
    options = {"vocabulary": 12, "width": 8, "dropout": 0.0, **options}
    if name == "transformer":
        options = {"heads": 2, "depth": 2, "max_length": 9, **options}
    return build_for(name, (6,), 3, seed=seed, **options).eval()


def make_images(n=48):
    random = np.random.default_rng(0)
    patterns = random.random((4, 8, 8))
    y = np.arange(n) % 4
    x = (0.6 * patterns[y] + 0.4 * random.random((n, 8, 8)))[..., None].astype(np.float32)
    return from_arrays(x, y, x, y, x_val=x[:20], y_val=y[:20])


IMAGES = make_images()


def image_model(name, seed=0, **options):
    return build_for(name, IMAGES.shape, 4, seed=seed, **options).eval()


def prepared(distiller, student, teacher, train=TEXTS):
    torch.manual_seed(1)
    with torch.no_grad():
        distiller.prepare(student, teacher, train)
    return distiller


def outputs(model, paths, inputs, progress=0.0):
    with Taps(model, list(paths)) as taps:
        logits = model(inputs)
        return Outputs(logits, dict(taps), inputs, None, progress)


def run(distiller, student, teacher, inputs=TOKENS, progress=0.0):
    """The terms of a prepared method."""
    mine = outputs(student, distiller.student_taps, inputs, progress)
    with torch.no_grad():
        theirs = outputs(teacher, distiller.teacher_taps, inputs)
    return distiller(mine, theirs, Y)


def tap(model, path, inputs=TOKENS):
    with Taps(model, [path]) as taps, torch.no_grad():
        model(inputs)
        return taps[path]


def says(*parts):
    return pytest.raises(ValueError, match="^" + ".*".join(map(re.escape, parts)))


# ---- terms -------------------------------------------------------------------------------------


def test_relations_are_the_mean_over_queries_keys_and_values_at_the_matched_layers():
    student, teacher = text_model(), text_model(seed=1, width=12, depth=4, heads=3)
    method = prepared(SelfAttentionRelations(relation_heads=4, weight=3.0), student, teacher)
    expected = torch.stack(
        [
            relation_loss(
                tap(student, f"blocks.{i}.attention.{x}"),
                tap(teacher, f"blocks.{j}.attention.{x}"),
                4,
                TOKENS != 0,
            )
            for i, j in ((0, 1), (1, 3))
            for x in ("query", "key", "value")
        ]
    )
    got = run(method, student, teacher)
    assert list(got) == ["relation"] and got["relation"] > 0
    torch.testing.assert_close(got["relation"].detach(), 3 * expected.mean())


@pytest.mark.parametrize("compare", ["probabilities", "scores"])
def test_distributions_are_compared_head_by_head_beside_the_values(compare):
    student, teacher = text_model(), text_model(seed=1, width=12, depth=3)
    method = AttentionDistributions(compare, value_weight=0.5, weight=2.0)
    got = run(prepared(method, student, teacher), student, teacher)
    loss = {"probabilities": attention_distribution_loss, "scores": attention_score_loss}[compare]
    scores = "blocks.{}.attention.weights:input"
    value = "blocks.{}.attention.value"
    pair = tap(student, scores.format(1)), tap(teacher, scores.format(2))
    torch.testing.assert_close(got["attention"].detach(), 2 * loss(*pair, TOKENS != 0))
    pair = tap(student, value.format(1)), tap(teacher, value.format(2))
    torch.testing.assert_close(got["value"].detach(), relation_loss(*pair, 2, TOKENS != 0))
    alone = AttentionDistributions(compare, value_weight=0, mapping="uniform")
    assert list(run(prepared(alone, student, teacher), student, teacher)) == ["attention"]
    assert not any("value" in path for path in alone.student_taps)


def test_hidden_states_go_through_one_linear_map_each():
    student, teacher = text_model("lstm", depth=2), text_model(seed=1, width=12, depth=4)
    method = prepared(HiddenStates(weight=2.0), student, teacher)
    expected = [
        hidden_state_loss(
            tap(student, f"layers.{i}") @ method.maps[i].weight.T,
            tap(teacher, f"blocks.{j}"),
            TOKENS != 0,
        )
        for i, j in ((0, 1), (1, 3))
    ]
    torch.testing.assert_close(
        run(method, student, teacher)["hidden"], 2 * torch.stack(expected).mean()
    )
    assert [tuple(m.weight.shape) for m in method.maps] == [(12, 8)] * 2


@every_method
def test_a_copy_of_the_teacher_is_left_alone_and_gradients_reach_the_student_alone(name):
    student, teacher = text_model(), text_model(seed=1)
    method = prepared(build(name, mapping="uniform"), student, teacher)
    sum(run(method, student, teacher).values()).backward()
    layer = student.blocks[0].attention.query.weight
    assert layer.grad.isfinite().all() and layer.grad.any()
    assert all(p.grad is None for p in teacher.parameters())
    if name == "hidden_states":
        for linear in method.maps:
            torch.nn.init.eye_(linear.weight)
    copied = run(method, copy.deepcopy(teacher), teacher)
    assert list(copied) == METHODS[name]
    assert all(value < 1e-9 for value in copied.values())


@every_method
def test_padding_changes_nothing(name):
    student, teacher = text_model(), text_model(seed=1, depth=3)
    method = prepared(build(name, mapping="uniform"), student, teacher)
    longer = torch.nn.functional.pad(TOKENS, (0, 3))
    for term, value in run(method, student, teacher).items():
        torch.testing.assert_close(run(method, student, teacher, longer)[term], value)


@every_method
def test_images_have_no_mask_and_any_pair_that_can_be_compared_trains(name):
    student = image_model("vit", width=8, depth=1, heads=2, patch=2)
    teacher = image_model("vit", seed=1, width=16, depth=2, heads=2, patch=2)
    method = build(name)
    fitted = fit(
        student, IMAGES, SoftTargets() + method, teacher=teacher, epochs=1, batch_size=16, lr=0.01
    )
    assert {"soft", *METHODS[name]} <= fitted.history.last.keys()
    assert method.mask(Outputs(torch.zeros(2, 4), inputs=IMAGES.train.x[:2])) is None
    assert not method.needs_only_logits and not method.complete


@pytest.mark.parametrize(
    "method", [HiddenStates(), SelfAttentionRelations(["hidden"], 2, mapping={0: 0, 1: 1})]
)
@pytest.mark.parametrize(
    "pair", [("cnn_tiny", "resnet8"), ("cnn_tiny", "vit"), ("vit", "cnn_tiny")]
)
def test_the_places_of_feature_maps_are_tokens(method, pair):
    student, teacher = (
        image_model(name, n, **({"patch": 2, "depth": 3} if name == "vit" else {}))
        for n, name in enumerate(pair)
    )
    prepared(method, student, teacher, IMAGES.train)
    (value,) = run(method, student, teacher, IMAGES.train.x[:4]).values()
    value.backward()
    assert value > 0 and next(student.parameters()).grad.any()


# ---- which layer teaches which, and when -------------------------------------------------------


def test_layers_are_counted_by_name():
    assert layers_of(text_model(depth=3)) == ("blocks.0", "blocks.1", "blocks.2")
    assert layers_of(text_model("gru", depth=2)) == ("layers.0", "layers.1")
    assert layers_of(image_model("cnn_tiny")) == ("stage1", "stage2", "stage3")
    with says("layers: Linear has none of blocks.0, layers.0, stage1"):
        layers_of(torch.nn.Linear(2, 2))


def test_mappings():
    assert layer_rows("uniform", 4, 12) == {0: (2,), 1: (5,), 2: (8,), 3: (11,)}  # TinyBERT's
    assert layer_rows("uniform", 2, 5) == {0: (2,), 1: (4,)}
    assert layer_rows("uniform", 3, 2) == {0: (0,), 1: (1,), 2: (1,)}
    assert layer_rows("last", 2, 5) == {1: (4,)}
    assert layer_rows("learned", 2, 3) == {0: (0, 1, 2), 1: (0, 1, 2)}
    assert list(layer_rows({1: 3, 0: 1}, 2, 4).items()) == [(0, (1,)), (1, (3,))]
    for mapping, who in (
        ({2: 0}, "2 of the student, expected 0 to 1"),
        ({0: -1}, "-1 of the teach"),
    ):
        with says("mapping: layer " + who):
            layer_rows(mapping, 2, 4)
    for depth in range(1, 7):
        for taught in range(1, 7):
            rows = [row for (row,) in layer_rows("uniform", taught, depth).values()]
            assert rows == sorted(rows) and rows[-1] == depth - 1 and rows[0] >= 0


def test_schedules():
    assert all_alike(4, 0.7) == [0.25] * 4
    assert climbing(1, 0.0) == climbing(1, 0.99) == [1.0]
    assert climbing(3, 0.0) == [1.0, 0.0, 0.0] and climbing(3, 0.999) == [0.0, 0.0, 1.0]
    for step in range(100):
        weights = climbing(4, step / 100)
        assert sum(weights) == pytest.approx(1) and min(weights) >= 0
    means = np.mean([climbing(4, (step + 0.5) / 1000) for step in range(1000)], axis=0)
    np.testing.assert_allclose(means, 0.25, atol=0.002)  # equal turns
    focus = [np.dot(climbing(4, step / 100), range(4)) for step in range(100)]
    assert focus == sorted(focus)


@every_method
def test_a_climb_goes_from_the_lowest_layer_to_the_highest(name):
    student, teacher = text_model(), text_model(seed=1, depth=4)
    method = prepared(build(name, mapping="uniform", schedule="climb"), student, teacher)
    alone = [build(name, mapping=m) for m in ({0: 1}, {1: 3})]
    for i, (progress, single) in enumerate(zip((0.0, 0.99), alone, strict=True)):
        got = run(method, student, teacher, progress=progress)
        prepared(single, student, teacher)
        if name == "hidden_states":
            single.maps[0].load_state_dict(method.maps[i].state_dict())
        for term, value in run(single, student, teacher).items():
            torch.testing.assert_close(got[term], value)
        measured = method.measures()
        assert [float(measured[f"layer_{n}"]) for n in (0, 1)] == [1.0 - i, float(i)]
    run(method, student, teacher, progress=0.5)
    assert float(method.measures()["layer_0"]) == pytest.approx(0.5)


@every_method
def test_the_history_shows_the_climb(name):
    student = image_model("vit", width=8, depth=2, heads=2, patch=2)
    teacher = image_model("vit", seed=1, width=8, depth=2, heads=2, patch=2)
    method = Labels() + build(name, mapping="uniform", schedule="climb")
    rows = fit(
        student, IMAGES, method, teacher=teacher, epochs=4, batch_size=12, lr=0.01
    ).history.rows
    low, high = ([row[f"layer_{n}"] for row in rows] for n in (0, 1))
    assert low == sorted(low, reverse=True) and low[0] == 1 and high[-1] == 1
    np.testing.assert_allclose(np.add(low, high), 1, rtol=1e-6)


# ---- the learned mapping -----------------------------------------------------------------------


def shares_after(evenness, losses, steps=3000):
    """A learned mapping under constant losses ``[student's layers, teacher's layers]``."""
    method = SelfAttentionRelations(mapping="learned", evenness=evenness)
    method._rows = layer_rows("learned", *losses.shape)
    method.preferences = torch.nn.Parameter(torch.zeros(losses.shape))
    optimizer = torch.optim.SGD([method.preferences], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        terms = method.terms({"relation": list(losses.flatten())}, 0.0)
        sum(terms.values()).backward()
        optimizer.step()
    return method, (10 * method.preferences.detach()).softmax(1), terms


LOSSES = torch.tensor([[0.2, 0.4, 0.6], [0.9, 0.5, 0.1]])


@pytest.mark.parametrize("evenness", [0.3, 1.0])
def test_a_learned_mapping_finds_the_softmax_that_its_own_term_asks_for(evenness):
    method, shares, terms = shares_after(evenness, LOSSES)
    scale = evenness * LOSSES.mean(1, keepdim=True)
    best = (-LOSSES / scale).softmax(1)
    torch.testing.assert_close(shares, best, atol=2e-3, rtol=0)
    entropy = -(best * best.log()).sum(1)
    measured = {name: float(value) for name, value in method.measures().items()}
    assert measured["teacher_layers"] == pytest.approx(float(entropy.exp().mean()), abs=0.01)
    for i, depth in enumerate(best @ torch.arange(3.0)):
        assert measured[f"layer_{i}_from"] == pytest.approx(float(depth), abs=0.01)
    torch.testing.assert_close(terms["relation"], (best * LOSSES).sum(1).mean(), atol=2e-3, rtol=0)
    pull = (scale.squeeze(1) * (np.log(3) - entropy)).mean()
    torch.testing.assert_close(terms["evenness"], pull, atol=2e-3, rtol=0)


def test_the_term_against_collapse_trains_the_mapping_alone():
    method = prepared(SelfAttentionRelations(mapping="learned"), text_model(), text_model(seed=1))
    losses = LOSSES[:, :2].clone().requires_grad_()
    with torch.no_grad():
        method.preferences[0, 0] = 0.1
    terms = method.terms({"relation": list(losses.flatten())}, 0.0)
    terms["evenness"].backward(retain_graph=True)
    assert losses.grad is None and method.preferences.grad.any()
    terms["relation"].backward()
    assert (losses.grad > 0).all()


def test_without_that_term_it_collapses_onto_the_easiest_layer_and_says_so():
    method, shares, _ = shares_after(0.0, LOSSES)
    assert shares.argmax(1).tolist() == [0, 2] and shares.amax(1).min() > 0.98
    assert 1 <= float(method.measures()["teacher_layers"]) < 1.1
    method, _, _ = shares_after(1.0, LOSSES, steps=1)
    assert float(method.measures()["teacher_layers"]) == pytest.approx(3)  # before the first step


@every_method
def test_what_a_method_owns_is_trained_and_stored(name):
    student = image_model("vit", width=8, depth=2, heads=2, patch=2)
    teacher = image_model("vit", seed=1, width=12, depth=3, heads=2, patch=2)
    method = Labels() + build(name, mapping="learned")
    start = {}

    def watch(moment):
        if not start:
            start.update({key: p.detach().clone() for key, p in method.named_parameters()})

    fitted = fit(
        student,
        IMAGES,
        method,
        teacher=teacher,
        epochs=2,
        batch_size=16,
        lr=0.05,
        callbacks=[watch],
    )
    moved = {key for key, p in method.named_parameters() if not torch.equal(p, start[key])}
    assert moved == start.keys() <= method.state_dict().keys()
    assert len(moved) == (7 if name == "hidden_states" else 1)  # one map per pair of layers
    assert {"evenness", "layer_1_from", "teacher_layers"} <= fitted.history.last.keys()
    assert 1 < fitted.history.last["teacher_layers"] <= 3


# ---- what cannot be compared says why ----------------------------------------------------------


def test_a_model_without_attention_is_told_what_it_can_do():
    student, teacher = text_model("lstm"), text_model()
    for method in (SelfAttentionRelations(), AttentionDistributions()):
        with says("student: Recurrent has no 'layers.0.attention", "HiddenStates()", '("hidden",)'):
            prepared(method, student, teacher)
    with says("teacher: Recurrent has no 'layers.0.attention"):
        prepared(SelfAttentionRelations(), teacher, student)
    assert run(prepared(SelfAttentionRelations("hidden"), student, teacher), student, teacher)


def test_shapes_that_do_not_fit_are_named():
    student = text_model()
    with says(
        "layers: the student's 'blocks.1.attention.weights:input' gives shape [2, 2, 6, 6]",
        "the teacher's 'blocks.2.attention.weights:input' [2, 4, 6, 6]; expected",
        "equally many heads",
        "SelfAttentionRelations",
    ):
        prepared(AttentionDistributions(), student, text_model(depth=3, heads=4))
    with says("layers: the student's 'blocks.0.attention.query'", "relation_heads: 4", "8 and 6"):
        prepared(SelfAttentionRelations(), student, text_model(width=6))
    small, large = (image_model("vit", width=8, heads=2, patch=p) for p in (2, 4))
    for name in METHODS:
        with says("layers: ", "[2, ", "expected equally many tokens"):
            prepared(build(name), small, large, IMAGES.train)
    with says("layers: the student's 'layers.0' gives shape [2, 32]", "expected tokens"):
        prepared(HiddenStates(), image_model("mlp"), small, IMAGES.train)
    one = image_model("vit", width=8, heads=2, patch=8)
    with says("layers: ", "more than one token"):
        prepared(SelfAttentionRelations(), one, one, IMAGES.train)


@every_method
def test_options_are_checked(name):
    for options, message in (
        ({"mapping": "unifrom"}, "unknown mapping 'unifrom' (did you mean 'uniform'"),
        ({"mapping": {}}, "mapping: {}, expected a name or numbers"),
        ({"mapping": {"blocks.0": 1}}, "mapping: {'blocks.0': 1}, expected"),
        ({"schedule": "fall"}, "unknown schedule 'fall'"),
        ({"weight": -1}, "weight: -1"),
        ({"evenness": float("nan")}, "evenness: nan"),
    ):
        with says(message):
            build(name, **options)
    with says("teacher: "):
        build(name).prepare(text_model(), None, TEXTS)
    assert "mapping={0: 1}" in repr(build(name, mapping={0: 1}))


def test_options_of_one_method_are_checked():
    with says("relations: none came"):
        SelfAttentionRelations(())
    with says("unknown relation 'keys' (did you mean 'key'"):
        SelfAttentionRelations(["keys"])
    with says("relation_heads: 0"):
        SelfAttentionRelations(relation_heads=0)
    with says("unknown compare 'score'"):
        AttentionDistributions("score")
    with says("value_weight: -1"):
        AttentionDistributions(value_weight=-1)


def test_what_methods_share_is_no_method():
    assert "hierarchy" not in available() and METHODS.keys() <= available().keys()
    assert not METHODS.keys() & contestants(complete=False).keys()
