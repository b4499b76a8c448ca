"""What cannot be right raises a ValueError: the argument, what came, what was expected."""

import re
import threading

import pytest
import torch
from cases import batch

from kdlab.losses import (
    batch_relation_loss,
    class_relation_loss,
    decoupled_loss,
    dist_loss,
    hard_label_loss,
    hard_target_loss,
    logit_matching_loss,
    map_classes,
    soft_target_loss,
    standardize_logits,
    ttm_loss,
    unchecked_values,
)

S, TEACHER, Y = batch(8, 12, dtype=torch.float32)
NAN = torch.where(torch.arange(12) == 3, torch.nan, TEACHER)
TEACHER_LOSSES = {
    "soft_target": soft_target_loss,
    "decoupled": lambda s, t, *a, **k: decoupled_loss(s, t, Y[: len(s)], *a, **k),
    "dist": dist_loss,
    "ttm": ttm_loss,
    "jensen_shannon": lambda *a, **k: soft_target_loss(*a, **k, divergence="jensen-shannon"),
    "batch_relation": batch_relation_loss,
    "class_relation": class_relation_loss,
    "logit_matching": logit_matching_loss,
    "hard_target": hard_target_loss,
}
UNTEMPERED = (logit_matching_loss, hard_target_loss)


def says(*parts):
    """A message that starts with the argument's name and holds all parts in this order."""
    return pytest.raises(ValueError, match="^" + ".*".join(map(re.escape, parts)))


@pytest.mark.parametrize("loss", TEACHER_LOSSES.values(), ids=TEACHER_LOSSES)
class TestEveryLossWithATeacher:
    def test_other_classes(self, loss):
        with says("teacher: shape [8, 10], expected student's [8, 12]", "the same classes?"):
            loss(S, TEACHER[:, :10])

    def test_other_batch(self, loss):
        with says("teacher: shape [7, 12], expected student's [8, 12]", "the same batch?"):
            loss(S, TEACHER[:7])

    def test_broadcastable_teacher(self, loss):
        with says("teacher: shape [1, 12], expected student's [8, 12]"):
            loss(S, TEACHER[:1])

    @pytest.mark.parametrize("student", [S[0], S[None, None]], ids=["1", "4"])
    def test_dimensions(self, loss, student):
        with says("student: shape", "expected logits [B, C]"):
            loss(student, student)

    def test_empty_batch(self, loss):
        with says("student: shape [0, 12]", "at least one sample", "empty batch"):
            loss(S[:0], TEACHER[:0])

    def test_whole_numbers(self, loss):
        with says("student: dtype torch.int64", "floating-point"):
            loss(S.long(), TEACHER)
        with says("teacher: dtype torch.int64", "floating-point"):
            loss(S, TEACHER.long())

    @pytest.mark.parametrize("bad", [0, 0.0, -1.0, float("nan"), float("inf"), None, "4"])
    def test_temperature(self, loss, bad):
        if loss in UNTEMPERED:
            pytest.skip("it has none")
        with says(f"temperature: {bad!r}", "finite number above 0"):
            loss(S, TEACHER, bad)

    def test_reduction(self, loss):
        with says("reduction: 'sum'", '"mean" or "none"'):
            loss(S, TEACHER, reduction="sum")

    @pytest.mark.parametrize("junk", [float("nan"), float("inf"), -float("inf")])
    def test_teacher_that_is_not_finite(self, loss, junk):
        teacher = TEACHER.clone()
        teacher[5, 3] = junk
        with says("teacher: NaN or infinite logits", "weights"):
            loss(S, teacher)

    def test_another_device(self, loss):
        with says("teacher: on meta, expected student's cpu", ".to(device)"):
            loss(S, TEACHER.to("meta"))

    def test_value_checks_can_be_turned_off_and_shape_checks_cannot(self, loss):
        with unchecked_values():
            assert loss(S, NAN).isnan() or loss is hard_target_loss  # NaN is the largest, too
            with says("teacher: shape"):
                loss(S, TEACHER[:, :10])
        with says("teacher: NaN"):
            loss(S, NAN)

    def test_value_checks_are_off_under_torch_compile(self, loss):
        compiled = torch.compile(loss, backend="eager", fullgraph=True)(S, NAN)
        assert compiled.isnan() or loss is hard_target_loss


def test_only_these_losses_take_tokens():
    tokens = torch.zeros(2, 3, 4)
    soft_target_loss(tokens, tokens)
    for loss in (ttm_loss, dist_loss, batch_relation_loss, *UNTEMPERED):
        with says("student: shape [2, 3, 4], expected logits [B, C]"):
            loss(tokens, tokens)


@pytest.mark.parametrize("loss", [soft_target_loss, dist_loss])
def test_masks(loss):
    with says("mask: dtype torch.float32, expected torch.bool", "True = takes part"):
        loss(S, TEACHER, mask=torch.ones(8))
    with says("mask: shape [7], expected [8]", "[8, 12]"):
        loss(S, TEACHER, mask=torch.ones(7, dtype=torch.bool))
    with says("mask: shape [8, 12], expected [8]"):
        loss(S, TEACHER, mask=torch.ones(8, 12, dtype=torch.bool))


def test_token_masks():
    tokens = torch.zeros(2, 3, 4)
    with says("mask: shape [2, 4], expected [2] or [2, 3]", "[2, 3, 4]"):
        soft_target_loss(tokens, tokens, mask=torch.ones(2, 4, dtype=torch.bool))


def test_the_teacher_is_checked_where_it_takes_part_and_nowhere_else():
    mask = torch.arange(8) != 5
    teacher = TEACHER.clone()
    teacher[5] = float("nan")
    assert soft_target_loss(S, teacher, mask=mask).isfinite()
    with says("teacher: NaN"):
        soft_target_loss(S, teacher, mask=~mask)


def test_standardizing_does_not_hide_a_broken_teacher():
    assert standardize_logits(NAN).isnan().all()
    with says("teacher: NaN"):
        soft_target_loss(standardize_logits(S), standardize_logits(NAN))
    infinite = torch.where(torch.arange(12) == 3, torch.inf, TEACHER)
    with says("teacher: NaN"):
        soft_target_loss(standardize_logits(S), standardize_logits(infinite))


def test_standardizing():
    with says("logits: shape [], expected [..., C]"):
        standardize_logits(torch.tensor(1.0))
    with says("logits: shape [3, 0], expected [..., C]"):
        standardize_logits(torch.zeros(3, 0))
    with says("logits: dtype torch.int64", "floating-point"):
        standardize_logits(torch.ones(3, 2, dtype=torch.int64))
    with says("eps: -1", "at least 0"):
        standardize_logits(S, eps=-1)


HARD = {
    "hard_label": lambda y: hard_label_loss(S, y),
    "decoupled": lambda y: decoupled_loss(S, TEACHER, y),
}


@pytest.mark.parametrize("loss", HARD.values(), ids=HARD)
def test_targets(loss):
    with says("targets: dtype torch.float32, expected torch.int64"):
        loss(Y.float())
    with says("targets: shape [7], expected [8]"):
        loss(Y[:7])
    with says("targets: shape [8, 1], expected [8]"):
        loss(Y[:, None])
    for value in (12, -2, -100):
        wrong = Y.clone()
        wrong[3] = value
        with says("targets: values from", str(value) if value < 0 else "to 12", "expected 0 to 11"):
            loss(wrong)


def test_decoupled_loss_needs_labels_and_two_classes():
    unlabelled = Y.clone()
    unlabelled[3] = -1
    with says("targets: -1 (unlabelled) among them", "needs labels", "soft_target_loss"):
        decoupled_loss(S, TEACHER, unlabelled)
    with says("student: shape [8, 1]", "at least two classes"):
        decoupled_loss(S[:, :1], TEACHER[:, :1], torch.zeros(8, dtype=torch.int64))


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf"), None])
def test_weights(bad):
    for name in ("alpha", "beta"):
        with says(f"{name}: {bad!r}", "at least 0"):
            decoupled_loss(S, TEACHER, Y, **{name: bad})
    for name in ("beta", "gamma"):
        with says(f"{name}: {bad!r}", "at least 0"):
            dist_loss(S, TEACHER, **{name: bad})


def test_hard_label_options():
    for bad in (-0.1, 1.1, float("nan"), None):
        with says(f"label_smoothing: {bad!r}", "at least 0", "at most 1"):
            hard_label_loss(S, Y, bad)
    with says("student: shape [0, 12]"):
        hard_label_loss(S[:0], Y[:0])
    with says("reduction: 'sum'"):
        hard_label_loss(S, Y, reduction="sum")
    with says("student: shape [2, 3, 4], expected logits [B, C]"):
        hard_label_loss(torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.int64))


def test_unchecked_values_nests_ends_with_an_error_and_stays_in_its_thread():
    with unchecked_values():
        with unchecked_values():
            pass
        assert soft_target_loss(S, NAN).isnan()
        seen = []

        def elsewhere():
            try:
                soft_target_loss(S, NAN)
            except ValueError as error:
                seen.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert len(seen) == 1
    with pytest.raises(KeyError), unchecked_values():
        raise KeyError
    with says("teacher: NaN"):
        soft_target_loss(S, NAN)


@pytest.mark.parametrize("bad", ["backward", "js", None, 1])
def test_an_unknown_divergence_is_refused_by_name(bad):
    with says(f"divergence: got {bad!r}, expected one of 'forward', 'reverse', 'jensen-shannon'"):
        soft_target_loss(S, TEACHER, divergence=bad)


@pytest.mark.parametrize(
    ("classes", "parts"),
    [
        ([], ("got none", "each class of the student")),
        ([0, ()], ("got () for the student's class 1", "leave no class")),
        ([0, -1], ("got -1 for the student's class 1", "from 0 on")),
        ([0, "cat"], ("got 'cat' for the student's class 1",)),
        ([0, 1.5], ("got 1.5 for the student's class 1",)),
        ([0, True], ("got True for the student's class 1",)),
        ([0, [1, [2]]], ("got [1, [2]] for the student's class 1",)),
        ([0, (1, 0)], ("got the teacher's class 0 more than once", "count twice")),
        ([3, 12], ("got 12, expected classes of the teacher from 0 to 11",)),
        ({1: 0, 2: 1}, ("got the keys [1, 2], expected the student's classes 0 to 1",)),
    ],
)
def test_a_map_of_classes_that_is_none_is_refused_by_name(classes, parts):
    with says("classes: ", *parts):
        map_classes(TEACHER, classes)


def test_only_logits_can_be_mapped():
    with says("logits: dtype torch.int64"):
        map_classes(TEACHER.long(), [0, 1])
    with says("logits: shape [0, 12]"):
        map_classes(TEACHER[:0], [0, 1])
