"""The CKA explorer: the row that was chosen, the stage it resembles most, what has changed."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from kdlab import plots
from kdlab.explorers import CKAExplorer

STUDENT, TEACHER = ["stage1", "stage2"], ["stem", "stage1", "stage2"]


def table(*rows):
    return pd.DataFrame(rows, index=STUDENT, columns=TEACHER)


MATRICES = {
    "before training": table([0.50, 0.30, -0.02], [0.40, 0.35, 0.10]),
    "labels": table([0.55, 0.60, 0.20], [0.30, 0.45, 0.40]),
    "hints": table([0.40, 0.70, 0.30], [0.20, 0.50, 0.90]),
}


@pytest.fixture
def explorer():
    return CKAExplorer(MATRICES, goal="Which moved?")


def test_the_row_its_best_stage_and_the_change_are_looked_up(explorer):
    result = explorer.set(student="hints", stage="stage2")
    assert list(result.values) == [0.20, 0.50, 0.90]
    assert (result.best, result.value) == ("stage2", 0.90)
    assert result.change == pytest.approx(0.80)  # the same pair before: 0.10
    assert list(result.reference) == [0.40, 0.35, 0.10]


def test_readout(explorer):
    assert repr(explorer) == (
        "<CKAExplorer before training | stage1 resembles the teacher's stem most: CKA 0.50>"
    )
    explorer.set(student="labels", stage="stage2")
    assert repr(explorer) == (
        "<CKAExplorer labels | stage2 resembles the teacher's stage1 most: CKA 0.45 | "
        "+0.10 against before training>"
    )


def test_a_loss_of_likeness_has_a_minus_and_nothing_has_a_negative_zero():
    less = {"first": table([0.9, 0, 0], [0.9, 0, 0]), "then": table([0.7, 0, 0], [0.899, 0, 0])}
    explorer = CKAExplorer(less)
    explorer.set(student="then")
    assert "-0.20 against first" in repr(explorer)
    explorer.set(stage="stage2")
    assert "+0.00 against first" in repr(explorer)


def test_the_heat_map_frames_the_row_and_its_best_cell(explorer):
    explorer.set(student="hints", stage="stage2")
    left, right = explorer.figure.axes
    np.testing.assert_array_equal(left.images[0].get_array(), MATRICES["hints"])
    assert left.images[0].get_clim() == (0, 1)
    frames = [patch.get_bbox().bounds for patch in left.patches]
    assert frames == [(-0.5, 0.5, 3, 1), (1.5, 0.5, 1, 1)]
    assert left.get_title("left") == "CKA: hints"
    reference, chosen = right.lines
    np.testing.assert_array_equal(reference.get_ydata(), [0.40, 0.35, 0.10])
    np.testing.assert_array_equal(chosen.get_ydata(), [0.20, 0.50, 0.90])
    assert to_hex(chosen.get_color()).upper() == plots.VERMILION
    assert [t.get_text() for t in right.get_xticklabels()] == TEACHER
    names = [text.get_text() for text in right.get_legend().get_texts()]
    assert names == ["before training", "hints"]
    assert right.get_ylim()[0] < -0.02, "the smallest value of all tables is in sight"


def test_the_first_student_is_not_drawn_against_itself(explorer):
    assert len(explorer.figure.axes[1].lines) == 1


def test_compute_is_pure_and_frames_do_not_depend_on_the_way(explorer):
    picture = explorer.picture.value
    assert explorer.compute({"student": "hints", "stage": "stage1"}).best == "stage1"
    assert explorer.picture.value == picture
    straight = CKAExplorer(MATRICES)
    straight.set(student="labels", stage="stage2")
    for student, stage in (("hints", "stage1"), ("labels", "stage1"), ("labels", "stage2")):
        explorer.set(student=student, stage=stage)
    assert explorer.picture.value == straight.picture.value


def test_controls_goal_and_an_impossible_choice(explorer):
    classes = {name: set(c._dom_classes) for name, c in explorer.controls.items()}
    assert "kd-student" in classes["student"] and "kd-stage" in classes["stage"]
    assert "Which moved?" in explorer.children[0].value
    with pytest.raises(ValueError, match="expected one of before training, labels, hints"):
        explorer.set(student="hint")
    with pytest.raises(ValueError, match="expected one of stage1, stage2"):
        explorer.set(stage="stage3")


def test_stages_may_be_numbers_and_many():
    names = range(12)
    big = pd.DataFrame(np.eye(12), index=names, columns=names)
    explorer = CKAExplorer({"a": big, "b": big})
    assert explorer.set(student="b", stage="7").best == "7"
    assert explorer.figure.get_size_inches()[1] > CKAExplorer(MATRICES).figure.get_size_inches()[1]


def test_the_table_that_was_given_is_not_kept_alive_to_changes():
    own = table([0.5, 0.3, 0.0], [0.4, 0.3, 0.1])
    explorer = CKAExplorer({"a": own})
    own.iloc[0, 2] = 1.0
    assert explorer.set(stage="stage1").best == "stem"


@pytest.mark.parametrize(
    ("matrices", "match"),
    [
        ({}, "matrices is empty"),
        ({"a": MATRICES["labels"].iloc[:0]}, r"matrices\['a'\] is empty"),
        (
            {"a": MATRICES["labels"], "b": MATRICES["labels"].rename(index={"stage2": "head"})},
            r"matrices\['b'\] has the stages \['stage1', 'head'\] \(rows\).*those of 'a'",
        ),
        (
            {"a": MATRICES["labels"], "b": MATRICES["labels"].iloc[:, ::-1]},
            r"matrices\['b'\] has the stages",
        ),
        (
            {"a": MATRICES["labels"].rename(index={"stage2": "stage1"})},
            r"matrices\['a'\] has a stage twice",
        ),
        (
            {"a": 2 * MATRICES["labels"]},
            r"matrices\['a'\] has values from 0.4 to 1.2; expected CKA",
        ),
        ({"a": MATRICES["labels"] * np.nan}, "no NaN"),
    ],
)
def test_refuses(matrices, match):
    with pytest.raises(ValueError, match=match):
        CKAExplorer(matrices)
