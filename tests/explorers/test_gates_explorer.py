"""The explorer of gates: what each control reaches, and what its numbers mean."""

import time

import numpy as np
import pytest
import torch
from torch import nn

from kdlab.datasets import Data, Split, glyphs
from kdlab.distillers.gated_teachers import FixedShares, TeachersGate
from kdlab.explorers import Choosing, GatesExplorer
from kdlab.explorers import gates as module
from kdlab.models.committee import Committee

CLASSES = ("8", "B", "E")
MEAN, STD = 0.5, 0.25
NAMES = ("first", "second")
ROWS = [{"epoch": e, "teacher_0": 0.5 - 0.1 * e, "teacher_1": 0.5 + 0.1 * e} for e in range(4)]


class Says(nn.Module):
    """Answers one class whatever it sees, and remembers what it saw."""

    def __init__(self, label: int, logit: float) -> None:
        super().__init__()
        self.answer = torch.zeros(len(CLASSES)).index_fill(0, torch.tensor([label]), logit)

    def forward(self, images):
        self.seen = images
        return self.answer.expand(len(images), -1)


class Ink(TeachersGate):
    """Follows the second teacher the more an image varies: larger glyphs have more ink."""

    def forward(self, members, inputs, targets):
        self.targets = targets
        share = (8 * (inputs.std(dim=(1, 2, 3)) - 0.6)).sigmoid()
        return torch.stack([1 - share, share], dim=1)


def some_data(classes=CLASSES):
    x = torch.zeros(3, 1, 28, 28)
    part = Split(x, torch.arange(3))
    return Data("own", part, part, part, classes, (MEAN,), (STD,), {"name": "own"})


def committee():
    return Committee([Says(0, 2.0), Says(1, 3.0)]).eval()


def choosing(gate=None, rows=ROWS, names=NAMES):
    return Choosing(names, committee(), gate or Ink(), rows)


@pytest.fixture
def shown():
    gates = {"ink": choosing(), "deaf": choosing(FixedShares((0.2, 0.8)), ROWS[:1])}
    return GatesExplorer(gates, some_data(), sizes=(0.4, 1.4), goal="Find it.")


def test_the_picture_is_the_glyph_that_the_controls_ask_for(shown):
    result = shown.set(glyph="B", size=0.7, noise=0.1, draw=3)
    wanted, _, facts = glyphs.sample(1, seed=3, classes=["B"], scale=0.7, noise=0.1)
    assert np.array_equal(result.picture, wanted[0, 0].numpy())
    assert result.label == 1 and (result.size, result.noise) == (0.7, 0.1)
    assert float(facts["scale"]) == pytest.approx(0.7)


def test_teachers_and_gate_see_it_as_they_do_in_training(shown):
    shown.set(gate="ink", glyph="E", size=1.0, noise=0.0, draw=1)
    teacher, gate = shown.gates["ink"].teacher, shown.gates["ink"].gate
    wanted = glyphs.sample(1, seed=1, classes=["E"], scale=1.0, noise=0.0)[0]
    for member in teacher.members:
        assert torch.allclose(member.seen[:1], (wanted - MEAN) / STD)
    assert (gate.targets == 2).all()


def test_weights_and_answers_are_those_of_gate_and_teachers(shown):
    result = shown.set(gate="ink", glyph="8", size=1.1, noise=0.0, draw=0)
    image = (torch.from_numpy(result.picture) - MEAN) / STD
    second = float((8 * (image.std() - 0.6)).sigmoid())
    assert result.weights == pytest.approx([1 - second, second], abs=1e-4)
    p = torch.stack([m.answer for m in shown.gates["ink"].teacher.members]).softmax(1).numpy()
    assert result.answers[:2] == pytest.approx(p, abs=1e-5)
    assert result.answers[2] == pytest.approx((1 - second) * p[0] + second * p[1], abs=1e-4)
    assert list(result.said) == [0, 1, result.answers[2].argmax()]


def test_the_curve_has_the_weights_at_each_size(shown):
    result = shown.set(gate="ink", glyph="8", size=0.5, noise=0.0, draw=0)
    assert result.sizes[0] == pytest.approx(0.4) and result.sizes[-1] == pytest.approx(1.4)
    assert len(result.curve) == len(result.sizes) == module.SIZES
    for place in (0, 6, 12):
        there = shown.set(size=round(float(result.sizes[place]), 3))
        assert result.curve[place] == pytest.approx(there.weights, abs=1e-4)


def test_a_gate_of_the_size_moves_and_one_that_is_deaf_does_not(shown):
    shown.set(glyph="E", noise=0.0, draw=0)
    ends = [shown.set(gate="ink", size=at).weights[1] for at in (0.4, 1.4)]
    assert ends[1] - ends[0] > 0.3
    ends = [shown.set(gate="deaf", size=at).weights for at in (0.4, 1.4)]
    assert ends[0] == pytest.approx([0.2, 0.8]) and np.array_equal(*ends)


def test_noise_and_another_draw_reach_the_glyph(shown):
    base = shown.set(glyph="8", size=0.9, noise=0.0, draw=0).picture
    for change in ({"noise": 0.3}, {"draw": 1}, {"glyph": "B"}, {"size": 0.5}):
        moved = shown.set(**{"glyph": "8", "size": 0.9, "noise": 0.0, "draw": 0} | change)
        assert np.abs(moved.picture - base).max() > 0.05, change


def test_the_past_is_what_the_run_measured(shown):
    shares = shown.set(gate="ink").shares
    assert shares == pytest.approx(np.array([[0.5 - 0.1 * e, 0.5 + 0.1 * e] for e in range(4)]))
    lines = shown._panels["history"].lines
    assert list(lines[1].get_xdata()) == [1, 2, 3, 4]
    assert lines[1].get_ydata() == pytest.approx(shares[:, 1])
    assert len(shown.set(gate="deaf").shares) == 1


def test_what_is_drawn_is_what_was_computed(shown):
    result = shown.set(gate="ink", glyph="B", size=0.8, noise=0.0)
    bars = [bar.get_width() for bar in shown._panels["weights"].patches]
    assert bars == pytest.approx(list(result.weights))
    parts = shown._panels["answers"].patches
    assert sum(part.get_width() for part in parts) == pytest.approx(len(NAMES) + 1)
    orange = [
        p for p in parts if p.get_facecolor()[:3] == pytest.approx((0.902, 0.624, 0.0), abs=0.01)
    ]
    assert [p.get_width() for p in orange] == pytest.approx(list(result.answers[:, 1]), abs=1e-6)
    marker = shown._panels["sizes"].lines[-1].get_xdata()
    assert marker[0] == pytest.approx(0.8)
    assert shown._panels["sizes"].lines[1].get_ydata() == pytest.approx(result.curve[:, 1])


def test_the_words_name_who_is_trusted_and_who_is_right(shown):
    shown.set(gate="deaf", glyph="B", size=0.8, noise=0.1)
    told = repr(shown)
    assert told == (
        "<GatesExplorer deaf | B of size 0.80, noise 0.10 | trusts second, about 80% | "
        "right: second, together>"
    )
    shown.set(glyph="E")
    assert "right: nobody" in repr(shown)


@pytest.mark.parametrize(
    ("shares", "word"), [((0.9, 0.1), "trusts first"), ((0.4, 0.6), "leans to second"),
                         ((0.5, 0.5), "wavers: first")],
)  # fmt: skip
def test_a_weight_has_its_word(shares, word):
    shown = GatesExplorer({"fixed": choosing(FixedShares(shares))}, some_data())
    assert word in repr(shown)


def test_the_same_controls_give_the_same_frame(shown):
    shown.set(gate="ink", glyph="8", size=0.9, noise=0.2, draw=4)
    picture, told = shown.picture.value, repr(shown)
    shown.set(gate="deaf", size=0.4, noise=0.0)
    shown.set(gate="ink", size=0.9, noise=0.2)
    assert shown.picture.value == picture and repr(shown) == told


def test_it_asks_on_one_thread_and_gives_the_others_back(shown):
    torch.set_num_threads(2)
    shown.set(size=0.6)
    given_back = torch.get_num_threads()
    torch.set_num_threads(1)
    assert given_back == 2


def test_a_frame_is_quick_enough(shown):
    shown.set(size=0.6)
    before = time.process_time()
    for at in (0.7, 0.8, 0.9):
        shown.set(size=at)
    assert (time.process_time() - before) / 3 < 1.0  # 0.1 s on a free core; machines are busy


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"gates": {}}, "gates is empty"),
        ({"gates": {"a": choosing(names=("one",))}}, "has 1 entries"),
        ({"gates": {"a": choosing(rows=[{"loss": 1.0}])}}, "no row with teacher_0"),
        ({"data": some_data(("8", "B", "cat"))}, "classes among"),
        ({"sizes": (1.4, 0.4)}, "low < high"),
        ({"options": {"difficulty": 9}}, "difficulty"),
    ],
)
def test_what_does_not_fit_is_told(arguments, complaint):
    given = {"gates": {"a": choosing()}, "data": some_data()} | arguments
    with pytest.raises(ValueError, match=complaint):
        GatesExplorer(**given)


def test_goal_and_labelled_controls(shown):
    assert "Find it." in shown.children[0].value
    assert list(shown.controls) == ["gate", "glyph", "size", "noise", "draw"]
