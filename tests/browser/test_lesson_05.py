"""Lesson 05 in a real JupyterLab: a glyph is shaped, and the gate changes its mind."""

import re

import pytest
from hands import Explorer, keep_pictures

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(open_lesson):
    return open_lesson("05_gated_distillation.ipynb")


def trusted(explorer) -> str:
    """Whom the gate trusts or leans to, from the read-out."""
    return re.search(r"(?:trusts|leans to|wavers:) ([\w ]+),", explorer.seen()[1])[1]


def test_the_size_by_mouse_changes_whom_the_gate_trusts(page):
    glyph = Explorer(page, control="size")
    glyph.handle.scroll_into_view_if_needed()
    first, before = glyph.seen(), trusted(glyph)
    assert glyph.is_drawn() and before == "large glyphs"
    glyph.drag_to(0.02)
    glyph.wait_for_change(first)
    glyph.settle()
    assert trusted(glyph) == "small glyphs"
    assert glyph.is_drawn() and glyph.message() == ""


def test_noise_by_keyboard_and_another_glyph(page):
    glyph = Explorer(page, control="noise")
    before = glyph.seen()
    glyph.handle.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    glyph.wait_for_change(before)
    after = glyph.settle()
    assert glyph.position() > 0
    glyph.box.locator(".kd-glyph select").first.select_option("8")
    glyph.wait_for_change(after)
    assert "8 of size" in glyph.settle()[1] and glyph.message() == ""
    keep_pictures(glyph, "gates")


def test_the_collapsed_gate_does_not_move(page):
    glyph = Explorer(page, control="size")
    before = glyph.seen()
    glyph.box.locator(".kd-gate select").first.select_option("collapsed")
    collapsed = glyph.wait_for_change(before)
    winner = trusted(glyph)
    glyph.drag_to(0.9)
    glyph.wait_for_change(collapsed)
    glyph.settle()
    assert trusted(glyph) == winner
