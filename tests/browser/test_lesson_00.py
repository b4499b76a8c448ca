"""Lesson 00 in a real JupyterLab: the slider that trains eight students."""

import pytest
from hands import Explorer, keep_pictures

pytestmark = pytest.mark.browser


def test_one_key_trains_anew(open_lesson):
    explorer = Explorer(open_lesson("00_start_here.ipynb", whole=True))
    explorer.handle.scroll_into_view_if_needed()
    before = explorer.seen()
    explorer.handle.focus()
    explorer.page.keyboard.press("ArrowLeft")
    explorer.wait_for_change(before)
    assert explorer.is_drawn() and explorer.message() == ""
    keep_pictures(explorer, "retraining")
