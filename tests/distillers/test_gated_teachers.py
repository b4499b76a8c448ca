"""Several teachers: weights with the sum 1, that follow whoever is right, told in the history."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from specialists import Specialist, is_bright, two_kinds
from torch import nn

from kdlab import losses
from kdlab.distillers import GatedTeachers, Outputs
from kdlab.distillers.gated_teachers import (
    TEACHERS,
    CollapsingTeachers,
    ConfidenceAware,
    EvenTeachers,
    FixedShares,
    LearnedTeachers,
    TeachersGate,
    members_of,
    read_members,
    teacher_controls,
)
from kdlab.losses import confidence_aware_weights, soft_target_loss
from kdlab.models import Committee, build_for, multi_scale
from kdlab.training import fit

sys.path.append(str(Path(__file__).parents[1] / "training"))
from tiny import interrupt_at, same, stopping_is_expected

SHORT = {"epochs": 2, "batch_size": 24, "lr": 0.05}


def numbers(seed, *shape):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


S, T, Y = numbers(0, 12, 4), numbers(1, 12, 3, 4), torch.arange(12) % 4


def taught(members=T, images=None):
    taps = {f"members.{k}": answer for k, answer in enumerate(members.unbind(1))}
    return Outputs(members.mean(1), taps, images)


def terms(method, student=S, members=T, targets=Y, images=None):
    return method(Outputs(student), taught(members, images), targets)


DATA = two_kinds()
PAIR = Committee([Specialist(True), Specialist(False)])


def student(seed=1):
    return build_for("cnn_tiny", DATA.shape, 4, seed=seed)


def prepared(gate):
    torch.manual_seed(0)
    with torch.no_grad():
        gate.prepare(student(), PAIR, DATA.train)
    return gate


def asked(gate, data=DATA):
    members = torch.stack([member(data.train.x) for member in PAIR.members], 1)
    return gate(members, data.train.x, data.train.y)


def test_the_mean_of_teachers():
    single = torch.stack([soft_target_loss(S, t, 4.0) for t in T.unbind(1)])
    got = terms(GatedTeachers())
    torch.testing.assert_close(got["soft"], 0.9 * single.mean())
    torch.testing.assert_close(got["hard"], 0.1 * losses.hard_label_loss(S, Y))
    one = terms(GatedTeachers(temperature=2.0, alpha=1.0), members=T[:, :1])
    torch.testing.assert_close(one["soft"], soft_target_loss(S, T[:, 0], 2.0))
    assert one["hard"] == 0


def test_confidence_aware_terms():
    weights = confidence_aware_weights(T, Y)
    single = torch.stack(
        [soft_target_loss(S, t, 4.0, reduction="none") for t in T.unbind(1)], dim=1
    )
    expected = 0.9 * (weights * single).sum(1).mean()
    torch.testing.assert_close(terms(GatedTeachers("confidence_aware"))["soft"], expected)


def test_the_gradient_is_that_of_the_mixture():
    student = S.clone().requires_grad_()
    weights = confidence_aware_weights(T, Y)
    (got,) = torch.autograd.grad(
        terms(GatedTeachers("confidence_aware", 3.0, 1.0), student)["soft"], student
    )
    mixture = (weights.unsqueeze(-1) * F.softmax(T / 3.0, dim=-1)).sum(1)
    (wanted,) = torch.autograd.grad(soft_target_loss(student, 3.0 * mixture.log(), 3.0), student)
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-4)
    assert got.abs().max() > 1e-3


@pytest.mark.parametrize("gate", ["mean", "confidence_aware"])
def test_the_order_of_teachers_and_samples_does_not_matter(gate):
    method = GatedTeachers(gate)
    there, order = terms(method)["soft"], torch.randperm(12)
    torch.testing.assert_close(terms(method, members=T[:, [2, 0, 1]])["soft"], there)
    torch.testing.assert_close(terms(method, S[order], T[order], Y[order])["soft"], there)


@pytest.mark.parametrize(
    "gate", [EvenTeachers(), ConfidenceAware(), FixedShares((0.2, 0.3, 0.5))], ids=str
)
def test_weights_are_shares(gate):
    for members in (T, 1e4 * T, 0 * T):
        for targets in (Y, -torch.ones_like(Y)):
            weights = gate(members, None, targets)
            assert weights.shape == (12, 3) and (weights >= 0).all()
            torch.testing.assert_close(weights.sum(1), torch.ones(12))


def test_measures():
    method = GatedTeachers("confidence_aware")
    terms(method)
    weights = confidence_aware_weights(T, Y)
    right = (T.argmax(-1) == Y.unsqueeze(1)).float()
    measured = method.measures()
    for k in range(3):
        torch.testing.assert_close(measured[f"teacher_{k}"], weights[:, k].mean())
    torch.testing.assert_close(measured["gate_right"], (weights * right).sum(1).mean())


def test_the_learned_gate_follows_the_factor():
    gate = prepared(LearnedTeachers(steps=80))
    other = two_kinds(seed=9)  # images that the gate has not seen
    weights = asked(gate, other)
    bright = is_bright(other.train.x)
    assert weights[bright, 0].mean() > 0.9 and weights[~bright, 1].mean() > 0.9
    together = torch.stack([weights[:, 0], bright.float()])
    assert torch.corrcoef(together)[0, 1] > 0.85
    assert not weights.requires_grad and not any(p.requires_grad for p in gate.parameters())
    assert float(asked(EvenTeachers())[bright, 0].mean()) == 0.5  # a gate that ignores its input


def test_the_loss_does_not_train_who_weighs_it():
    class Own(TeachersGate):
        def __init__(self):
            super().__init__()
            self.scores = nn.Parameter(torch.zeros(3))

        def forward(self, members, inputs, targets):
            return self.scores.softmax(0).expand(len(members), -1)

    gate, student = Own(), S.clone().requires_grad_()
    terms(GatedTeachers(gate), student)["soft"].backward()
    assert gate.scores.grad is None and student.grad.any()
    gate.detached = False
    terms(GatedTeachers(gate))["soft"].backward()
    assert gate.scores.grad.any()


def test_a_budget_over_teachers():
    gate = prepared(LearnedTeachers(budget=(0.8, 0.2), budget_weight=1000.0, steps=120))
    shares = asked(gate).mean(0)
    assert shares.tolist() == pytest.approx([0.8, 0.2], abs=0.06)
    with pytest.raises(ValueError, match=r"^budget: 3 shares came, expected 2"):
        prepared(LearnedTeachers(budget=(0.2, 0.3, 0.5)))
    with pytest.raises(ValueError, match=r"^budget: \[0.5, 0.6\], expected one share per teacher"):
        LearnedTeachers(budget=(0.5, 0.6))


def test_the_gated_pair_teaches_what_neither_knows():
    options = {"epochs": 3, "batch_size": 24, "lr": 0.1}
    right = {}
    for name, gate in (("learned", LearnedTeachers(steps=80)), ("mean", EvenTeachers())):
        run = fit(student(), DATA, GatedTeachers(gate, alpha=1.0), teacher=PAIR, **options)
        right[name] = run.history.last["gate_right"]
        assert run.history.last["teacher_0"] == pytest.approx(0.5, abs=0.1)
    assert right["learned"] > 0.85 and right["mean"] == pytest.approx(0.5, abs=0.02)


def test_a_gate_trained_by_the_loss_it_weighs_collapses():
    """The bad example: it goes to the teacher that is easy to match, whatever the image shows."""

    class Vague(nn.Module):
        def forward(self, x):
            return 0.1 * Specialist(True)(x)

    pair = Committee([Vague(), Specialist(False)])
    method = GatedTeachers("collapsing", alpha=1.0)
    options = {"epochs": 4, "batch_size": 24, "lr": 0.2}
    run = fit(student(), DATA, method, teacher=pair, **options)
    assert run.history.last["teacher_0"] > 0.95
    weights = method.gate(T[:1, :2], DATA.train.x, Y)  # it sees the images and does not care
    assert weights.detach()[:, 0].min() > 0.9
    cured = fit(
        student(), DATA, GatedTeachers(LearnedTeachers(steps=80)), teacher=pair, **options
    ).history.last
    assert 0.3 < cured["teacher_0"] < 0.7


def test_controls_have_the_same_shares():
    method = GatedTeachers(LearnedTeachers(budget=(0.7, 0.3), steps=40), 3.0, 0.8)
    rows = fit(student(), DATA, method, teacher=PAIR, **SHORT).history.rows
    means = [sum(row[f"teacher_{k}"] for row in rows) / len(rows) for k in range(2)]
    both = teacher_controls(method, rows)
    assert list(both) == ["random", "constant"]
    for kind, control in both.items():
        assert control.gate.shares == pytest.approx(means, abs=1e-6)
        assert control.gate.random == (kind == "random")
        assert (control.temperature, control.alpha) == (3.0, 0.8)
        rows = fit(student(), DATA, control, teacher=PAIR, **SHORT).history.rows
        assert rows[-1]["teacher_0"] == pytest.approx(means[0], abs=0.05)
    with pytest.raises(ValueError, match=r"^history: no row with teacher_0"):
        teacher_controls(method, [{"loss": 1.0}])


def test_random_shares_follow_one_teacher_each():
    torch.manual_seed(0)
    gate = FixedShares((0.25, 0.75), random=True)
    weights = gate(torch.zeros(4000, 2, 4), None, Y)
    assert set(weights.unique().tolist()) == {0.0, 1.0} and (weights.sum(1) == 1).all()
    assert float(weights[:, 0].mean()) == pytest.approx(0.25, abs=0.03)
    assert not torch.equal(weights, gate(torch.zeros(4000, 2, 4), None, Y))


@pytest.mark.parametrize("gate", TEACHERS)
def test_each_runs_and_is_told(gate):
    made = GatedTeachers(LearnedTeachers(steps=3) if gate == "learned" else gate)
    run = fit(student(), DATA, made, teacher=PAIR, **SHORT)
    for row in run.history.rows:
        assert row["teacher_0"] + row["teacher_1"] == pytest.approx(1)
        assert 0 <= row["gate_right"] <= 1
    assert made.in_tournament is False and not made.needs_only_logits


def test_a_multi_scale_teacher_has_the_same_interface():
    teacher = multi_scale(4, 1, fields=(7, 11), width=8)
    run = fit(student(), DATA, GatedTeachers(LearnedTeachers(steps=3)), teacher=teacher, **SHORT)
    assert {"teacher_0", "teacher_1"} <= run.history.last.keys()
    assert "teacher_2" not in run.history.last


@pytest.mark.parametrize("kind", ["learned", "collapsing", "random"])
def test_resumed_is_uninterrupted(tmp_path, kind):
    def method():
        return GatedTeachers(
            {
                "learned": lambda: LearnedTeachers(steps=5),
                "collapsing": CollapsingTeachers,
                "random": lambda: FixedShares((0.4, 0.6), random=True),
            }[kind]()
        )

    def train(path, callbacks=()):
        mine = student()
        options = SHORT | {"checkpoint": tmp_path / path, "callbacks": callbacks}
        return fit(mine, DATA, method(), teacher=PAIR, **options), mine.state_dict()

    run, whole = train("whole.pt")
    with stopping_is_expected():
        train("parts.pt", [interrupt_at(1, 2)])
    torch.rand(3)
    rest, resumed = train("parts.pt")
    assert same(resumed, whole) and rest.history.rows == run.history.rows


def test_errors():
    with pytest.raises(
        ValueError, match=r"^unknown gate 'confidence' .did you mean 'confidence_aw"
    ):
        GatedTeachers("confidence")
    with pytest.raises(ValueError, match=r"^temperature: 0"):
        GatedTeachers(temperature=0)
    with pytest.raises(ValueError, match=r"^teacher: GatedTeachers needs a teacher"):
        GatedTeachers()(Outputs(S), None, Y)
    with pytest.raises(ValueError, match=r"^teacher: Staged has no members, expected several"):
        fit(student(), DATA, GatedTeachers(), teacher=student(2), **SHORT)
    with pytest.raises(ValueError, match=r"^teacher.taps: no members.0"):
        GatedTeachers()(Outputs(S), Outputs(S), Y)
    with pytest.raises(ValueError, match=r"^shares: 2 came, expected 3"):
        terms(GatedTeachers(FixedShares((0.5, 0.5))))
    with pytest.raises(ValueError, match=r"^inputs: None came, expected the images"):
        terms(GatedTeachers(prepared(LearnedTeachers(steps=1))))
    with pytest.raises(NotImplementedError, match="TeachersGate must define forward"):
        terms(GatedTeachers(TeachersGate()))

    class Wrong(TeachersGate):
        def forward(self, members, inputs, targets):
            return members[..., 0].mean(1)

    with pytest.raises(ValueError, match=r"^gate: weights \[12\] came, expected \[12, 3\]"):
        terms(GatedTeachers(Wrong()))


def test_members_are_found_in_order():
    many = Committee([Specialist(k % 2 == 0) for k in range(11)])
    assert members_of(many) == tuple(f"members.{k}" for k in range(11))
    assert torch.equal(read_members(taught()), T)
    assert read_members(taught(T.bfloat16())).dtype == torch.float32
