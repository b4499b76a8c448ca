"""Lesson 03 in a real JupyterLab: two students trained anew, by mouse and by keyboard."""

import re

import pytest
from hands import Explorer, keep_pictures

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(open_lesson):
    return open_lesson("03_gradient_distillation.ipynb")


def errors(explorer) -> list[int]:
    """Percentages in the read-out: values and slopes of the one student, then of the other."""
    return [int(number) for number in re.findall(r"(\d+)%", explorer.seen()[1])]


def test_more_samples_by_mouse_help_the_student_of_values(page):
    samples = Explorer(page, control="samples")
    samples.handle.scroll_into_view_if_needed()
    first, before = samples.seen(), errors(samples)
    assert samples.is_drawn() and len(before) == 4
    samples.drag_to(0.8)
    samples.wait_for_change(first)
    samples.settle()
    after = errors(samples)
    assert samples.position() > 10
    assert after[0] < before[0] and after[1] < before[1]
    assert samples.is_drawn() and samples.message() == ""


def test_the_weight_by_keyboard_moves_the_other_student_alone(page):
    samples, weight = Explorer(page, control="samples"), Explorer(page, control="weight")
    before = samples.seen()
    samples.drag_to(0.22)
    samples.wait_for_change(before)
    before, numbers = weight.settle(), errors(weight)
    weight.handle.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    weight.wait_for_change(before)
    weight.settle()
    now = errors(weight)
    assert now[:2] == numbers[:2] and now[2:] != numbers[2:]
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    weight.settle()
    assert errors(weight) == numbers and weight.message() == ""
    keep_pictures(weight, "slopes")
