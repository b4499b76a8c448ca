"""Lesson 01 in a real JupyterLab: the temperature slider, by mouse and by keyboard."""

import os
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LESSON = "01_soft_targets.ipynb"
SHOTS = ROOT / "build" / "screenshots"
README_PICTURE = ROOT / "docs" / "pictures" / "explorer.png"
LIGHT, DARK = "JupyterLab Light", "JupyterLab Dark"
THEME = "name => { window.jupyterapp.commands.execute('apputils:change-theme', {theme: name}); }"

pytestmark = pytest.mark.browser


class Explorer:
    """What a reader sees of the temperature explorer, and what hands can do with it."""

    def __init__(self, page):
        self.page = page
        self.box = page.locator(".kd-explorer", has=page.locator(".kd-temperature")).first
        self.handle = self.box.locator(".kd-temperature .noUi-handle").first
        self.track = self.box.locator(".kd-temperature .noUi-base").first
        self.picture = self.box.locator("img.kd-picture, .kd-picture img").first
        self.readout = self.box.locator(".kd-readout").first

    def seen(self) -> tuple[str, str]:
        """Address of the picture (a blob, new for each frame) and the text below it."""
        return self.picture.get_attribute("src"), self.readout.inner_text()

    def wait_for_change(self, before: tuple[str, str]) -> tuple[str, str]:
        for _ in range(150):
            now = self.seen()
            if now[0] != before[0] and now[1] != before[1]:
                return now
            self.page.wait_for_timeout(100)
        raise AssertionError(f"picture or read-out did not change: {before} became {now}")

    def drag_to(self, share: float) -> None:
        """Drag the handle by mouse to a share of the track's length."""
        self.handle.scroll_into_view_if_needed()
        handle, track = self.handle.bounding_box(), self.track.bounding_box()
        height = handle["y"] + handle["height"] / 2
        self.page.mouse.move(handle["x"] + handle["width"] / 2, height)
        self.page.mouse.down()
        self.page.mouse.move(track["x"] + track["width"] * share, height, steps=12)
        self.page.mouse.up()

    def message(self) -> str:
        return "".join(self.box.locator(".kd-error").all_inner_texts())

    def position(self) -> float:
        return float(self.handle.get_attribute("aria-valuenow"))

    def is_drawn(self) -> bool:
        return self.picture.evaluate("img => img.complete && img.naturalWidth > 100")


@pytest.fixture
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
    keep_pictures(explorer)


def keep_pictures(explorer) -> None:
    """Screenshots in both themes; the README's picture when KDLAB_SAVE_PICTURES is set."""
    page = explorer.page
    SHOTS.mkdir(parents=True, exist_ok=True)
    for theme, name in ((DARK, "explorer-dark.png"), (LIGHT, "explorer.png")):
        page.evaluate(THEME, theme)
        page.wait_for_selector(f'body[data-jp-theme-name="{theme}"]', state="attached")
        page.wait_for_timeout(500)
        explorer.box.screenshot(path=SHOTS / name)
        page.screenshot(path=SHOTS / f"lab-{name}")
        assert (SHOTS / name).stat().st_size > 5000
    if os.environ.get("KDLAB_SAVE_PICTURES"):
        README_PICTURE.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SHOTS / "explorer.png", README_PICTURE)
