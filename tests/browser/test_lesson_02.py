"""Lesson 02 in a real JupyterLab: whose layers are alike, and who looks where."""

import re

import pytest
from hands import Explorer, keep_pictures

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(open_lesson):
    return open_lesson("02_feature_distillation.ipynb")


def test_another_student_and_another_stage_by_keyboard(page):
    layers = Explorer(page, control="student")
    layers.handle = layers.box.locator(".kd-stage .noUi-handle").first
    layers.handle.scroll_into_view_if_needed()
    first = layers.seen()
    assert layers.is_drawn()
    layers.box.locator(".kd-student select").first.select_option("labels")
    labels = layers.wait_for_change(first)
    assert "labels" in labels[1]
    layers.handle.focus()
    page.keyboard.press("ArrowLeft")
    moved = layers.wait_for_change(labels)
    assert "stage3" in moved[1] or "stage2" in moved[1]
    assert layers.is_drawn() and layers.message() == ""
    keep_pictures(layers, "cka")


def test_another_image_by_mouse_and_another_stage_by_keyboard(page):
    maps = Explorer(page, control="image")
    maps.handle.scroll_into_view_if_needed()
    first = maps.seen()
    assert maps.is_drawn()
    maps.drag_to(0.5)
    dragged = maps.wait_for_change(first)
    assert 3 <= maps.position() <= 8
    stage = maps.box.locator(".kd-stage .noUi-handle").first
    stage.focus()
    page.keyboard.press("ArrowLeft")
    after = maps.wait_for_change(dragged)
    assert re.search(r"stage\d", after[1])
    assert maps.is_drawn() and maps.message() == ""
    keep_pictures(maps, "maps")
