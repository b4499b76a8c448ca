"""Gated works around every method that compares with a teacher, and says what the gate did."""

import copy
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from specialists import Specialist, is_bright, label_in, two_kinds
from torch import nn

from kdlab import losses
from kdlab.datasets import Split
from kdlab.distillers import Labels, Outputs, SoftTargets, available, build
from kdlab.distillers import gate_networks as networks
from kdlab.distillers.channel_gated_hints import ChannelGatedHints, needed_channels
from kdlab.distillers.gated import (
    CollapsingGate,
    ConstantGate,
    Gate,
    Gated,
    LearnedGate,
    RandomGate,
    ScheduledGate,
    controls,
)
from kdlab.distillers.gates import NAMED
from kdlab.losses import better_gate, correct_gate
from kdlab.losses.checks import unchecked_values
from kdlab.metrics import gate_report, gate_report_of
from kdlab.models import Taps, build_for
from kdlab.training import fit
from kdlab.training.stacked import stackable

sys.path.append(str(Path(__file__).parents[1] / "training"))
from tiny import interrupt_at, make_data, make_mlp, same, stopping_is_expected

DATA = make_data()
TEACHER = build_for("cnn_tiny", DATA.shape, DATA.num_classes, seed=5)
SHORT = {"epochs": 2, "batch_size": 24, "lr": 0.05}
QUICK = {"steps": 5}  # of a learned gate whose quality is not looked at

S, T = (2 * torch.randn(12, 4, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
Y = torch.arange(12) % 4


def outputs(logits, progress=0.0, seed=3):
    images = torch.randn(len(logits), 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return Outputs(logits, {}, images, torch.arange(len(logits)), progress)


def terms(distiller, student=S, teacher=T, targets=Y, **options):
    return distiller(outputs(student, **options), outputs(teacher), targets)


def student(seed=1, activation=None):
    return build_for("cnn_tiny", DATA.shape, DATA.num_classes, seed=seed, activation=activation)


# methods with nothing to weigh, and those that need other models than a pair of plain CNNs
WITHOUT_COMPARISON = {"labels", "label_smoothing", "weight_transfer"}
GATEABLE = [
    name
    for name, method in available().items()
    if method.needs_teacher
    and name not in WITHOUT_COMPARISON | {"gated", "gated_teachers"}
    and (method.in_tournament or name == "channel_gated_hints")
]
AMONG_SAMPLES = {  # what one sample contributes is also read by the others' rows
    "correlation_congruence",
    "dist",
    "probabilistic",
    "relational",
    "similarity_preserving",
}


def prepared(name, gate, activation=None):
    """A gated method with student and teacher, ready for one batch."""
    torch.manual_seed(7)
    mine, theirs = student(activation=activation), TEACHER.eval()
    options = QUICK if name == "channel_gated_hints" else {}
    gated = Gated(build(name, **options), gate)
    with torch.no_grad():
        mine.eval()
        gated.prepare(mine, theirs, DATA.train)
    return gated.train(), mine, theirs


def step(gated, mine, theirs, method=None):
    """The teacher's terms of one batch, with fresh taps, and the gradients in the student."""
    torch.manual_seed(8)  # contrastive draws negatives
    images, index = DATA.train.x[:12].clone(), torch.arange(12)
    wants = gated.needs_input_gradients
    with Taps(mine, gated.student_taps) as own, Taps(theirs, gated.teacher_taps) as other:
        said = []
        for model, taps in ((mine, own), (theirs, other)):
            seen = images.detach().requires_grad_(wants)
            logits = model(seen)
            said.append(Outputs(logits, {p: taps[p] for p in taps}, seen, index))
        with unchecked_values():
            found = (method or gated)(*said, DATA.train.y[:12])
    found = {name: value for name, value in found.items() if name != "hard"}
    mine.zero_grad()
    torch.stack(list(found.values())).sum().backward()
    gradients = [p.grad.clone() for p in mine.parameters() if p.grad is not None]
    return found, gradients


@pytest.mark.parametrize("name", GATEABLE)
def test_a_gate_of_ones_changes_no_bit(name):
    gated, mine, theirs = prepared(name, ConstantGate(1.0))
    bare = copy.deepcopy(gated.parts[0])  # contrastive moves its banks on
    with_gate, without = step(gated, mine, theirs), step(gated, mine, theirs, bare)
    assert same(with_gate[0], without[0]) and same(with_gate[1], without[1])
    assert any(gradient.any() for gradient in without[1])


@pytest.mark.parametrize("name", GATEABLE)
def test_a_constant_gate_is_a_weaker_method(name):
    gated, mine, theirs = prepared(name, ConstantGate(0.25))
    bare = copy.deepcopy(gated.parts[0])
    weak, full = step(gated, mine, theirs), step(gated, mine, theirs, bare)
    for a, b in zip(weak[0].values(), full[0].values(), strict=True):
        torch.testing.assert_close(a, 0.25 * b, rtol=1e-4, atol=1e-6)
    for a, b in zip(weak[1], full[1], strict=True):
        torch.testing.assert_close(a, 0.25 * b, rtol=1e-3, atol=1e-4 * float(b.abs().max() + 1e-3))


@pytest.mark.parametrize("name", GATEABLE)
def test_a_closed_gate_teaches_nothing(name):
    gated, mine, theirs = prepared(name, ConstantGate(0.0))
    found, gradients = step(gated, mine, theirs)
    assert all(value == 0 for value in found.values())
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", [name for name in GATEABLE if name not in AMONG_SAMPLES])
def test_a_closed_sample_gets_a_gradient_of_exactly_0(name):
    """Looked at in the student's images: in eval mode nothing else joins two samples.

    The student is smooth, because a slope of a ReLU network has no slope itself.
    """

    def half(student, teacher, targets):
        return (torch.arange(12) % 2).to(student)

    gated, mine, theirs = prepared(name, half, activation="silu")
    mine.eval(), gated.eval()
    images, index = DATA.train.x[:12].clone().requires_grad_(), torch.arange(12)
    with Taps(mine, gated.student_taps) as own, Taps(theirs, gated.teacher_taps) as other:
        logits = mine(images)
        a = Outputs(logits, {p: own[p] for p in own}, images, index)
        seen = images.detach().requires_grad_()
        b = Outputs(theirs(seen), {p: other[p] for p in other}, seen, index)
        found = gated(a, b, DATA.train.y[:12])
    total = torch.stack([value for key, value in found.items() if key != "hard"]).sum()
    (gradient,) = torch.autograd.grad(total, images)
    per_image = gradient.flatten(1).abs().amax(1)
    assert (per_image[::2] == 0).all() and (per_image[1::2] > 0).any()


@pytest.mark.parametrize("name", sorted(WITHOUT_COMPARISON))
def test_a_method_that_compares_nothing_is_refused(name):
    kind = type(build(name)).__name__
    with pytest.raises(ValueError, match=f"^method: {kind} compares nothing with a teacher"):
        terms(Gated(build(name)))


def test_the_hard_labels_are_not_gated():
    got, plain = terms(Gated(gate=ConstantGate(0.0))), terms(SoftTargets())
    assert torch.equal(got["hard"], plain["hard"]) and got["soft"] == 0 and got["hard"] > 0


def test_the_default_is_soft_targets_where_the_teacher_is_right():
    single = losses.soft_target_loss(S, T, 4.0, reduction="none")
    gate = correct_gate(S, T, Y)
    assert 0 < gate.sum() < 12
    torch.testing.assert_close(terms(Gated())["soft"], 0.9 * (gate * single).mean())


def test_any_function_will_do_as_a_gate():
    def mine(student, teacher, targets):
        return targets.to(student) / 4

    single = losses.soft_target_loss(S, T, 4.0, reduction="none")
    torch.testing.assert_close(terms(Gated(gate=mine))["soft"], 0.9 * (Y / 4 * single).mean())
    sharp = Gated(gate=partial(better_gate, scale=0.1))
    gate = better_gate(S, T, Y, scale=0.1)
    torch.testing.assert_close(terms(sharp)["soft"], 0.9 * (gate * single).mean())
    assert "scale" in repr(sharp) and "better_gate" in repr(sharp) and " at 0x" not in repr(sharp)
    assert repr(sharp) != repr(Gated(gate=partial(better_gate, scale=0.2)))
    assert "mine" in repr(Gated(gate=mine))


def test_unlabelled_samples():
    targets = torch.where(Y == 0, -1, Y)
    gated = Gated()
    with unchecked_values():
        terms(gated, targets=targets)
    measured = {name: float(value) for name, value in gated.measures().items()}
    gate = correct_gate(S, T, targets)
    assert measured["gate_open"] == pytest.approx(float(gate.mean()))
    assert (gate[Y == 0] == 1).all()
    wrong = ((T.argmax(-1) != Y) & (Y > 0)).float().mean()
    assert measured["teacher_wrong"] == measured["gate_caught"] == pytest.approx(float(wrong))


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("corect", "^unknown gate 'corect' .did you mean 'correct'"),
        (3, "^gate: 3, expected a name"),
        (lambda s, t, y: s, r"^gate: weights \[12, 4\] came, expected \[12\]"),
        (lambda s, t, y: s.new_full((12,), 1.5), "^gate: weights from 1.5 to 1.5 came"),
        (lambda s, t, y: s.new_full((12,), -0.5), "^gate: weights from -0.5"),
        (lambda s, t, y: s.new_full((12,), torch.nan), "^gate: weights from nan"),
    ],
)
def test_a_bad_gate_is_refused(gate, message):
    with pytest.raises(ValueError, match=message):
        terms(Gated(gate=gate))


def test_other_errors():
    with pytest.raises(ValueError, match=r"^teacher: Gated needs a teacher"):
        Gated()(outputs(S), None, Y)
    with pytest.raises(NotImplementedError, match="Gate must define forward"):
        terms(Gated(gate=Gate()))
    for wrong in (lambda: ScheduledGate(-1), lambda: ConstantGate(2), lambda: RandomGate(1.1)):
        with pytest.raises(ValueError, match=r"^(start|weight|mean): .* came, expected a weight"):
            wrong()
    gate = RandomGate(0.5, fresh=False)
    gate.prepare(TEACHER, TEACHER, DATA.train)
    with pytest.raises(ValueError, match=r"^student.index: None came"):
        Gated(gate=gate)(Outputs(S), Outputs(T), Y)
    for option in ({"sees": "images"}, {"guess": "even"}, {"budget": 2.0}, {"steps": 0}):
        with pytest.raises(ValueError, match=next(iter(option))):
            LearnedGate(**option)


def test_a_gated_method_wants_what_its_method_wants():
    gated = Gated(Labels() + build("hints"))
    assert gated.student_taps == gated.teacher_taps == ("stage2",)
    assert gated.complete and not gated.needs_only_logits and gated.needs_teacher
    assert Gated().needs_only_logits and not Gated(build("hints")).complete
    assert Gated(build("sobolev")).needs_input_gradients and Gated(Labels()).needs_teacher


# gates with a clock, with dice, with memory


def test_a_schedule_follows_the_run():
    single = 0.9 * losses.soft_target_loss(S, T, 4.0)
    for progress in (0.0, 0.3, 0.9):
        rising, falling = (terms(Gated(gate=g), progress=progress) for g in ("rising", "falling"))
        torch.testing.assert_close(rising["soft"], progress * single)
        torch.testing.assert_close(falling["soft"], (1 - progress) * single)
        torch.testing.assert_close(
            terms(Gated(gate=ScheduledGate(0.2, 0.6)), progress=progress)["soft"],
            (0.2 + 0.4 * progress) * single,
        )


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("mean", [0.0, 0.2, 0.75, 1.0])
def test_a_random_gate_has_its_mean(mean, fresh):
    torch.manual_seed(0)
    gate = RandomGate(mean, fresh)
    many = Split(torch.zeros(4000, 1, 8, 8), torch.zeros(4000, dtype=torch.int64))
    gate.prepare(TEACHER, TEACHER, many)
    said = Outputs(torch.zeros(4000, 4), index=torch.arange(4000))
    first, second = gate(said, said, many.y), gate(said, said, many.y)
    assert set(first.tolist()) <= {0.0, 1.0}
    assert float(first.mean()) == pytest.approx(mean, abs=1e-6 if not fresh else 0.03)
    assert torch.equal(first, second) == (not fresh or mean in (0.0, 1.0))
    if mean == 0.2 and not fresh:
        assert torch.equal(gate(Outputs(S, index=torch.arange(5)), Outputs(T), Y)[:5], first[:5])
        gate.prepare(TEACHER, TEACHER, many)  # another run, other images
        assert not torch.equal(gate(said, said, many.y), first)


def test_controls_have_the_strength_of_the_run():
    run = fit(student(), DATA, Gated(), teacher=TEACHER, **SHORT)
    mean = sum(row["gate_open"] for row in run.history.rows) / 2
    assert 0 < mean < 1
    both = controls(Gated(SoftTargets(2.0), "correct"), run.history.rows, fresh=False)
    assert list(both) == ["random", "constant"]
    assert both["random"].gate.mean == pytest.approx(mean) and not both["random"].gate.fresh
    for gated in both.values():
        assert gated.parts[0].temperature == 2.0
        again = fit(student(), DATA, gated, teacher=TEACHER, **SHORT)
        rows = again.history.rows
        opened = sum(row["gate_open"] for row in rows) / 2
        assert opened == pytest.approx(mean, abs=0.02)
    changing = controls(Gated(), [{"gate_open": 0.2}, {"gate_open": 0.8}, {"gate_open": 0.2}])
    assert changing["random"].gate.mean == pytest.approx(0.4)
    assert changing["constant"].gate.start == changing["constant"].gate.end == pytest.approx(0.4)
    with pytest.raises(ValueError, match=r"^history: no row with gate_open"):
        controls(Gated(), fit(student(), DATA, **SHORT).history.rows)


# learned gates


HALF = two_kinds()  # of which the teacher knows one kind


def learned(steps=60, **options):
    torch.manual_seed(0)
    gate = LearnedGate(steps=steps, **options)
    with torch.no_grad():
        gate.prepare(TEACHER, Specialist(True), HALF.train)
    answers = Specialist(True)(HALF.train.x)
    said = Outputs(answers, {}, HALF.train.x)
    return gate, gate(said, said, HALF.train.y), answers


@pytest.mark.parametrize("options", [{}, {"guess": "prior"}, {"examples": two_kinds(seed=1).val}])
def test_a_learned_gate_opens_where_the_teacher_knows(options):
    _, weights, answers = learned(**options)
    bright = is_bright(HALF.train.x)
    assert weights[bright].mean() > 0.9 and weights[~bright].mean() < 0.15
    report = gate_report(weights, answers, HALF.train.y)
    assert report.recall > 0.85 and report.precision > 0.85


def test_a_gate_on_answers_cannot_see_what_is_only_in_the_image():
    _, weights, _ = learned(sees="answer")
    bright = is_bright(HALF.train.x)
    assert abs(float(weights[bright].mean() - weights[~bright].mean())) < 0.2


@pytest.mark.parametrize("budget", [0.2, 0.9])
def test_a_budget_is_kept(budget):
    _, weights, _ = learned(budget=budget, budget_weight=30.0, steps=120)
    assert float(weights.mean()) == pytest.approx(budget, abs=0.06)
    bright = is_bright(HALF.train.x)
    assert weights[bright].mean() > weights[~bright].mean() + 0.1  # and what is open is well chosen


def test_a_learned_gate_is_frozen_and_detached():
    gate, weights, _ = learned(steps=3)
    assert not weights.requires_grad and gate.detached
    assert not any(p.requires_grad for p in gate.parameters())
    mine = build_for("cnn_tiny", HALF.shape, 4, seed=1)
    gated = Gated(gate=LearnedGate(steps=3))
    fit(mine, HALF, gated, teacher=Specialist(True), **SHORT)
    assert not any(p.requires_grad for p in gated.gate.parameters())


def test_a_gate_on_answers_learns_a_confused_class():
    class Confused(nn.Module):
        def forward(self, x):
            label = label_in(x)
            return 6.0 * F.one_hot(torch.where(label == 2, 3, label), 4).to(x.dtype)

    torch.manual_seed(0)
    gate = LearnedGate("answer", steps=120)
    with torch.no_grad():
        gate.prepare(TEACHER, Confused(), HALF.train)
    said = Outputs(Confused()(HALF.train.x), {}, HALF.train.x)
    weights = gate(said, said, HALF.train.y)
    says_three = said.logits.argmax(-1) == 3
    assert weights[~says_three].mean() > 0.9
    assert 0.2 < weights[says_three].mean() < 0.8  # right half of the time


def test_examples_are_labelled_and_a_share():
    half = Split(HALF.train.x, torch.where(torch.arange(480) < 240, -1, HALF.train.y))
    torch.manual_seed(0)
    taken = networks.take_examples(None, 0.25, half)
    assert len(taken) == 60 and (taken.y >= 0).all()
    assert len(networks.take_examples(half, 0.25, HALF.train)) == 240
    with pytest.raises(ValueError, match=r"^examples: no image with a label"):
        networks.take_examples(None, 1.0, Split(half.x[:100], half.y[:100]))
    with pytest.raises(
        ValueError, match=r"^inputs: torch.int64 of shape \[3, 7\], expected images"
    ):
        networks.build_network(torch.zeros(3, 7, dtype=torch.int64), 2)
    gate, _, _ = learned(steps=2)
    with pytest.raises(ValueError, match=r"^inputs: None came, expected the images"):
        gate(Outputs(S), Outputs(T), Y)


def test_a_gate_trained_by_the_loss_it_weighs_collapses():
    """The bad example: it closes on everything, also where the teacher is right."""
    mine = build_for("cnn_tiny", HALF.shape, 4, seed=1)
    options = {"epochs": 5, "batch_size": 20, "lr": 0.2}
    run = fit(mine, HALF, Gated(gate=CollapsingGate()), teacher=Specialist(True), **options)
    opens = [row["gate_open"] for row in run.history.rows]
    assert opens[-1] < 0.05 < opens[0]
    cured = Gated(gate=LearnedGate(steps=60))
    run = fit(
        build_for("cnn_tiny", HALF.shape, 4, seed=1),
        HALF,
        cured,
        teacher=Specialist(True),
        **options,
    )
    assert gate_report_of(run.history.last).recall > 0.8
    assert run.history.last["gate_open"] > 0.4


# over channels


class Narrow(nn.Module):
    """A teacher whose answer reads two of its six channels."""

    def __init__(self):
        super().__init__()
        self.stage2 = nn.Conv2d(1, 6, 3, padding=1)
        self.head = nn.Linear(6, 4, bias=False)
        with torch.no_grad():
            self.head.weight.zero_()[:, [1, 4]] = 5 * torch.randn(
                4, 2, generator=torch.Generator().manual_seed(0)
            )

    def forward(self, x):
        return self.head(self.stage2(x).relu().mean((2, 3)))


def test_the_channels_that_the_answer_reads_are_found():
    torch.manual_seed(0)
    teacher = Narrow()
    hints = ChannelGatedHints(share=2 / 6, steps=40)
    with torch.no_grad():
        hints.prepare(student().eval(), teacher, DATA.train)
    (gate,) = hints.gates
    assert gate.tolist() == [0, 1, 0, 0, 1, 0]
    with torch.no_grad():  # the budget is kept, so a channel is open at another's cost
        scores = needed_channels(teacher, "stage2", 6, DATA.train.x, 2 / 6, 40)
    assert float(scores.sigmoid().mean()) == pytest.approx(2 / 6, abs=0.12)
    assert all(p.grad is None for p in teacher.parameters())
    assert not teacher.stage2._forward_hooks
    with pytest.raises(ValueError, match=r"^layers: the teacher's 'stage2:input' names an input"):
        needed_channels(teacher, "stage2:input", 6, DATA.train.x, 0.5, 1)


def test_channel_controls_have_the_same_strength():
    gates = {}
    for kind in ("learned", "random", "constant"):
        torch.manual_seed(3)
        hints = ChannelGatedHints(["stage2", "pool"], share=0.25, gate=kind, steps=3)
        with torch.no_grad():
            hints.prepare(student().eval(), TEACHER, DATA.train)
        gates[kind] = [gate.tolist() for gate in hints.gates]
        assert [len(gate) for gate in gates[kind]] == [16, 24]
        assert [sum(gate) for gate in gates[kind]] == [4, 6]
    assert set(gates["constant"][0]) == {0.25} and gates["random"] != gates["learned"]


# in the loop


@pytest.mark.parametrize("gate", [*NAMED, RandomGate(0.3), RandomGate(0.3, fresh=False)], ids=str)
def test_measures_land_in_the_history(gate):
    gate = LearnedGate(**QUICK) if gate == "learned" else gate
    run = fit(student(), DATA, Gated(gate=gate), teacher=TEACHER, **SHORT)
    for row in run.history.rows:
        assert 0 <= row["gate_caught"] <= min(row["gate_closed"], row["teacher_wrong"]) + 1e-6
        assert row["gate_open"] + row["gate_closed"] == pytest.approx(1)
        assert row["loss"] == pytest.approx(row["hard"] + row["soft"])
    whole = Gated(gate=copy.deepcopy(gate)) + SoftTargets(2.0)
    assert "gate_open" in fit(student(), DATA, whole, teacher=TEACHER, **SHORT).history.last


def test_what_the_history_says_is_what_the_gate_did():
    run = fit(student(), DATA, Gated(), teacher=TEACHER, **SHORT)
    answers = TEACHER(DATA.train.x).detach()
    whole = gate_report(correct_gate(answers, answers, DATA.train.y), answers, DATA.train.y)
    from_history = gate_report_of(run.history.last)
    assert from_history.open == pytest.approx(whole.open)
    assert from_history.mistakes == pytest.approx(whole.mistakes)
    assert from_history.precision == from_history.recall == pytest.approx(1.0)


@pytest.mark.parametrize(
    "gate",
    ["better", "falling", RandomGate(0.4), RandomGate(0.4, fresh=False), "learned", "collapsing"],
    ids=str,
)
def test_resumed_is_uninterrupted(tmp_path, gate):
    def method():
        return Gated(gate=LearnedGate(**QUICK) if gate == "learned" else copy.deepcopy(gate))

    def train(path, callbacks=()):
        mine = student()
        options = SHORT | {"checkpoint": tmp_path / path, "callbacks": callbacks}
        return fit(mine, DATA, method(), teacher=TEACHER, **options), mine.state_dict()

    run, whole = train("whole.pt")
    with stopping_is_expected():
        part, _ = train("parts.pt", [interrupt_at(1, 2)])
    torch.rand(3)
    rest, resumed = train("parts.pt")
    assert part.interrupted and same(resumed, whole) and rest.history.rows == run.history.rows
    stored = [torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in ("whole", "parts")]
    assert same(*stored)


def test_a_small_mlp_is_not_trained_stacked_but_measured():
    assert not stackable(make_mlp(DATA), Gated())
