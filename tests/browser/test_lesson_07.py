"""Lesson 07 in a real JupyterLab: a budget is dragged, and another width answers."""

import re

import pytest
from hands import Explorer, keep_pictures

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(open_lesson):
    return open_lesson("07_nested_networks.ipynb", images=1000)


def answering(explorer) -> float:
    """The width that answers, from the read-out."""
    return float(re.search(r"width ([\d.]+) answers", explorer.seen()[1])[1])


def test_the_budget_by_mouse_changes_who_answers(page):
    chart = Explorer(page, control="budget")
    chart.handle.scroll_into_view_if_needed()
    chart.drag_to(1.05)  # all of it: the widest needs the last percent, too
    chart.settle()
    before, widest = chart.seen(), answering(chart)
    assert chart.is_drawn() and widest == 1
    chart.drag_to(0.3)
    chart.wait_for_change(before)
    chart.settle()
    assert answering(chart) < widest
    assert chart.is_drawn() and chart.message() == ""


def test_the_budget_by_keyboard_another_network_and_another_image(page):
    chart = Explorer(page, control="budget")
    before, percent = chart.seen(), chart.position()
    chart.handle.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    after = chart.wait_for_change(before)
    chart.settle()
    assert chart.position() > percent
    chart.box.locator(".kd-network select").first.select_option("on labels")
    moved = chart.wait_for_change(after)
    assert "on labels" in chart.settle()[1]
    chart.box.locator(".kd-label select").first.select_option("8")
    chart.wait_for_change(moved)
    chart.settle()
    assert chart.is_drawn() and chart.message() == ""
    keep_pictures(chart, "budget")


def test_too_little_for_anybody(page):
    chart = Explorer(page, control="budget")
    before = chart.seen()
    chart.drag_to(-0.05)
    chart.wait_for_change(before)
    assert "nobody answers" in chart.settle()[1] and chart.message() == ""
