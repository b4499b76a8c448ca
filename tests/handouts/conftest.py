"""Files of its own for each test of hand-outs."""

import matplotlib
import pytest


@pytest.fixture(autouse=True)
def _isolated(tmp_path, monkeypatch):
    monkeypatch.setenv("KDLAB_RECORDS", str(tmp_path / "records"))
    monkeypatch.setenv("KDLAB_PROGRESS", str(tmp_path / "progress.json"))
    with matplotlib.rc_context():
        yield
