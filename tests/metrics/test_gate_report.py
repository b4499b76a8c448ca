"""What a gate did, counted by hand and with scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_score, recall_score

from kdlab.metrics import GateReport, gate_report, gate_report_of

RNG = np.random.default_rng(0)
LOGITS, TARGETS = RNG.standard_normal((200, 3)), RNG.integers(0, 3, 200)
WRONG = LOGITS.argmax(1) != TARGETS


@pytest.mark.parametrize("form", [np.asarray, torch.as_tensor])
def test_a_hard_gate_against_scikit_learn(form):
    gate = (RNG.random(200) < np.where(WRONG, 0.3, 0.8)).astype(np.float32)
    report = gate_report(form(gate), form(LOGITS), form(TARGETS))
    assert report.open == pytest.approx(gate.mean())
    assert report.mistakes == pytest.approx(WRONG.mean())
    assert report.precision == pytest.approx(precision_score(WRONG, gate == 0))
    assert report.recall == pytest.approx(recall_score(WRONG, gate == 0))


def test_a_soft_gate_counts_in_parts():
    gate = RNG.random(200)
    report = gate_report(gate, LOGITS, TARGETS)
    assert report.precision == pytest.approx(((1 - gate) * WRONG).sum() / (1 - gate).sum())
    assert report.recall == pytest.approx(((1 - gate) * WRONG).sum() / WRONG.sum())


def test_a_gate_without_sense():
    report = gate_report(np.full(200, 0.3), LOGITS, TARGETS)
    assert report.precision == pytest.approx(report.mistakes)
    assert report.recall == pytest.approx(1 - report.open)


def test_nothing_closed_and_nothing_wrong():
    report = gate_report(np.ones(200), LOGITS, TARGETS)
    assert report.open == 1 and math.isnan(report.precision) and report.recall == 0
    report = gate_report(np.zeros(200), LOGITS, LOGITS.argmax(1))
    assert report.mistakes == 0 and math.isnan(report.recall) and report.precision == 0


def test_unlabelled_samples_are_only_open_or_not():
    gate = RNG.random(200)
    hidden = np.where(np.arange(200) < 50, -1, TARGETS)
    report, rest = (
        gate_report(gate, LOGITS, hidden),
        gate_report(gate[50:], LOGITS[50:], TARGETS[50:]),
    )
    assert report.open == pytest.approx(gate.mean())
    assert report.precision == pytest.approx(rest.precision)
    assert report.recall == pytest.approx(rest.recall)


def test_from_a_row():
    row = {"gate_open": 0.7, "gate_closed": 0.3, "teacher_wrong": 0.2, "gate_caught": 0.15}
    got = gate_report_of(row | {"loss": 1.0})
    assert got == GateReport(0.7, 0.2, pytest.approx(0.5), pytest.approx(0.75))
    with pytest.raises(ValueError, match=r"^row: no gate_open among loss"):
        gate_report_of({"loss": 1.0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate": np.ones((200, 1))}, r"^gate: shape \[200, 1\], expected \[N\]"),
        ({"gate": np.ones(0)}, r"^gate: shape \[0\]"),
        ({"gate": np.full(200, 1.2)}, r"^gate: weights outside"),
        ({"gate": np.full(200, np.nan)}, r"^gate: weights outside"),
        ({"teacher_logits": LOGITS[:9]}, r"^teacher_logits: shape \[9, 3\], expected \[200, C\]"),
        ({"targets": TARGETS[:9]}, r"^targets: shape \[9\], expected \[200\]"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        gate_report(**{"gate": np.ones(200), "teacher_logits": LOGITS, "targets": TARGETS} | change)
