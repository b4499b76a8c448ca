"""The exercises of lesson 01: right answers pass however they are written, mistakes are named."""

import pytest
import torch
import torch.nn.functional as F

from kdlab.exercises import find


def verdict(name, answer):
    return find(name).judge(answer)


def kl(student, teacher, *, of_student, of_teacher, reduction="batchmean"):
    log_q, p = F.log_softmax(student / of_student, -1), F.softmax(teacher / of_teacher, -1)
    terms = F.kl_div(log_q, p, reduction="none")
    return {"batchmean": terms.sum() / len(terms), "mean": terms.mean(), "sum": terms.sum()}[
        reduction
    ]


def cross_entropy(student, teacher, t):
    return F.cross_entropy(student / t, (teacher / t).softmax(-1))


def mean_of(table, column):
    return table.groupby("temperature")[column].mean()


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("soften", lambda z, t: (z / t).exp() / (z / t).exp().sum(-1, keepdim=True)),
        ("soft target loss", lambda s, t, T: T**2 * kl(s, t, of_student=T, of_teacher=T)),
        ("two to one", 4 / torch.tensor(2.0).log()),
        ("choose a temperature", lambda table: mean_of(table, "val_accuracy").idxmax()),
        (
            "choose a temperature",
            lambda table: (
                table.pivot_table(index="seed", columns="temperature")["val_accuracy"]
                .mean()
                .sort_values()
                .index[-1]
            ),
        ),
    ],
)
def test_right(name, answer):
    assert verdict(name, answer).status == "right"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda z, t: (z * t).softmax(-1), "hotter must be flatter"),
        (lambda z, t: z.softmax(-1) / t, "divide the logits"),
        (lambda z, t: (z / t).softmax(0), "which dim are the classes"),
        (lambda z, t: (z / t).log_softmax(-1), "these are logarithms"),
        (lambda z, t: z / t, "the softmax is still to come"),
    ],
)
def test_soften_knows_usual_mistakes(answer, message):
    assert verdict("soften", answer).status == "wrong"
    assert message in verdict("soften", answer).message


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda s, t, T: kl(s, t, of_student=T, of_teacher=T), "the T² is missing: without"),
        (lambda s, t, T: T * kl(s, t, of_student=T, of_teacher=T), "must be T², not T"),
        (
            lambda s, t, T: T**2 * kl(s, t, of_student=T, of_teacher=T, reduction="mean"),
            "it is C times too small",
        ),
        (
            lambda s, t, T: kl(s, t, of_student=T, of_teacher=T, reduction="mean"),
            "two things: the T² is missing, and it is C times too small",
        ),
        (
            lambda s, t, T: T**2 * kl(s, t, of_student=T, of_teacher=T, reduction="sum"),
            "it is B times too large",
        ),
        (lambda s, t, T: T**2 * kl(t, s, of_student=T, of_teacher=T), "roles are swapped"),
        (lambda s, t, T: T**2 * kl(s, t, of_student=1, of_teacher=T), "only the teacher"),
        (lambda s, t, T: T**2 * kl(s, t, of_student=T, of_teacher=1), "only the student"),
        (lambda s, t, T: kl(s, t, of_student=1, of_teacher=T), "only the teacher"),
        (lambda s, t, T: kl(s, t, of_student=T, of_teacher=1), "only the student"),
        (lambda s, t, T: T**2 * cross_entropy(s, t, T), "that is the cross-entropy:"),
        (cross_entropy, "that is the cross-entropy, without T²"),
    ],
)
def test_the_loss_knows_usual_mistakes(answer, message):
    assert verdict("soft target loss", answer).status == "wrong"
    assert message in verdict("soft target loss", answer).message


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda table: mean_of(table, "accuracy").idxmax(), "cheating"),
        (lambda table: table.loc[table.accuracy.idxmax(), "temperature"], "cheating"),
        (lambda table: table.loc[table.val_accuracy.idxmax(), "temperature"], "lucky"),
        (lambda table: mean_of(table, "val_accuracy").argmax(), "a position"),
        (lambda table: mean_of(table, "val_accuracy").to_numpy().argmax(), "a position"),
        (lambda table: mean_of(table, "accuracy").argmax(), "a position"),
        (lambda table: table.val_accuracy.idxmax(), "a position"),
        (lambda table: table.accuracy.idxmax(), "a position"),
        (lambda table: mean_of(table, "val_accuracy").max(), "an accuracy"),
        (lambda table: table.val_accuracy.max(), "an accuracy"),
        (lambda table: 4.5, "no temperature of the table"),
        (lambda table: mean_of(table, "val_accuracy"), "expected one temperature, got Series"),
        (8.0, "expected a function"),
    ],
)
def test_the_choice_knows_usual_mistakes(answer, message):
    assert verdict("choose a temperature", answer).status == "wrong"
    assert message in verdict("choose a temperature", answer).message
