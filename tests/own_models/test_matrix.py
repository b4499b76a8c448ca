"""Anybody's model in every function: right, or refused by name before any work."""

import re

import pytest
import torch
import verdicts
from matrix import PAGE, faults, line, stored, table
from torch import nn
from verdicts import Wrong, as_student, judge, row
from zoo import ZOO

from kdlab.distillers import Labels
from kdlab.training import fit

TEXT = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""


@pytest.mark.parametrize("who", ZOO)
def test_no_cell_is_a_raw_error_or_a_wrong_result(who):
    cells = row(who)
    print(line(who, cells))
    assert faults(cells) == []
    assert line(who, cells) in TEXT, "run `python tests/own_models/matrix.py`, commit the page"


def test_the_page_has_these_models_and_their_sums():
    assert list(stored(TEXT)) == list(ZOO)
    assert f"<!-- matrix -->\n{table(stored(TEXT))}\n<!-- /matrix -->" in TEXT
    assert re.search(r"cells: [\d,]+ right, [\d,]+ refused\.", TEXT)


def say(message, kind=ValueError):
    raise kind(message)


def refuse_too_late(model):
    model.train()
    say("model: a Linear came, expected another; give another")


@pytest.mark.parametrize(
    ("action", "verdict"),
    [
        (lambda model: model(torch.zeros(1, 2)), "right"),
        (lambda model: say("model: a Linear came, expected another; give another"), "refused"),
        (refuse_too_late, "wrong"),
        (lambda model: say("other logits", Wrong), "wrong"),
        (lambda model: model(torch.zeros(1, 3)), "raw"),
        (lambda model: int("x"), "raw"),  # a ValueError, but not one of ours
    ],
)
def test_the_judge_can_tell(action, verdict):
    model = nn.Linear(2, 2).eval()
    assert judge(lambda: action(model), model).verdict == verdict


def moves_the_teacher(student, teacher):
    teacher.head.bias.data += 1


def undoes(student, teacher):
    student.load_state_dict(ZOO["frozen backbone"].build().state_dict())


def moves_a_frozen_norm(student, teacher):
    student.stage1[1].running_mean += 1


def goes_a_little_further(student, teacher):
    student.head.weight.data *= 1.05


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (moves_the_teacher, "the teacher changed"),
        (undoes, "nothing was learned"),
        (moves_a_frozen_norm, "a frozen part moved"),
        (goes_a_little_further, "a plain loop ends elsewhere"),
    ],
)
def test_a_broken_fit_is_noticed(fault, said, monkeypatch):
    def broken(student, data, distiller, *, teacher=None, **options):
        run = fit(student, data, distiller, teacher=teacher, **options)
        if teacher is not None:
            fault(student, teacher)
        return run

    monkeypatch.setattr(verdicts, "fit", broken)
    cell = as_student("soft_targets", "frozen backbone")
    assert cell.verdict == "wrong" and said in cell.said


def test_a_method_that_teaches_nothing_is_noticed(monkeypatch):
    def broken(student, data, distiller, *, teacher=None, **options):
        return fit(student, data, Labels(), **options)

    monkeypatch.setattr(verdicts, "fit", broken)
    verdicts.on_labels.cache_clear()
    assert "taught nothing" in as_student("hints", "no norm").said
