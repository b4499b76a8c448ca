"""Fixtures of the tests of hand-outs: the command, and files of its own for each test."""

import re

import matplotlib
import pytest
from typer.testing import CliRunner

from kdlab import cli


@pytest.fixture(autouse=True)
def _isolated(tmp_path, monkeypatch):
    monkeypatch.setenv("KDLAB_RECORDS", str(tmp_path / "records"))
    monkeypatch.setenv("KDLAB_PROGRESS", str(tmp_path / "progress.json"))
    with matplotlib.rc_context():
        yield


@pytest.fixture
def kdlab():
    """Run the command; gives exit code and all it printed."""

    def call(*words):
        result = CliRunner().invoke(cli.app, list(map(str, words)))
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, re.sub(r"\s+", " ", result.output)

    return call
