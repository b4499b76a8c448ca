"""What the tests of sweeps and reports share: a tiny notebook, the command, what is kept."""

import functools
import multiprocessing
import re
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from typer.testing import CliRunner

from kdlab import cli
from kdlab.cli import runs
from kdlab.lab import MIME

PARAMETERS = """\
profile: str = "fast"  # fast or full
seed: int = 0  # of everything random
temperature: float = 4  # softens the teacher
hidden: list[int] = [32]  # widths
dataset: str = "glyphs"  # any set, or a path"""
# a stand-in for kdlab.lab, whose import takes seconds
START = """\
import json, os, time
from pathlib import Path
from IPython.display import display
class lab:
    start = staticmethod(lambda *a, **k: None)
    def record(name, value):
        display({"application/vnd.kdlab.record+json": {"name": name, "value": value}}, raw=True)
lab.start(globals(), temperature=(1, 20), hidden=(1, 256), dataset=None)"""
forking = pytest.mark.skipif(sys.platform != "linux", reason="forks with threads, as Linux can")


def notebook_at(path, *body):
    first = new_code_cell(PARAMETERS)
    first.metadata["tags"] = ["parameters"]
    nbformat.write(new_notebook(cells=[first, *map(new_code_cell, [START, *body])]), path)
    return path


def kdlab(*words):
    result = CliRunner().invoke(cli.app, list(map(str, words)))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, re.sub(r"\s+", " ", result.output)


def in_a_fork(*words):
    """Start the command in a process of its own, which shares what is imported and patched."""

    call = functools.partial(cli.app, list(map(str, words)))
    process = multiprocessing.get_context("fork").Process(target=call, daemon=True)
    process.start()
    return process


def state(out):
    """What is kept: name → facts; every folder must be whole."""
    kept = {}
    for folder in (path for path in out.glob("*") if not path.name.startswith((".", "report."))):
        assert re.fullmatch(r"[0-9a-f]{12}", folder.name) and folder.is_dir()
        kept[folder.name] = runs.facts_of(folder)
        assert kept[folder.name], f"{folder} is not whole"
        nbformat.read(folder / "tiny.ipynb", 4)
    return kept


def assert_tidy(out):
    assert {path.suffix for path in (out / runs.WORK).iterdir()} <= {".lock"}


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def keep(out, values, records=(), status=runs.DONE, **facts):
    """Keep a finished run as a sweep does, with these records in its notebook."""
    outputs = [new_output("display_data", {MIME: record}) for record in records]
    run = runs.Run(Path("tiny.ipynb"), {"seed": 0, **values}, values, out)

    def produce(place):
        cells = [new_code_cell("pass", outputs=[output]) for output in outputs]
        nbformat.write(new_notebook(cells=cells), place / "tiny.ipynb")
        about = {"lesson": "tiny", "values": run.values, "ended": 1.0, "seconds": 2.5}
        return {**about, "status": status, **facts}

    runs.make(run, produce, redo=lambda there: True, wait=True)
    return run
