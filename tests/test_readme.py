"""The README: its tables come from the stored results, and its example runs."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def readme(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    monkeypatch.delitem(sys.modules, "readme", raising=False)
    import readme

    return readme


def test_tables_are_fresh(readme):
    assert readme.render(TEXT) == TEXT, "run `make readme` and commit the result"


def test_a_changed_result_is_noticed(readme, monkeypatch):
    read = readme.read

    def faster(name):
        stored = read(name)
        if name == "training_loop":
            stored["speed"][0]["samples_per_second"] *= 2
        return stored

    monkeypatch.setattr(readme, "read", faster)
    assert readme.render(TEXT) != TEXT


def test_five_lines_run():
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    names: dict = {}
    exec(example, names)
    assert len(example.strip().splitlines()) == 5
    assert names["run"].history.last["val_accuracy"] > 0.8


def test_every_link_leads_somewhere():
    targets = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert "docs/pictures/explorer.png" in targets
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert missing == []


def test_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z]+)", TEXT):
        assert re.search(rf"^{target}:", makefile, re.M), target
