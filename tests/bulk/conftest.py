"""Fixtures of the tests of sweeps: a tiny lesson, and runs that take no kernel."""

import json
import random
import time

import nbformat
import pytest
from bulk_hands import notebook_at
from nbformat.v4 import new_code_cell, new_notebook, new_output

from kdlab.cli import running
from kdlab.lab import MIME


@pytest.fixture
def lesson(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return notebook_at(tmp_path / "tiny.ipynb", "pass")


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """Runs take no kernel: they leave a notebook and a line in a log, and fail at 3 degrees.

    ``quick()`` returns the settings that were begun; ``quick.wait`` is what a run takes, in
    seconds, and ``quick.size`` of a notebook, in bytes.
    """
    log = tmp_path / "begun.log"

    def begun():
        return log.read_text().splitlines() if log.exists() else []

    def stand_in(path, output, values, **options):
        with log.open("a") as file:
            file.write(json.dumps(values, sort_keys=True) + "\n")
        entry = {MIME: {"name": "softness", "value": values.get("temperature", 4.0)}}
        half = begun.size // 2
        with output.open("w") as file:
            cell = new_code_cell("x" * half, outputs=[new_output("display_data", entry)])
            text = nbformat.writes(new_notebook(cells=[cell]))
            file.write(text[:half])
            file.flush()
            time.sleep(begun.wait * random.random())
            file.write(text[half:])
        if values.get("temperature") == 3:
            raise running.LessonFailed(f"too cold, see {output}", "too cold")

    begun.wait, begun.size = 0.0, 0
    monkeypatch.setattr(running, "run_lesson", stand_in)
    return begun
