"""Two students at once, a second head, a reused classifier, masks, graphs, other classes."""

import copy
import re
import signal
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from pairs import ask, cnn, images, outputs, prepared, vit
from torch import nn
from torch.nn import functional as F

from kdlab import losses
from kdlab.datasets import load
from kdlab.distillers import (
    ClassMapping,
    Decoupled,
    Distiller,
    Gated,
    HardTargets,
    Hints,
    InstanceGraph,
    Labels,
    LogitMatching,
    MaskedGeneration,
    MultiLevel,
    MutualLearning,
    Outputs,
    ReusedClassifier,
    SoftTargets,
    Sum,
    TwoHeads,
    build,
)
from kdlab.distillers.instance_graph import one_size
from kdlab.distillers.reused_classifier import projector
from kdlab.models import Taps, WithOutput, build_for, logits_of
from kdlab.training import fit, predict, study

NAMES = [
    "class_mapping",
    "hard_targets",
    "instance_graph",
    "logit_matching",
    "masked_generation",
    "multi_level",
    "mutual_learning",
    "reused_classifier",
    "two_heads",
]
DIGITS = load("digits").subset(192)
SHORT = {"epochs": 2, "batch_size": 32, "lr": 0.02, "device": "cpu"}
every_method = pytest.mark.parametrize("name", NAMES)


def net(name="cnn_tiny", seed=0, classes=10):
    return build_for(name, DIGITS.shape, classes, seed=seed)


TEACHER = net("cnn_small", 1)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def says(*parts):
    return pytest.raises(ValueError, match="^" + ".*".join(map(re.escape, parts)))


def make(name, **options):
    if name == "class_mapping":
        options.setdefault("classes", [*range(1, 10), 0])
    return build(name, **options)


@pytest.fixture(autouse=True)
def first_stages_are_meant():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="distiller: .* alone never trains")
        yield


# ---- what all of them do ---------------------------------------------------------------------


@every_method
def test_it_trains_on_digits_with_few_labels_and_leaves_the_teacher_alone(name):
    data, student, method = DIGITS.with_labels(40), net(), make(name)
    before, start = weights(TEACHER), weights(student)
    teacher = TEACHER if method.needs_teacher else None
    run = fit(student, data, method, teacher=teacher, **SHORT)
    first, last = run.history.rows[0], run.history.last
    assert all(np.isfinite(value) for value in last.values())
    assert last["loss"] < first["loss"]
    assert same(weights(TEACHER), before) and all(p.grad is None for p in TEACHER.parameters())
    moved = {key for key, value in weights(student).items() if not torch.equal(value, start[key])}
    classifier = {"head.weight", "head.bias"}
    assert moved == start.keys() - (set() if method.complete else classifier)


@every_method
def test_an_interrupted_run_goes_on_bit_for_bit(name, tmp_path):
    def train(path, callbacks=()):
        student, method = net(), make(name)
        teacher = TEACHER if method.needs_teacher else None
        options = SHORT | {"checkpoint": path, "callbacks": callbacks, "validate": False}
        run = fit(student, DIGITS.with_labels(40), method, teacher=teacher, **options)
        return weights(student) | weights(method), run

    def stop(moment):
        if (moment.epoch, moment.step) == (1, 2):
            signal.raise_signal(signal.SIGINT)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="stopped in epoch")
        assert train(tmp_path / "run.pt", [stop])[1].interrupted
    resumed, run = train(tmp_path / "run.pt")
    whole, unbroken = train(None)
    assert same(resumed, whole) and run.history.last == unbroken.history.last


def test_a_study_compares_them():
    settings = {name: Labels() + make(name) for name in NAMES}
    mlp = {
        "logits": LogitMatching(),
        "levels": MultiLevel(),
        "choice": HardTargets(),
        "mutual": MutualLearning(),
        "mapped": make("class_mapping"),
        "heads": TwoHeads(embedding="layers.1:input"),
    }
    options = {"seeds": 2, "workers": 1, "teacher": TEACHER, **SHORT}
    table = study("cnn_tiny", DIGITS, settings, **(options | {"epochs": 1, "seeds": 1}))
    table2 = study("mlp", DIGITS, mlp, **(options | {"epochs": 1}))
    assert len(table) == len(settings) and len(table2) == 2 * len(mlp)
    assert np.isfinite(table.accuracy).all() and np.isfinite(table2.nll).all()


@every_method
def test_another_run_begins_anew(name):
    """What was trained in one run is not where the next one starts."""
    method, found = make(name), []
    teacher = TEACHER if method.needs_teacher else None
    for _ in range(2):
        student = net()
        fit(student, DIGITS, method, teacher=teacher, **(SHORT | {"epochs": 1}))
        found.append(weights(student) | weights(method))
    assert same(*found)


@every_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_it_works_in_the_dtype_of_the_student(name, dtype):
    options = {"classes": [1, 2, 3, 0]} if name == "class_mapping" else {}
    student, teacher = cnn(4, 1).to(dtype), cnn(6, 2).to(dtype)
    train = images(8, dtype)
    method = prepared(make(name, **options), student, teacher, train)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    own = [p for module in method.children() for p in module.parameters() if p.requires_grad]
    if name != "mutual_learning":  # its peer is a model like the student
        assert all(p.dtype == wide for p in own)
    total = torch.stack([*ask(method, student, teacher, train, torch.arange(8)).values()]).sum()
    total.backward()
    assert total.dtype == wide and all(p.grad.isfinite().all() for p in own)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mutual_learning"])
def test_a_closed_gate_lets_nothing_through(name):
    """Of what is computed for a sample alone; a relation loses its row."""
    student, teacher, train, index = cnn(4, 1), cnn(6, 2), images(8), torch.arange(8)
    options = {"classes": [1, 2, 3, 0]} if name == "class_mapping" else {}
    half = torch.tensor([1.0, 0.0, 0.5, 0.0, 1.0, 0.0, 1.0, 0.0])

    def terms(weights):
        method = prepared(
            Gated(make(name, **options), lambda s, t, y: weights), student, teacher, train
        )
        if name == "class_mapping":  # the gate has to be inside
            inner = Gated(SoftTargets(), lambda s, t, y: weights)
            method = prepared(ClassMapping(inner, **options), student, teacher, train)
        return ask(method.eval(), student, teacher, train, index)

    closed, some, opened = (terms(w) for w in (torch.zeros(8), half, torch.ones(8)))
    for term, value in closed.items():
        if term == "hard":
            torch.testing.assert_close(value, opened[term])
        else:
            assert float(value.detach()) == 0 and not torch.isclose(some[term], opened[term])


# ---- mutants: exchanged roles, a lost T² ------------------------------------------------------


def exchanged(loss):
    return lambda student, teacher, *rest, **more: loss(teacher, student, *rest, **more)


def without_square(loss):
    def mutant(student, teacher, temperature=1.0, **more):
        return loss(student, teacher, temperature, **more) / temperature**2

    return mutant


MUTANTS = [
    ("multi_level", "soft_target_loss", exchanged, {}),
    ("multi_level", "soft_target_loss", without_square, {}),
    ("hard_targets", "hard_target_loss", exchanged, {}),
    ("two_heads", "hard_target_loss", exchanged, {}),
    ("two_heads", "soft_target_loss", exchanged, {"temperature": 3.0}),
    ("two_heads", "soft_target_loss", without_square, {"temperature": 3.0}),
    ("mutual_learning", "soft_target_loss", exchanged, {"temperature": 3.0}),
    ("mutual_learning", "soft_target_loss", without_square, {"temperature": 3.0}),
    ("soft_targets", "soft_target_loss", exchanged, {"divergence": "reverse"}),
    ("soft_targets", "soft_target_loss", without_square, {"divergence": "jensen-shannon"}),
]


def by_definition(name, method, student, teacher, train, index):
    """The terms beside "hard", written out in plain torch."""
    x = train.x[index]
    s, t = student(x).detach(), teacher(x).detach()

    def soft(own, other, temperature):
        log_q, log_p = (F.log_softmax(z / temperature, 1) for z in (own, other))
        kl = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        return temperature**2 * kl

    if name == "hard_targets":
        return {"choice": 0.5 * F.cross_entropy(s, t.argmax(1))}
    if name == "two_heads":
        with Taps(student, ["pool"]) as taps:
            student(x)
            second = method.second(taps["pool"]).detach()
        if method.temperature is None:
            return {"choice": 0.5 * F.cross_entropy(second, t.argmax(1))}
        return {"soft": 0.5 * soft(second, t, 3.0)}
    if name == "mutual_learning":
        p = method.peer(x).detach()
        return {"mutual": soft(s, p, 3.0), "peer_mutual": soft(p, s, 3.0)}
    if name == "multi_level":
        return {"instance": 0.9 * sum(soft(s, t, float(k)) for k in range(2, 7))}
    log_s, log_t = (F.log_softmax(z / 4, 1) for z in (s, t))
    if method.divergence == "reverse":
        return {"soft": 0.9 * soft(t, s, 4.0)}
    m = ((log_s.exp() + log_t.exp()) / 2).log()
    halves = [F.kl_div(m, z, reduction="batchmean", log_target=True) / 2 for z in (log_s, log_t)]
    return {"soft": 0.9 * 16 * sum(halves)}


@pytest.mark.parametrize(("name", "loss", "mutate", "options"), MUTANTS)
def test_exchanged_roles_and_a_lost_square_are_noticed(name, loss, mutate, options, monkeypatch):
    student, teacher, train, index = cnn(4, 1), cnn(6, 2), images(8), torch.arange(8)
    method = prepared(build(name, **options), student, teacher, train)
    expected = by_definition(name, method, student, teacher, train, index)

    def check():
        got = ask(method, student, teacher, train, index)
        for term, value in expected.items():
            torch.testing.assert_close(got[term].detach(), value)

    check()
    module = f"kdlab.distillers.{name}.{loss}"
    monkeypatch.setattr(module, mutate(getattr(losses, loss)))
    with pytest.raises(AssertionError):
        check()


# ---- mutual learning -------------------------------------------------------------------------


def test_neither_of_two_students_pulls_at_the_other():
    student, peer, train = cnn(4, 1), cnn(5, 3), images(8)
    method = prepared(MutualLearning(peer), student, None, train)
    assert not method.needs_teacher and method.peer is not peer
    got = ask(method, student, None, train, torch.arange(8))
    assert list(got) == ["hard", "mutual", "peer_hard", "peer_mutual"]
    (got["hard"] + got["mutual"]).backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in method.peer.parameters())
    for p in student.parameters():
        p.grad = None
    got = ask(method, student, None, train, torch.arange(8))
    (got["peer_hard"] + got["peer_mutual"]).backward()
    assert all(p.grad is not None for p in method.peer.parameters())
    assert all(p.grad is None for p in [*student.parameters(), *peer.parameters()])


def test_a_peer_is_the_student_drawn_anew_trains_in_training_mode_and_can_be_taken_out():
    modes = set()

    class Watched(MutualLearning):
        def forward(self, student, teacher, targets):
            modes.update(m.training for m in self.peer.modules())
            return super().forward(student, teacher, targets)

    student, method = net("resnet8"), Watched()
    fit(student, DIGITS, Labels(0.5) + method, **(SHORT | {"epochs": 1}))
    assert modes == {True} and type(method.peer) is type(student)
    peer = method.peer.eval()
    assert predict(peer, DIGITS.val.x).shape == predict(student, DIGITS.val.x).shape
    norms = [m for m in peer.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(m.running_mean.any() for m in norms)
    pairs = zip(student.parameters(), peer.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_peer_is_another_model_even_where_the_student_was_drawn_with_the_seed_of_the_run(seed):
    """Else both would be alike for ever, and the term 0."""
    torch.manual_seed(seed)
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    method, other = MutualLearning(), MutualLearning()
    run = fit(copy.deepcopy(student), DIGITS, method, seed=seed, **SHORT)
    assert run.history.rows[0]["mutual"] > 1e-3
    fit(student, DIGITS, other, seed=seed + 1, **SHORT)
    assert not torch.equal(method.peer[1].weight, other.peer[1].weight)


def test_what_is_frozen_in_a_student_is_not_drawn_anew_in_its_peer():
    student = cnn(4, 1)
    student.stage1.requires_grad_(False)
    method = prepared(MutualLearning(), student, None, images(4))
    assert same(weights(method.peer.stage1), weights(student.stage1))
    assert not torch.equal(method.peer.head.weight, student.head.weight)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(256, 4))

    def forward(self, x):
        return x.flatten(1) @ self.weight


@pytest.mark.parametrize(
    ("peer", "parts"),
    [
        (lambda: cnn(4, 1, classes=5), ("got an answer of shape [2, 5]", "num_classes=4")),
        (lambda: cnn(4, 1), ("got a model with the student's own weights", "another seed")),
        (lambda: cnn(4, 2).double(), ("got a model of torch.float64", "torch.float32")),
        (lambda: nn.Linear(3, 4), ("got RuntimeError on [2, 1, 16, 16]", "same data")),
        (lambda: "resnet8", ("a str came, expected a model",)),
    ],
)
def test_a_peer_that_does_not_fit_is_refused_by_name(peer, parts):
    with says("peer: ", *parts):
        prepared(MutualLearning(peer()), cnn(4, 1), None, images(4))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_student_that_cannot_be_copied_asks_for_a_peer():
    student = cnn(4, 1)
    student.head = nn.utils.weight_norm(student.head)
    student(images(4).x)
    with says("peer: got RuntimeError while copying a Sequential", "weight_norm"):
        prepared(MutualLearning(), student, None, images(4))


def test_a_student_that_cannot_be_drawn_anew_asks_for_a_peer():
    with says("peer: got None, but the student's layer 'model' (Own)", "MutualLearning(peer)"):
        prepared(MutualLearning(), Own(), None, images(4))
    attention = nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(256, 4, 8), nn.Flatten())
    attention.append(nn.Linear(256, 4))
    prepared(MutualLearning(), attention.eval(), None, images(4))


def test_a_peer_may_return_more_than_logits():
    two = WithOutput(cnn(5, 3), lambda z: {"logits": z})
    two.forward = lambda x: {"logits": two.model(x), "aux": x}
    train = images(8)
    method = prepared(MutualLearning(two), cnn(4, 1), None, train)
    assert ask(method, cnn(4, 1), None, train, torch.arange(8))["peer_hard"].isfinite()


# ---- two heads -------------------------------------------------------------------------------


class Distilled(nn.Module):
    """As DeiT: both heads in training mode, their mean in eval mode."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
        self.head, self.head_dist = nn.Linear(16, 10), nn.Linear(16, 10)

    def forward(self, x):
        features = self.body(x)
        first, second = self.head(features), self.head_dist(features)
        return (first, second) if self.training else (first + second) / 2


def test_a_students_own_second_head_learns_from_the_teacher_alone():
    model, method = Distilled().train(), TwoHeads(head="head_dist")
    x, y = DIGITS.train.x[:16], DIGITS.train.y[:16]
    with torch.no_grad():
        method.prepare(model.eval(), TEACHER, DIGITS.train)
    model.train()
    with Taps(model, method.student_taps) as taps:
        first, second = model(x)
        mine = Outputs(first, {path: taps[path] for path in taps}, x)
    said = TEACHER(x).detach()
    got = method(mine, Outputs(said, {}, x), y)
    torch.testing.assert_close(got["hard"], 0.5 * F.cross_entropy(first, y))
    torch.testing.assert_close(got["choice"], 0.5 * F.cross_entropy(second, said.argmax(1)))
    by_teacher = torch.autograd.grad(got["choice"], [*model.parameters()], allow_unused=True)
    names = [name for name, _ in model.named_parameters()]
    grads = dict(zip(names, by_teacher, strict=True))
    assert grads["head.weight"] is None and grads["head_dist.weight"].any()
    assert grads["body.1.weight"].any()


def test_a_student_with_two_heads_trains_and_answers_with_both():
    model = Distilled()
    start = weights(model)
    run = fit(model, DIGITS, TwoHeads(head="head_dist"), teacher=TEACHER, **SHORT)
    assert {"hard", "choice"} <= run.history.last.keys()
    assert not any(torch.equal(value, start[key]) for key, value in weights(model).items())


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_a_new_second_head_and_the_student_answer_together(average):
    student, method = net(), TwoHeads(alpha=0.3)
    fit(student, DIGITS, method + Hints("stage2", weight=0.1), teacher=TEACHER, **SHORT)
    both = method.assemble(student, average)
    x = DIGITS.val.x
    with Taps(student, ["pool"]) as taps, torch.no_grad():
        first = student(x)
        second = method.second(taps["pool"])
        got = both(x)
    assert not both.training and first.shape == second.shape == got.shape
    if average == "logits":
        torch.testing.assert_close(got, (first + second) / 2)
    else:
        torch.testing.assert_close(got.softmax(1), (first.softmax(1) + second.softmax(1)) / 2)
    torch.testing.assert_close(predict(both, x), got)
    again = copy.deepcopy(both)
    torch.testing.assert_close(again(x).detach(), got)


@pytest.mark.parametrize("path", ["pool", "stage3", "head:input"])
def test_a_second_head_reads_maps_and_embeddings(path):
    method = prepared(TwoHeads(embedding=path), cnn(4, 1), None, images(4))
    assert method.second.in_features == 8
    tokens = prepared(TwoHeads(embedding="blocks.1"), vit(8, 1), None, images(4))
    assert tokens.second.in_features == 8


def test_a_second_head_that_is_none_is_refused_by_name():
    with says("head: got shape [2, 8, 2, 2] from 'stage3'", "expected logits [2, 4]"):
        prepared(TwoHeads(head="stage3"), cnn(4, 1), None, images(4))
    with says("average: got 'both'"):
        TwoHeads().assemble(cnn(4, 1), "both")
    with says("assemble: got a method without a second head"):
        TwoHeads().assemble(cnn(4, 1))
    with says("temperature: 0"):
        TwoHeads(temperature=0)


# ---- the reused classifier -------------------------------------------------------------------


def dropping(model):
    """The same model with dropout and a norm in its classifier: their mode matters."""
    with_more = copy.deepcopy(model)
    with_more.head = nn.Sequential(nn.BatchNorm1d(12), nn.Dropout(0.5), with_more.head)
    with_more.head[0].running_mean.normal_()
    return with_more.eval()


def test_simkd_end_to_end():
    """The classifier is a copy that stays bitwise; the assembled student is a model like any."""
    torch.manual_seed(0)
    teacher = net("cnn_small", 1)
    fit(teacher, DIGITS, **(SHORT | {"epochs": 6, "lr": 0.1}))
    before = weights(teacher.head)
    student, method = net(), ReusedClassifier()
    untrained = weights(student.head)
    run = fit(student, DIGITS, method, teacher=teacher, **(SHORT | {"epochs": 8, "lr": 0.1}))
    assert not method.complete and 0 < run.history.last["reused_accuracy"] <= 1
    assert method.reused is not teacher.head and same(weights(method.reused), before)
    assert same(weights(teacher.head), before) and same(weights(student.head), untrained)
    assert not any(p.requires_grad for p in method.reused.parameters())
    whole = method.assemble(student)
    assert not whole.training and not whole.train().classifier.training
    whole.eval()
    logits = predict(whole, DIGITS.test.x)
    accuracy = (logits.argmax(1) == DIGITS.test.y).float().mean()
    own = (predict(student, DIGITS.test.x).argmax(1) == DIGITS.test.y).float().mean()
    assert accuracy > 0.5 > own
    with Taps(student, ["pool:input"]) as taps, torch.no_grad():
        student(DIGITS.test.x)
        embedding = method.projector.eval()(taps["pool:input"]).mean((2, 3))
        torch.testing.assert_close(logits, F.linear(embedding, *before.values()))
    torch.testing.assert_close(copy.deepcopy(whole)(DIGITS.test.x).detach(), logits)


def test_features_that_fit_exactly_give_the_teachers_answer():
    teacher, train = cnn(6, 2), images(8)
    method = prepared(ReusedClassifier(), cnn(6, 2), teacher, train).eval()
    method.projector = nn.Identity()
    got = ask(method, teacher, teacher, train, torch.arange(8))
    assert float(got["features"].detach()) == 0
    torch.testing.assert_close(method.assemble(teacher)(train.x), teacher(train.x))


def test_the_classifier_keeps_its_mode_and_statistics_while_the_projector_trains():
    teacher, student, train = dropping(cnn(6, 2)), cnn(4, 1), images(12)
    method = ReusedClassifier()
    whole = prepared(Labels() + method, student, teacher, train).train()
    before = weights(method.reused)
    assert method.projector.training and not any(m.training for m in method.reused.modules())
    first, again = (
        ask(whole, student, teacher, train, torch.arange(12)) and method.measures()
        for _ in range(2)
    )
    assert first == again and same(weights(method.reused), before)
    assert whole.eval().train().parts[1] is method and not method.reused.training


SIZES = {  # the student's layer, the teacher's, the size at which they meet
    ("pool:input", "pool:input"): (4, 4),
    ("stage2", "stage3"): (2, 2),
    ("stage3", "head:input"): (1, 1),
    ("pool", "head:input"): (1, 1),
    ("head:input", "pool:input"): (1, 1),
}


@pytest.mark.parametrize("pair", SIZES, ids=str)
def test_the_term_is_the_mean_square_at_the_smaller_size(pair):
    student, teacher, train = cnn(4, 1), cnn(6, 2), images(8)
    method = prepared(ReusedClassifier({pair[0]: pair[1]}, weight=3.0), student, teacher, train)
    got = ask(method.eval(), student, teacher, train, torch.arange(8))["features"]
    with Taps(student, pair[:1]) as mine, Taps(teacher, pair[1:]) as theirs:
        student(train.x[:8]), teacher(train.x[:8])
        s, t = (
            x if x.dim() == 4 else x[:, :, None, None] for x in (mine[pair[0]], theirs[pair[1]])
        )
    assert method.size == tuple(min(a, b) for a, b in zip(s.shape[2:], t.shape[2:], strict=True))
    s, t = (F.adaptive_avg_pool2d(x, method.size) for x in (s, t))
    torch.testing.assert_close(got, 3 * F.mse_loss(method.projector(s), t))
    assert method.assemble(student)(train.x).shape == (len(train.x), 4)


def test_a_vision_transformer_s_classifier_reads_a_mean_over_tokens():
    student, teacher, train = cnn(4, 1), vit(12, 2), images(8)
    method = prepared(ReusedClassifier({"pool:input": "head:input"}), student, teacher, train)
    assert method.assemble(student)(train.x).shape == (8, 4)


def test_the_projector_is_the_released_one_and_lets_negative_features_pass():
    layers = projector(8, 12, (4, 4), 2, positive=True)
    kinds = [type(layer) for layer in layers]
    assert kinds == 3 * [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    convs = [m for m in layers if isinstance(m, nn.Conv2d)]
    assert [m.weight.shape for m in convs] == [(6, 8, 1, 1), (6, 6, 3, 3), (12, 6, 1, 1)]
    assert all(m.bias is None for m in convs)
    one = projector(8, 12, (1, 1), 2, positive=False)
    assert one[3].weight.shape == (6, 6, 1, 1) and isinstance(one[-1], nn.BatchNorm2d)
    relu, silu = build_for("resnet8", (1, 16, 16), 4, seed=1), cnn(6, 2)
    for teacher, last in ((relu, nn.ReLU), (silu, nn.BatchNorm2d)):
        method = prepared(ReusedClassifier(), cnn(4, 1), teacher.eval(), images(8))
        assert isinstance(method.projector[-1], last)


def test_a_classifier_that_does_not_fit_is_refused_by_name():
    train = images(8)
    student, teacher = cnn(4, 1), cnn(6, 2)
    with says("classifier: got 'heed', expected a path of the teacher", "'head'"):
        prepared(ReusedClassifier(classifier="heed"), student, teacher, train)
    with says("classifier: got RuntimeError from 'head'", "stage1", "'head:input'"):
        prepared(ReusedClassifier("stage1"), student, teacher, train)
    between = copy.deepcopy(teacher)
    between.pool.append(nn.Tanh())
    with says("classifier: got other logits from 'head'", "'pool:input'", "'head:input'"):
        prepared(ReusedClassifier(), student, between, train)
    prepared(ReusedClassifier({"pool:input": "head:input"}), student, between, train)
    with says("layers: got 2 pairs, expected one"):
        ReusedClassifier(["stage1", "stage2"])
    with says("factor: 0"):
        ReusedClassifier(factor=0)
    with says("assemble: got a method without a projector"):
        ReusedClassifier().assemble(student)
    with says("teacher: none came"):
        prepared(ReusedClassifier(), student, None, train)


# ---- masked generation -----------------------------------------------------------------------


def convolved(x, weight, bias):
    """A 3×3 convolution of maps with a border of 0, written out in NumPy."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = x.shape[2:]
    out = np.zeros((len(x), len(weight), height, width), dtype=x.dtype)
    for i in range(3):
        for j in range(3):
            window = padded[:, :, i : i + height, j : j + width]
            out += np.einsum("bchw,oc->bohw", window, weight[:, :, i, j])
    return out + bias[:, None, None]


@pytest.mark.parametrize("mask", ["channels", "places"])
def test_generation_equals_a_reference_in_value_and_gradient(mask, monkeypatch):
    train = images(4, torch.float64)
    student, teacher = cnn(3, 1).double(), cnn(3, 2).double()
    method = prepared(MaskedGeneration("stage3", 2.0, 0.4, mask), student, teacher, train).train()
    features = outputs(student, ("stage3",), train.x).taps["stage3"].detach()
    theirs = outputs(teacher, ("stage3",), train.x, graph=False).taps["stage3"]
    torch.manual_seed(5)
    kept = method.kept(features)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert kept.shape == ((4, 6, 1, 1) if mask == "channels" else (4, 1, 2, 2))
    w1, b1, w2, b2 = (p.detach().numpy() for p in method.generators[0].parameters())

    def reference(x):
        hidden = convolved(x * kept.numpy(), w1, b1)
        return 2 * ((convolved(hidden * (hidden.real > 0), w2, b2) - theirs.numpy()) ** 2).mean()

    x = features.clone().requires_grad_()
    torch.manual_seed(5)
    value = method(Outputs(x, {"stage3": x}), Outputs(x, {"stage3": theirs}), train.y)["generation"]
    (slope,) = torch.autograd.grad(value, x)
    np.testing.assert_allclose(value.detach(), reference(features.numpy()), 1e-10)
    for place in [(0, 0, 0, 0), (1, 4, 1, 0), (3, 5, 1, 1)]:
        shifted = features.numpy().astype(complex)
        shifted[place] += 1e-30j
        np.testing.assert_allclose(slope[place], reference(shifted).imag / 1e-30, 1e-8, 1e-14)
    masked = (kept == 0).expand_as(slope)
    assert masked.any() and not slope[masked].any()


@pytest.mark.parametrize("ratio", [0.0, 0.15, 0.65])
def test_masks_are_random_in_training_and_open_otherwise(ratio):
    method, x = MaskedGeneration(ratio=ratio), torch.zeros(64, 256, 2, 2)
    torch.manual_seed(0)
    first, second = method.kept(x), method.kept(x)
    assert float(first.mean()) == pytest.approx(1 - ratio, abs=0.01)
    assert torch.equal(first, second) == (ratio == 0)
    assert len({tuple(row) for row in first.flatten(1).tolist()}) == (1 if ratio == 0 else 64)
    assert method.eval().kept(x).all()


FORMS = [("stage3", "stage3"), ("stage1", "stage3"), ("pool", "pool"), ("stage3", "pool")]


@pytest.mark.parametrize("pair", FORMS, ids=str)
def test_any_pair_that_an_adapter_joins_can_be_generated(pair):
    student, teacher, train = cnn(4, 1), cnn(6, 2), images(8)
    method = prepared(MaskedGeneration(dict([pair])), student, teacher, train).train()
    got = ask(method, student, teacher, train, torch.arange(8))["generation"]
    got.backward()
    assert got.isfinite() and all(p.grad.any() for p in method.generators.parameters())
    same_form = prepared(MaskedGeneration("stage3"), cnn(6, 1), teacher, train)
    assert isinstance(same_form.adapters[0], nn.Identity)


@pytest.mark.parametrize("layers", [{"blocks.0": "blocks.1"}, {"blocks.1": "head:input"}])
def test_tokens_can_be_generated(layers):
    student, teacher, train = vit(8, 1), vit(12, 2), images(8)
    method = prepared(MaskedGeneration(layers, mask="places"), student, teacher, train)
    assert ask(method, student, teacher, train, torch.arange(8))["generation"].isfinite()


def test_what_no_adapter_joins_is_refused_by_name():
    with says("layers: the student's 'pool' gives an embedding", "'stage3'"):
        prepared(MaskedGeneration({"pool": "stage3"}), cnn(4, 1), cnn(6, 2), images(8))


class Waves(nn.Module):
    """Conv1d: features [B, c, l]."""

    def __init__(self, width, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Sequential(nn.Conv1d(1, width, 8, 8), nn.SiLU())
        self.last = nn.Sequential(nn.Conv1d(width, 2 * width, 2, 2), nn.SiLU())
        self.head = nn.Linear(2 * width, 4)

    def forward(self, x):
        return self.head(self.last(self.first(x.flatten(2))).mean(2))


@pytest.mark.parametrize("other", ["waves", "cnn"])
def test_features_of_a_conv1d_are_read_as_tokens_by_all_of_them(other):
    student, train, index = Waves(4).eval(), images(8), torch.arange(8)
    teacher = Waves(6, 1).eval() if other == "waves" else cnn(6, 2)
    last = "last" if other == "waves" else "stage3"
    first = "first" if other == "waves" else "stage2"
    masked = prepared(MaskedGeneration({"last": last}), student, teacher, train)
    assert ask(masked, student, teacher, train, index)["generation"].isfinite()
    graph = prepared(InstanceGraph({"first": first, "last": last}), student, teacher, train)
    assert ask(graph, student, teacher, train, index)["transformation"].isfinite()
    heads = prepared(TwoHeads(embedding="last"), student, teacher, train)
    reused = prepared(ReusedClassifier({"last": last}), student, teacher, train).eval()
    assert heads.second.in_features == reused.projector[0].in_channels == 8
    assert ask(heads, student, teacher, train, index)["choice"].isfinite()
    assert ask(reused, student, teacher, train, index)["features"].isfinite()
    with torch.no_grad():
        features = student.last(student.first(train.x.flatten(2)))
        second = heads.second(features.mean(2))
        both = heads.assemble(student, "logits")(train.x)
        torch.testing.assert_close(both, (student(train.x) + second) / 2)
        pooled = F.adaptive_avg_pool1d(features, reused.size[0]).unsqueeze(3)
        answer = reused.reused(reused.projector(pooled).mean((2, 3)))
        torch.testing.assert_close(reused.assemble(student)(train.x), answer)


def test_options_of_masks():
    with says("ratio: got 1, expected less"):
        MaskedGeneration(ratio=1.0)
    with says("ratio: -0.1 came"):
        MaskedGeneration(ratio=-0.1)
    with says("mask: got 'pixels'"):
        MaskedGeneration(mask="pixels")


# ---- instance graph --------------------------------------------------------------------------


def test_the_graph_s_terms_are_losses_times_weights():
    student, teacher, train, index = cnn(4, 1), cnn(6, 2), images(8), torch.arange(8)
    method = prepared(InstanceGraph(vertices=2.0, weight=0.5), student, teacher, train)
    got = ask(method, student, teacher, train, index)
    paths = ("stage2", "stage3", "pool")
    mine, theirs = (outputs(net_, paths, train.x, graph=False) for net_ in (student, teacher))
    edges = [losses.instance_edge_loss(mine.taps[p], theirs.taps[p]) for p in paths]
    torch.testing.assert_close(got["edges"], 2.5 * sum(edges) / 3)

    def move(taps):  # 4×4 places of 2n channels against 2×2 of 2n
        return F.avg_pool2d(taps["stage2"], 2), taps["stage3"]

    moved = losses.instance_transformation_loss(move(mine.taps), move(theirs.taps))
    torch.testing.assert_close(got["transformation"], 2.5 * moved)
    matching = losses.logit_matching_loss(mine.logits, theirs.logits)
    torch.testing.assert_close(got["vertices"], matching)
    assert method.complete and not InstanceGraph(vertices=0).complete


def test_of_two_sizes_and_widths_the_smaller_is_taken():
    first, second = torch.randn(2, 4, 6, 6), torch.randn(2, 8, 3, 3)
    a, b = one_size(first, second)
    torch.testing.assert_close(a, F.avg_pool2d(first, 2))
    torch.testing.assert_close(b, (second[:, 0::2] + second[:, 1::2]) / 2)
    tokens = one_size(torch.randn(2, 5, 4), torch.randn(2, 9, 6))
    assert tokens[0].shape == tokens[1].shape == (2, 4, 5, 1)


def test_factors_of_zero_are_left_out_and_a_graph_without_neighbours_is_refused():
    student, teacher, train, index = cnn(4, 1), cnn(6, 2), images(8), torch.arange(8)
    alone = InstanceGraph("pool", vertices=0, transformation=0)
    assert list(ask(prepared(alone, student, teacher, train), student, teacher, train, index)) == [
        "edges"
    ]
    for layers in ("pool", ["stage3", "pool"]):
        with says("layers: got ", "'pool' [2, 8]", "[2, 12]", "transformation=0"):
            prepared(InstanceGraph(layers), student, teacher, train)
    for option in ("vertices", "edges", "transformation", "weight"):
        with says(f"{option}: -1"):
            InstanceGraph(**{option: -1})
    tokens = prepared(
        InstanceGraph({"blocks.0": "stage2", "blocks.1": "stage3"}), vit(8, 1), teacher, train
    )
    assert ask(tokens, vit(8, 1), teacher, train, index)["transformation"].isfinite()


# ---- other classes ---------------------------------------------------------------------------


GROUPS = [4, (0, 2), 1]


def told(method, student, teacher, y):
    return method(Outputs(student), Outputs(teacher), y)


@pytest.mark.parametrize("inner", [SoftTargets(3.0), Decoupled(), LogitMatching(), HardTargets()])
def test_a_mapped_method_is_the_method_on_mapped_answers(inner):
    random = torch.Generator().manual_seed(0)
    s, t = torch.randn(6, 3, generator=random), 3 * torch.randn(6, 5, generator=random)
    y = torch.arange(6) % 3
    got = told(ClassMapping(inner, GROUPS), s, t, y)
    p = t.softmax(1)
    p = torch.stack([p[:, 4], p[:, 0] + p[:, 2], p[:, 1]], 1)
    for_log = (p / p.sum(1, keepdim=True)).log()
    if isinstance(inner, LogitMatching):  # it sees the size of the logits, too
        for_log = torch.stack([t[:, 4], torch.logaddexp(t[:, 0], t[:, 2]), t[:, 1]], 1)
    expected = told(inner, s, for_log, y)
    assert list(got) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value)


def grouped(classes):
    """The digits, labelled by their remainder."""
    parts = {name: getattr(DIGITS, name) for name in ("train", "val", "test")}
    splits = {name: replace(part, y=part.y % classes) for name, part in parts.items()}
    return replace(DIGITS, classes=tuple("abcdefgh"[:classes]), **splits)


def test_a_student_of_grouped_classes_learns_from_its_teacher_through_fit_and_study():
    """Five classes, each of two digits; the teacher's knowledge of digits is put together."""
    groups = [(k, k + 5) for k in range(5)]
    coarse = grouped(5)
    teacher = net("cnn_small", 1)
    fit(teacher, DIGITS, **(SHORT | {"epochs": 6, "lr": 0.1}))
    method = ClassMapping(SoftTargets(alpha=1.0), groups)
    student = net(classes=5)
    run = fit(student, coarse, method, teacher=teacher, **(SHORT | {"epochs": 12, "lr": 0.1}))
    assert run.history.last["val_accuracy"] > 0.6
    options = {"seeds": 1, "workers": 1, "teacher": teacher, **SHORT}
    row = study(lambda seed: net(seed=seed, classes=5), coarse, {"mapped": method}, **options)
    assert row.agreement.between(0, 1).all() and np.isfinite(row.kl_to_teacher).all()


def test_a_gate_inside_and_what_asks_in_prepare_see_the_students_classes():
    seen = []

    class Asks(SoftTargets):
        def prepare(self, student, teacher, train):
            seen.append(logits_of(teacher(train.x[:2])).shape)

    student, teacher, train = cnn(4, 1, classes=3), cnn(6, 2, classes=5), images(6)
    method = prepared(ClassMapping(Asks(), GROUPS), student, teacher, train)
    assert seen == [(2, 3)] and teacher(train.x[:2]).shape == (2, 5)
    got = prepared(ClassMapping(Gated(SoftTargets()), GROUPS), student, teacher, train)
    y = torch.arange(6) % 3
    s, t = student(train.x), teacher(train.x).detach()
    gated = told(got, s, t, y)["soft"]
    mapped = losses.map_classes(t, GROUPS)
    right = mapped.argmax(1) == y
    each = losses.soft_target_loss(s, mapped, 4.0, reduction="none")
    torch.testing.assert_close(gated, 0.9 * (each * right).mean())
    assert set(got.measures()) >= {"gate_open"} and method.needs_only_logits


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_peer_trains_and_a_scripted_student_needs_one():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    scripted = torch.jit.script(copy.deepcopy(plain))
    with says("peer: got None, but the student's layer '1'"):
        fit(scripted, DIGITS, MutualLearning(), **SHORT)
    method = MutualLearning(scripted)
    torch.manual_seed(9)
    fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), DIGITS, method, **SHORT)
    assert not torch.equal(method.peer.state_dict()["1.weight"], plain[1].weight)
    assert torch.equal(scripted.state_dict()["1.weight"], plain[1].weight)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_teachers_without_hooks_can_be_mapped_too():
    student, train = cnn(4, 1, classes=3), images(6)
    model = cnn(6, 2, classes=5)
    seen = []

    class Asks(SoftTargets):
        def prepare(self, student, teacher, train):
            seen.append(teacher(train.x[:2]))

    for teacher in (torch.jit.trace(model, train.x[:2]), WithOutput(lambda x: model(x))):
        prepared(ClassMapping(Asks(), GROUPS), student, teacher, train)
    expected = losses.map_classes(model(train.x[:2]), GROUPS)
    assert len(seen) == 2
    for got in seen:
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("classes", "parts"),
    [
        ([0, 1], ("got 2 entries, expected 3, one for each class of the student",)),
        ([0, 1, 5], ("got 5, expected classes of the teacher from 0 to 4",)),
        ([0, 1, 1], ("got the teacher's class 1 more than once",)),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused_before_training(classes, parts):
    student, teacher = net(classes=3), net(classes=5)
    before = weights(student)
    with says("classes: ", *parts):
        fit(student, grouped(3), ClassMapping(SoftTargets(), classes), teacher=teacher, **SHORT)
    assert same(weights(student), before)


def test_a_mapping_of_many_classes_is_checked_in_little_time():
    """fit and study look at it in every step."""
    logits = torch.zeros(1, 20_000)
    assert losses.map_classes(logits, range(19_999, -1, -1)).shape == logits.shape


def test_a_mapping_shows_itself_and_wants_what_its_method_wants():
    method = ClassMapping(Labels() + Hints("stage2"), {0: 4, 2: 1, 1: [0, 2]})
    assert method.classes == ((4,), (0, 2), (1,)) and "classes=((4,), (0, 2), (1,))" in repr(method)
    assert method.student_taps == method.teacher_taps == ("stage2",)
    assert isinstance(method, Distiller) and isinstance(method + Labels(), Sum)
    plain = ClassMapping()
    assert plain.needs_only_logits and plain.labelled_terms == ("hard",)
