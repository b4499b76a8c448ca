"""Lesson 01 in a real JupyterLab: its explorers, by mouse and by keyboard."""

import re

import pytest
from hands import Explorer, keep_pictures

LESSON = "01_soft_targets.ipynb"

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def explorer(open_lesson):
    explorer = Explorer(open_lesson(LESSON))
    explorer.handle.scroll_into_view_if_needed()
    return explorer


def test_the_temperature_slider_moves_the_picture(explorer):
    page, first = explorer.page, explorer.seen()
    assert explorer.is_drawn() and re.search(r"\d", first[1])

    explorer.drag_to(0.75)
    dragged = explorer.wait_for_change(first)
    warm = explorer.position()

    explorer.handle.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    explorer.wait_for_change(dragged)
    assert explorer.position() < warm
    assert explorer.is_drawn() and explorer.message() == ""

    explorer.drag_to(0.6)
    page.wait_for_timeout(1500)  # let the last frame arrive
    keep_pictures(explorer, "explorer")


def test_the_map_of_stored_results_is_walked(explorer):
    landscape = Explorer(explorer.page, place=1)
    landscape.handle.scroll_into_view_if_needed()
    before = landscape.seen()
    landscape.handle.focus()
    explorer.page.keyboard.press("ArrowLeft")
    landscape.wait_for_change(before)
    assert landscape.is_drawn() and landscape.message() == ""
    keep_pictures(landscape, "landscape")
