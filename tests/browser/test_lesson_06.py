"""Lesson 06 in a real JupyterLab: a budget picks the winner, sliders find the cliff."""

import re

import pytest
from hands import Explorer, keep_pictures

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(open_lesson):
    return open_lesson("06_compression.ipynb")


def winner(explorer) -> str:
    """The best model within the budget, from the read-out."""
    return re.search(r"best on validation: ([^|]+), test accuracy", explorer.seen()[1])[1]


def test_the_budget_by_mouse_picks_another_winner(page):
    pareto = Explorer(page, control="budget")
    pareto.handle.scroll_into_view_if_needed()
    pareto.drag_to(0.98)
    pareto.settle()
    rich, before = winner(pareto), pareto.seen()
    assert pareto.is_drawn()
    pareto.drag_to(0.02)
    pareto.wait_for_change(before)
    pareto.settle()
    assert winner(pareto) != rich and "int8" in winner(pareto)
    assert pareto.is_drawn() and pareto.message() == ""


def test_another_cost_and_leafing_through_the_models_by_keyboard(page):
    pareto = Explorer(page, control="model")
    before = pareto.seen()
    costs = pareto.box.locator(".kd-cost select").first
    latency = costs.locator("option", has_text="latency").inner_text()
    costs.select_option(latency)
    changed = pareto.wait_for_change(before)
    assert re.match(r"latency.* up to about", pareto.settle()[1])
    pareto.handle.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    pareto.wait_for_change(changed)
    pareto.settle()
    assert pareto.is_drawn() and pareto.message() == ""
    keep_pictures(pareto, "pareto")


def test_few_bits_are_a_cliff_and_the_setting_is_tried_here(page):
    limits = Explorer(page, control="bits")
    limits.handle.scroll_into_view_if_needed()
    before = limits.seen()
    limits.drag_to(0.0)
    limits.wait_for_change(before)
    limits.settle()
    assert "2 bits" in limits.seen()[1] and limits.message() == ""
    stored = float(re.search(r"accuracy ([\d.]+)%", limits.seen()[1])[1])
    assert stored < 20
    before = limits.seen()
    limits.box.locator(".kd-recompute input").first.check()
    limits.wait_for_change(before)
    assert "recomputed here" in limits.settle()[1] and limits.message() == ""
    limits.box.locator(".kd-recovered select").first.select_option("distilled")
    limits.settle()
    keep_pictures(limits, "compression")
