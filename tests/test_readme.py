"""The README: its tables come from the stored results, and its examples run."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from kdlab import compression
from kdlab.models import count_parameters

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


def test_its_examples_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    first, *others = re.findall(r"```py(?:thon)?\n(.*?)```", TEXT, re.S)
    assert len(first.strip().splitlines()) == 5 and len(others) == 3
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for example in (first, *others):
        exec(example, names)
    assert names["run"].history.last["val_accuracy"] > 0.8
    deployed = compression.load("student.onnx")
    assert deployed.parameters == count_parameters(names["pruned"])
    assert f"{deployed.parameters:,} parameters" in capsys.readouterr().out


def test_its_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = re.findall(r"-e\s+'\.\[(\w+)\]'", TEXT)
    assert "compression" in named and set(named) <= set(extras)


def test_every_link_leads_somewhere():
    targets = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert "docs/pictures/explorer.png" in targets
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert missing == []


def test_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z]+)", TEXT):
        assert re.search(rf"^{target}:", makefile, re.M), target
