"""Gates are what their formulas say, in [0, 1], never differentiated; a closed one is shut."""

import math

import numpy as np
import pytest
import torch
from reference import log_softmax

from kdlab import losses
from kdlab.losses import (
    better_gate,
    channel_gated_hint_loss,
    confidence_aware_weights,
    confidence_gate,
    correct_gate,
    entropy_gate,
    gate_counts,
    hint_loss,
    margin_gate,
    median_gate,
    mixture_loss,
    soft_target_loss,
    ttm_loss,
    unchecked_values,
    weighted_samples,
    wsld_gate,
    wttm_gate,
)
from kdlab.losses.gates import GATES

ASK_THE_LABEL = {"correct", "better", "wsld"}


def numbers(seed: int, *shape: int) -> np.ndarray:
    return 2 * np.random.default_rng(seed).standard_normal(shape)


S, T, Y = numbers(0, 9, 5), numbers(1, 9, 5), np.arange(9) % 5
GOOD = T.copy()  # a teacher that is right on the even samples
GOOD[np.arange(0, 9, 2), Y[::2]] += 9


def cross_entropy(z, y):
    return -log_softmax(z)[np.arange(len(y)), y]


def probabilities(z):
    return np.exp(log_softmax(z))


def entropy(z):
    p = probabilities(z)
    return -(p * np.log(p)).sum(-1)


def ordered(z):
    return np.sort(probabilities(z), axis=-1)


REFERENCE = {
    "correct": lambda s, t, y: (t.argmax(-1) == y).astype(float),
    "confidence": lambda s, t, y: probabilities(t).max(-1),
    "entropy": lambda s, t, y: 1 - entropy(t) / np.log(t.shape[-1]),
    "margin": lambda s, t, y: ordered(t)[:, -1] - ordered(t)[:, -2],
    "better": lambda s, t, y: 1 / (1 + np.exp(cross_entropy(t, y) - cross_entropy(s, y))),
    "wsld": lambda s, t, y: 1 - np.exp(-cross_entropy(s, y) / cross_entropy(t, y)),
    "wttm": lambda s, t, y: (probabilities(t) ** 0.25).sum(-1) / t.shape[-1] ** 0.75,
    "median": lambda s, t, y: (
        probabilities(t).max(-1) <= np.median(probabilities(t).max(-1))
    ).astype(float),
}


def ask(name, student=S, teacher=GOOD, targets=Y, dtype=torch.float64, **options):
    given = (torch.as_tensor(z, dtype=dtype) for z in (student, teacher))
    return GATES[name](*given, torch.as_tensor(targets), **options)


def test_every_gate_has_a_reference():
    assert GATES.keys() == REFERENCE.keys()
    assert all(function is getattr(losses, f"{name}_gate") for name, function in GATES.items())


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values(name, dtype):
    got = ask(name, dtype=dtype)
    expected = REFERENCE[name](S, GOOD, Y)
    assert got.dtype == dtype and got.shape == (9,)
    np.testing.assert_allclose(
        got.numpy(), expected, atol=1e-12 if dtype == torch.float64 else 1e-5
    )
    assert expected.std() > 1e-3  # the example tells the samples apart


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("confidence", {"temperature": 3.0}, REFERENCE["confidence"](S / 3, GOOD / 3, Y)),
        ("entropy", {"temperature": 3.0}, REFERENCE["entropy"](S / 3, GOOD / 3, Y)),
        ("margin", {"temperature": 3.0}, REFERENCE["margin"](S / 3, GOOD / 3, Y)),
        ("wttm", {"temperature": 2.0}, (probabilities(GOOD) ** 0.5).sum(-1) / 5**0.5),
        ("wttm", {"temperature": 0.5}, (probabilities(GOOD) ** 2).sum(-1)),
        (
            "better",
            {"scale": 0.2},
            1 / (1 + np.exp(5 * (cross_entropy(GOOD, Y) - cross_entropy(S, Y)))),
        ),
    ],
)
def test_options(name, options, expected):
    np.testing.assert_allclose(ask(name, **options).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1e-3, 1e4])
def test_between_0_and_1_at_any_logits(name, dtype, size):
    for student, teacher in ((S, T), (T, S), (S, S), (S, -S)):
        got = ask(name, size * student, size * teacher, dtype=dtype)
        assert got.dtype == torch.float32
        assert ((got >= 0) & (got <= 1)).all()


@pytest.mark.parametrize("name", GATES)
def test_nothing_is_differentiated(name):
    student, teacher = (torch.tensor(z, requires_grad=True) for z in (S, T))
    got = GATES[name](student, teacher, torch.tensor(Y))
    assert not got.requires_grad


@pytest.mark.parametrize("name", GATES)
def test_the_order_of_the_batch_does_not_matter(name):
    order = np.random.default_rng(2).permutation(9)
    assert torch.equal(ask(name)[order], ask(name, S[order], GOOD[order], Y[order]))


@pytest.mark.parametrize("name", GATES)
def test_without_a_label_nothing_speaks_against_the_teacher(name):
    hidden = np.where(np.arange(9) < 4, -1, Y)
    got, labelled = ask(name, targets=hidden), ask(name)
    assert torch.equal(got[4:], labelled[4:])
    expected = torch.ones(4, dtype=torch.float64) if name in ASK_THE_LABEL else labelled[:4]
    assert torch.equal(got[:4], expected)


@pytest.mark.parametrize("name", GATES)
def test_bad_input_is_refused_by_name(name):
    with pytest.raises(ValueError, match=r"^teacher: shape \[9, 4\], expected student's"):
        ask(name, teacher=T[:, :4])
    with pytest.raises(ValueError, match=r"^targets: values from 0 to 5"):
        ask(name, targets=np.arange(9) % 6)
    with pytest.raises(ValueError, match=r"^targets: shape \[8\]"):
        ask(name, targets=Y[:8])
    with pytest.raises(ValueError, match=r"^teacher: NaN or infinite"):
        ask(name, teacher=np.where(T > 1, np.nan, T))
    with unchecked_values():
        ask(name, teacher=np.where(T > 1, np.nan, T))


@pytest.mark.parametrize("name", ["confidence", "entropy", "margin", "wttm"])
def test_a_bad_temperature_is_refused(name):
    with pytest.raises(ValueError, match=r"^temperature: 0"):
        ask(name, temperature=0)


def test_other_bad_options():
    with pytest.raises(ValueError, match=r"^scale: -1"):
        ask("better", scale=-1)
    for name in ("entropy", "margin"):
        with pytest.raises(ValueError, match=r"at least 2 classes"):
            ask(name, S[:, :1], T[:, :1], np.zeros(9, int))


def test_who_is_trusted():
    """The direction of each gate, on cases that need no formula."""
    y = torch.tensor([0, 0])
    sure, unsure = [9.0, 0.0, 0.0], [0.2, 0.0, 0.0]
    wrong = torch.tensor([[0.0, 9.0, 0.0], sure])
    even = torch.zeros(2, 3)
    assert correct_gate(even, wrong, y).tolist() == [0, 1]
    both = torch.tensor([unsure, sure])
    for gate in (confidence_gate, entropy_gate, margin_gate):
        low, high = gate(even, both, y)
        assert low < 0.45 and high > 0.95
    for gate in (wttm_gate, median_gate):  # these listen where the teacher doubts
        low, high = gate(even, both, y)
        assert low > high
    for gate in (better_gate, wsld_gate):
        low, high = gate(even, wrong, y)
        assert low < 0.2 and high > 0.7
    assert torch.allclose(better_gate(wrong, wrong, y), torch.full((2,), 0.5))
    certain = torch.tensor([[1e4, 0.0, 0.0]])
    assert wsld_gate(certain, certain, y[:1]) == 0  # nothing left to learn
    assert wsld_gate(even[:1], certain, y[:1]) == 1


def test_wttm_is_the_published_weight():
    student, teacher = (torch.tensor(z) for z in (S, T))
    with weighted_samples(wttm_gate(student, teacher, torch.tensor(Y), temperature=3.0)):
        gated = ttm_loss(student, teacher, 3.0)
    torch.testing.assert_close(
        gated * 5 ** (1 - 1 / 3), ttm_loss(student, teacher, 3.0, weighted=True)
    )


def test_the_median_closes_half():
    assert ask("median", S[:8], T[:8], Y[:8]).sum() == 4
    assert ask("median").sum() == 5
    assert ask("median", S, np.zeros((9, 5)), Y).sum() == 9  # all tie


@pytest.mark.parametrize("reach", ["gradient", "value"])
def test_a_closed_gate_is_shut(reach):
    """Defect 9: a mask on a loss that is a mean already closes nothing."""
    student = torch.tensor(S, requires_grad=True)
    gate = torch.tensor([0.0, 1.0, 0.5, 0, 1, 1, 1, 0, 1], dtype=torch.float64)
    with weighted_samples(gate):
        value = soft_target_loss(student, torch.tensor(T), 2.0)
    single = soft_target_loss(student, torch.tensor(T), 2.0, reduction="none")
    if reach == "value":
        torch.testing.assert_close(value, (gate * single).sum() / 9)
        return
    (got,) = torch.autograd.grad(value, student)
    (every,) = torch.autograd.grad(single.sum(), student)
    assert (got[gate == 0] == 0).all() and (got[gate > 0] != 0).all()
    torch.testing.assert_close(got, gate.unsqueeze(1) * every / 9)


def test_an_empty_gate_is_0_not_nan():
    """Defect 10: a batch without a correct sample; and a certain teacher that underflows."""
    student = torch.tensor(S, requires_grad=True)
    teacher = torch.full((9, 5), -1e4, dtype=torch.float64)
    teacher[np.arange(9), (Y + 1) % 5] = 1e4
    gate = correct_gate(student, teacher, torch.tensor(Y))
    assert (gate == 0).all()
    with weighted_samples(gate):
        value = soft_target_loss(student, teacher, 1.0)
    value.backward()
    assert value == 0 and (student.grad == 0).all()
    right = correct_gate(student, teacher, torch.tensor((Y + 1) % 5))
    with weighted_samples(right):
        value = soft_target_loss(student, teacher, 1.0)
    np.testing.assert_allclose(value.item(), cross_entropy(S, (Y + 1) % 5).mean())


def test_weights_train_their_maker_only_on_request():
    teacher = torch.tensor(T)
    for detach in (True, False):
        maker = torch.full((9,), 0.5, dtype=torch.float64, requires_grad=True)
        student = torch.tensor(S, requires_grad=True)
        with weighted_samples(maker, detach=detach):
            value = soft_target_loss(student, teacher, 2.0)
        value.backward()
        if detach:
            assert maker.grad is None
        else:
            single = soft_target_loss(student, teacher, 2.0, reduction="none")
            torch.testing.assert_close(maker.grad, single.detach() / 9)


# several teachers

TEACHERS = numbers(5, 9, 3, 5)


def ca(teachers=TEACHERS, targets=Y):
    return confidence_aware_weights(torch.tensor(teachers), torch.tensor(targets))


def test_confidence_aware_values():
    likeness = np.stack([np.exp(cross_entropy(TEACHERS[:, k], Y)) for k in range(3)], 1)
    expected = (1 - likeness / likeness.sum(1, keepdims=True)) / 2
    np.testing.assert_allclose(ca().numpy(), expected, atol=1e-12)


def test_confidence_aware_properties():
    weights = ca()
    torch.testing.assert_close(weights.sum(1), torch.ones(9, dtype=torch.float64))
    assert (weights >= 0).all() and weights.std() > 0.01
    torch.testing.assert_close(ca(TEACHERS[:, [2, 0, 1]]), weights[:, [2, 0, 1]])
    torch.testing.assert_close(
        ca(np.repeat(TEACHERS[:, :1], 3, 1)), torch.full_like(weights, 1 / 3)
    )
    assert torch.equal(ca(TEACHERS[:, :1]), torch.ones(9, 1, dtype=torch.float64))
    hidden = ca(targets=np.where(np.arange(9) < 4, -1, Y))
    assert torch.equal(hidden[4:], weights[4:]) and (hidden[:4] == 1 / 3).all()
    extreme = ca(1e4 * TEACHERS)
    assert torch.isfinite(extreme).all()
    teachers = torch.tensor(TEACHERS, requires_grad=True)
    assert not confidence_aware_weights(teachers, torch.tensor(Y)).requires_grad


def test_a_far_worse_teacher_is_left_out():
    teachers = torch.zeros(1, 3, 4)
    teachers[0, 1, 2] = 50.0
    weights = confidence_aware_weights(teachers, torch.tensor([0]))
    torch.testing.assert_close(weights, torch.tensor([[0.5, 0.0, 0.5]]))


def test_confidence_aware_errors():
    with pytest.raises(ValueError, match=r"^teachers: shape \[9, 5\], expected logits \[B, N, C\]"):
        ca(T)
    with pytest.raises(ValueError, match=r"^targets: values"):
        ca(targets=Y + 3)
    with pytest.raises(ValueError, match=r"^teacher: NaN"):
        ca(TEACHERS * np.nan)


# the learned gate's own objective


def test_mixture_loss_value_and_gradient():
    scores, log_p = numbers(6, 9, 3), -np.abs(numbers(7, 9, 3))
    g, p = probabilities(scores), np.exp(log_p)
    mixture = (g * p).sum(1)
    z = torch.tensor(scores, requires_grad=True)
    values = mixture_loss(z, torch.tensor(log_p, requires_grad=True), reduction="none")
    np.testing.assert_allclose(values.detach().numpy(), -np.log(mixture), atol=1e-12)
    mean = mixture_loss(z, torch.tensor(log_p))
    np.testing.assert_allclose(mean.item(), -np.log(mixture).mean())
    mean.backward()
    posterior = g * p / mixture[:, None]  # how much of the likelihood each expert explains
    np.testing.assert_allclose(z.grad.numpy(), (g - posterior) / 9, atol=1e-12)


def test_mixture_loss_keeps_out_of_trouble():
    scores = torch.tensor([[1e4, -1e4], [0.0, 0.0]], requires_grad=True)
    log_p = torch.tensor([[-1e4, 0.0], [-1e4, -1e4]], requires_grad=True)
    value = mixture_loss(scores, log_p)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(scores.grad).all() and log_p.grad is None
    with weighted_samples(torch.zeros(2)) as given:  # it is no comparison with a teacher
        assert mixture_loss(scores, log_p) > 0 and given.used == 0
    with pytest.raises(ValueError, match="reduction"):
        mixture_loss(scores, log_p, reduction="sum")
    with pytest.raises(ValueError, match="shape"):
        mixture_loss(scores, log_p[:, :1])


def test_gate_counts():
    gate = torch.tensor([0.0, 0.25, 1.0, 0.5])
    teacher = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    targets = torch.tensor([1, 0, 0, -1])
    got = gate_counts(gate, teacher, targets)
    assert {name: float(value) for name, value in got.items()} == {
        "gate_open": 1.75 / 4,
        "gate_closed": 1.75 / 4,
        "teacher_wrong": 2 / 4,
        "gate_caught": 1 / 4,
    }


# over channels


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (4, 5, 3), (4, 3)])
def test_channel_gate_value_and_gradient(shape):
    s, t, gate = numbers(8, *shape), numbers(9, *shape), np.array([0.0, 1.0, 0.3])
    by_dim = gate.reshape(3, 1, 1) if len(shape) == 4 else gate
    count = math.prod(shape[1:])
    student = torch.tensor(s, requires_grad=True)
    given = (student, torch.tensor(t), torch.tensor(gate))
    values = channel_gated_hint_loss(*given, reduction="none")
    expected = (by_dim * (s - t) ** 2).reshape(4, -1).sum(1) / count
    np.testing.assert_allclose(values.detach().numpy(), expected)
    channel_gated_hint_loss(*given).backward()
    np.testing.assert_allclose(student.grad.numpy(), 2 * by_dim * (s - t) / count / 4)
    ones = torch.ones(3, dtype=torch.float64)
    assert torch.equal(channel_gated_hint_loss(*given[:2], ones), hint_loss(*given[:2]))
    torch.testing.assert_close(
        channel_gated_hint_loss(*given[:2], 0.3 * ones), 0.3 * hint_loss(*given[:2])
    )


def test_a_closed_channel_is_shut_whatever_is_in_it():
    student = torch.tensor(numbers(8, 4, 3, 2, 2))
    student[:, 1] = torch.nan
    student.requires_grad_()
    gate = torch.tensor([1.0, 0.0, 1.0])
    value = channel_gated_hint_loss(student, torch.zeros_like(student), gate)
    value.backward()
    assert torch.isfinite(value) and (student.grad[:, 1] == 0).all()
    assert (student.grad[:, [0, 2]] != 0).all()
    with weighted_samples(torch.ones(4)) as given:  # it can be gated over samples too
        channel_gated_hint_loss(student, torch.zeros_like(student), gate)
        assert given.used == 1
    teacher = torch.zeros_like(student)
    with pytest.raises(ValueError, match=r"^gate: shape \[2\], expected \[3\]"):
        channel_gated_hint_loss(student, teacher, gate[:2])
    with pytest.raises(ValueError, match=r"^gate: values outside"):
        channel_gated_hint_loss(student, teacher, 2 * gate)
