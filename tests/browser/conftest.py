"""A JupyterLab of its own and a headless Chromium, for lessons as a reader sees them.

Playwright drives the Chromium of the system; it downloads none. Where there is none these tests are
skipped with a hint, except in CI, where they fail.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Error, sync_playwright
from shortened import shortened

ROOT = Path(__file__).parents[2]
NOTEBOOKS = Path(os.environ.get("KDLAB_NOTEBOOKS", ROOT / "notebooks"))
HINT = "no Chromium: `apt-get install chromium`, or set CHROMIUM to the path of one"
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)

# the toolbar says "idle" before there is a kernel, so ask the session itself; playwright gives an
# evaluation no time limit, and a lesson without a kernel name would wait for a dialog for ever
KERNEL_READY = """async () => {
  const ready = async () => {
    await window.jupyterapp.restored;
    const panel = window.jupyterapp.shell.currentWidget;
    await panel.context.ready;
    await panel.revealed;
    await panel.sessionContext.ready;
    await panel.sessionContext.session.kernel.info;
    return true;
  };
  const late = new Promise(resolve => setTimeout(() => resolve(false), 60000));
  return await Promise.race([ready(), late]);
}"""
# not awaited: with a dialog open the command would never return
RUN_ALL = "() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }"
STATE = """() => {
  const panel = window.jupyterapp.shell.currentWidget;
  const code = [...panel.content.model.cells].filter(
    cell => cell.type === 'code' && cell.sharedModel.getSource().trim());
  const errors = code.flatMap(cell => [...Array(cell.outputs.length).keys()]
    .map(i => cell.outputs.get(i).toJSON()).filter(o => o.output_type === 'error'));
  const status = panel.sessionContext.session.kernel.status;
  return {
    done: status === 'idle' && code.length > 0 && code.every(c => c.executionCount !== null),
    failed: status === 'idle' && errors.length > 0,
    errors: errors.map(e => `${e.ename}: ${e.evalue}`),
  };
}"""
SHUT_DOWN = "() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()"
CLEAR_OUTPUTS = "() => { window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs'); }"


@dataclass(frozen=True)
class Server:
    """Where the private JupyterLab listens."""

    address: str
    token: str
    folder: Path


def find_chromium() -> str | None:
    chosen = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    return chosen if chosen and Path(chosen).exists() else None


@pytest.fixture(scope="session")
def browser():
    executable = find_chromium()
    if executable is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(HINT)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab_server(tmp_path_factory):
    """JupyterLab on a private port, with private settings and a folder for copies of lessons."""
    root, home = tmp_path_factory.mktemp("lessons"), tmp_path_factory.mktemp("home")
    keep_setting(home, "apputils-extension/notification", fetchNews="false", checkForUpdates=False)
    # every cell in the page, also those out of sight
    keep_setting(home, "notebook-extension/tracker", windowingMode="none")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Server(f"http://127.0.0.1:{port}", secrets.token_hex(8), root)
    log = home / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
                "--expose-app-in-browser", "--ip=127.0.0.1", f"--port={port}",
                "--ServerApp.port_retries=0", f"--ServerApp.root_dir={root}",
                f"--IdentityProvider.token={server.token}",
            ],
            env=private_environment(home),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            wait_until_up(server, process, log)
            yield server
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)  # the kernels too
            process.wait(30)


def keep_setting(home: Path, plugin: str, **values) -> None:
    path = home / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def private_environment(home: Path) -> dict[str, str]:
    return os.environ | {
        "HOME": str(home),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "KDLAB_RECORDS": str(home / "records"),
        "KDLAB_DATA_DIR": os.environ.get("KDLAB_DATA_DIR", str(ROOT / "data" / "cache")),
    }


def wait_until_up(server: Server, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{server.address}/api/status?token={server.token}", timeout=5)
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def open_lesson(browser, lab_server):
    """Open a lesson, forget its stored outputs, run all cells; gives the page, without errors.

    Only what the explorers need is run, with other parameters if some are given; ``whole=True``
    runs all.
    """
    pages = []

    def open_and_run(name: str, seconds: int = 600, whole: bool = False, **parameters):
        notebook = nbformat.read(NOTEBOOKS / name, 4)
        notebook = notebook if whole else shortened(notebook, **parameters)
        nbformat.write(notebook, lab_server.folder / name)
        page = browser.new_page(viewport={"width": 1280, "height": 960}, device_scale_factor=1.5)
        pages.append(page)
        page.set_default_timeout(60_000)
        page.goto(f"{lab_server.address}/lab/tree/{name}?reset&token={lab_server.token}")
        page.wait_for_selector(".jp-NotebookPanel .jp-Notebook")
        assert page.evaluate(KERNEL_READY), f"{name} got no kernel within a minute"
        page.evaluate(CLEAR_OUTPUTS)
        page.evaluate(RUN_ALL)
        state, deadline = {"errors": []}, time.monotonic() + seconds
        while time.monotonic() < deadline:
            state = page.evaluate(STATE)
            if state["done"] or state["failed"]:
                break
            page.wait_for_timeout(200)
        assert state["errors"] == []
        assert state.get("done"), f"{name} did not finish in {seconds} s"
        return page

    yield open_and_run
    for page in pages:
        with contextlib.suppress(Error):  # a lesson that is late would slow down the next
            page.evaluate(SHUT_DOWN)
        page.close()
