"""What the tests of lessons share: where they are, small ones to try, kernels without a network."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Kernels started now reach this machine only; the file returned lists what they tried."""
    log = tmp_path / "network.log"
    log.touch()
    guard = str(Path(__file__).parent / "no_network")
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (guard, before))))
    monkeypatch.setenv("KDLAB_TEST_NETWORK_LOG", str(log))
    monkeypatch.setenv("KDLAB_THREADS", os.environ.get("KDLAB_THREADS", "2"))
    return log


@pytest.fixture
def write(tmp_path):
    """Write a notebook made of (tag or None, kind, source) triples and return its path."""

    def write_notebook(cells, name="tiny.ipynb"):
        notebook = new_notebook()
        for number, (tag, kind, source) in enumerate(cells):
            make = new_markdown_cell if kind == "text" else new_code_cell
            cell = make(source, id=f"cell-{number:02d}")
            cell.metadata["tags"] = [tag] if tag else []
            notebook.cells.append(cell)
        path = tmp_path / name
        nbformat.write(notebook, path)
        return path

    return write_notebook
