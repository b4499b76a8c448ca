"""Eyes and hands of a reader: what an explorer shows in JupyterLab, and moving its slider."""

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "build" / "screenshots"
PICTURES = ROOT / "docs" / "pictures"
LIGHT, DARK = "JupyterLab Light", "JupyterLab Dark"
IDLE = "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'"
THEME = "name => { window.jupyterapp.commands.execute('apputils:change-theme', {theme: name}); }"


class Explorer:
    """What a reader sees of an explorer with a certain slider, and what hands can do with it."""

    def __init__(self, page, place: int = 0, control: str = "temperature"):
        self.page = page
        self.box = page.locator(".kd-explorer", has=page.locator(f".kd-{control}")).nth(place)
        self.handle = self.box.locator(f".kd-{control} .noUi-handle").first
        self.track = self.box.locator(f".kd-{control} .noUi-base").first
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

    def settle(self) -> tuple[str, str]:
        """Wait until the kernel rests and nothing has changed for two seconds."""
        calm, last = 0, self.seen()
        for _ in range(600):
            self.page.wait_for_timeout(100)
            now = self.seen()
            calm = calm + 1 if now == last and self.page.evaluate(IDLE) else 0
            last = now
            if calm == 20:
                return now
        raise AssertionError(f"no rest after a minute: {last}")

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


def keep_pictures(explorer: Explorer, name: str) -> None:
    """Screenshots in both themes; also for the README when KDLAB_SAVE_PICTURES is set."""
    page = explorer.page
    SHOTS.mkdir(parents=True, exist_ok=True)
    for theme, file in ((DARK, f"{name}-dark.png"), (LIGHT, f"{name}.png")):
        page.evaluate(THEME, theme)
        page.wait_for_selector(f'body[data-jp-theme-name="{theme}"]', state="attached")
        page.wait_for_timeout(500)
        explorer.box.screenshot(path=SHOTS / file)
        page.screenshot(path=SHOTS / f"lab-{file}")
        assert (SHOTS / file).stat().st_size > 5000
    if os.environ.get("KDLAB_SAVE_PICTURES"):
        PICTURES.mkdir(parents=True, exist_ok=True)
        shutil.copy(SHOTS / f"{name}.png", PICTURES / f"{name}.png")
