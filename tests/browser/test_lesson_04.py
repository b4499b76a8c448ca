"""Lesson 04 in a real JupyterLab: who looks at whom, by mouse, by keyboard and by choice."""

import re

import pytest
from hands import Explorer, keep_pictures

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(open_lesson):
    return open_lesson("04_attention_and_depth.ipynb", texts=300)


def test_another_sentence_by_mouse_and_another_head_by_keyboard(page):
    sentence = Explorer(page, control="sentence")
    sentence.handle.scroll_into_view_if_needed()
    first = sentence.seen()
    assert sentence.is_drawn() and "no such head" not in first[1]
    sentence.drag_to(0.6)
    sentence.wait_for_change(first)
    dragged = sentence.settle()
    number = int(re.search(r"sentence (\d)", dragged[1])[1])
    assert 3 <= number <= 5 and sentence.position() == number
    head = Explorer(page, control="head")
    head.handle.focus()
    page.keyboard.press("ArrowRight")  # the lesson leaves it at the first head
    moved = head.wait_for_change(dragged)
    assert re.search(r"head \d", moved[1])[0] != re.search(r"head \d", dragged[1])[0]
    assert head.is_drawn() and head.message() == ""


def test_attention_has_fewer_heads_than_relations(page):
    explorer = Explorer(page, control="kind")
    before = explorer.seen()
    explorer.box.locator(".kd-kind select").first.select_option("values")
    values = explorer.wait_for_change(before)
    assert "| values |" in values[1] and "–" not in values[1]
    keep_pictures(explorer, "attention")
    explorer.box.locator(".kd-kind select").first.select_option("attention")
    attention = explorer.wait_for_change(values)
    assert "| attention |" in attention[1] and "all texts and heads –" in attention[1]
    assert explorer.is_drawn() and explorer.message() == ""
