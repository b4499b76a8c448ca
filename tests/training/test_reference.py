"""Stored results: read with their card, and the learning rate chosen by validation alone."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from kdlab.distillers import available, contestants
from kdlab.training import reference
from kdlab.training.reference import best_learning_rates, reference_results, tuned_methods

ADD = "a new method: .venv/bin/python tools/reference_results.py --only NAME, see CONTRIBUTING.md"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "project_folder", lambda: tmp_path)
    (tmp_path / "data" / "results").mkdir(parents=True)
    return tmp_path / "data" / "results"


def store(folder, name, table):
    pd.DataFrame(table).to_csv(folder / f"{name}.csv", index=False)
    (folder / f"{name}.json").write_text(json.dumps({"student": "cnn_tiny"}))


def test_table_and_card_come_back(folder):
    store(folder, "some", {"seed": [0, 1], "accuracy": [0.5, 0.75]})
    table, card = reference_results("some")
    assert table.accuracy.tolist() == [0.5, 0.75] and card == {"student": "cnn_tiny"}


def test_the_best_rate_has_the_best_mean_over_seeds(folder):
    store(
        folder,
        "learning_rates",
        {
            "method": ["a"] * 4 + ["b"] * 4,
            "lr": [0.1, 0.1, 0.2, 0.2] * 2,
            "seed": [0, 1] * 4,
            # a: one lucky seed at 0.2 must not win; b: 0.2 is better in both
            "val_accuracy": [0.6, 0.6, 0.9, 0.2, 0.1, 0.2, 0.3, 0.4],
        },
    )
    assert best_learning_rates() == {"a": 0.1, "b": 0.2}


def test_missing_results_say_how_to_make_them(folder):
    with pytest.raises(FileNotFoundError, match="make results"):
        reference_results("nothing")


def test_a_shipped_sweep_has_every_method():
    assert set(best_learning_rates()) == set(contestants(complete=True)), ADD


@pytest.mark.parametrize("base", ["labels", "soft targets"])
def test_each_method_of_the_inside_gets_its_best_weight_and_rate(folder, base):
    store(
        folder,
        "learning_rates",
        {"method": ["labels", "soft_targets"], "lr": [0.4, 0.2], "seed": 0, "val_accuracy": 0.5},
    )
    rows = [
        # two seeds; the best mean is (0.1, 0.3); one lucky seed at (1, 0.1) must not win
        ("hints", 0.1, 0.3, 0, 0.6),
        ("hints", 0.1, 0.3, 1, 0.6),
        ("hints", 1.0, 0.1, 0, 0.9),
        ("hints", 1.0, 0.1, 1, 0.1),
        ("weight_transfer", 1.0, 0.1, 0, 0.2),
    ]
    columns = ["method", "factor", "lr", "seed", "val_accuracy"]
    mine = pd.DataFrame(rows, columns=columns).assign(base=base)
    other = "labels" if base != "labels" else "soft targets"
    better_elsewhere = pd.DataFrame([("hints", 1.0, 0.1, 0, 1.0)], columns=columns)
    store(folder, "feature_methods", pd.concat([mine, better_elsewhere.assign(base=other)]))
    settings = tuned_methods(base)
    assert list(settings) == [base, "hints", "weight transfer"]
    assert settings[base].options == {"lr": {"labels": 0.4, "soft targets": 0.2}[base]}
    assert settings["hints"].options == {"lr": 0.3}
    shown = repr(settings["hints"].distiller)
    assert "factor=0.1" in shown and "Hints" in shown
    assert ("SoftTargets" in shown) == (base == "soft targets")


def test_the_shipped_tournament_has_every_method():
    inside = {name.replace("_", " ") for name in contestants(complete=False)}
    table, _ = reference_results("tournament")
    for base in ("labels", "soft targets"):
        assert set(tuned_methods(base)) == {base, *inside}, ADD
        runs = table[table["base"] == base]
        assert set(runs["method"]) == {base, *inside}, ADD
        assert (runs.groupby("method").size() == 5).all()


@pytest.fixture
def tool(folder, monkeypatch):
    """The tool that makes them, writing to ``folder``; its runs are drawn, not trained."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "tools")
    monkeypatch.delitem(sys.modules, "reference_results", raising=False)
    import reference_results as tool

    def run(settings, seeds):
        rows = [(name, seed) for name in settings for seed in range(seeds)]
        runs = pd.DataFrame(rows, columns=["setting", "seed"])
        return runs.assign(val_accuracy=0.9, accuracy=0.9, agreement=0.9), {"card": "of one"}

    monkeypatch.setattr(tool, "run", run)
    monkeypatch.setattr(tool, "FOLDER", folder)
    return tool


def test_one_method_on_logits_is_added(tool, folder):
    old = {"method": ["labels", "dist", "dist"], "lr": 0.1, "seed": [0, 0, 1], "val_accuracy": 0.5}
    store(folder, "learning_rates", old)
    tool.add("dist")
    table, card = reference_results("learning_rates")
    assert table[table["method"] == "labels"].val_accuracy.tolist() == [0.5]
    runs = table[table["method"] == "dist"]
    assert len(runs) == 3 * len(tool.RATES) and (runs.val_accuracy == 0.9).all()
    assert set(runs.lr) == set(tool.RATES) and best_learning_rates()["labels"] == 0.1
    assert card["student"] == "cnn_tiny" and "card" not in card
    assert set(card["added"]["dist"]) == {"made_on", "seconds"}
    tool.add("labels")
    assert set(reference_results("learning_rates")[1]["added"]) == {"dist", "labels"}
    assert not (folder / "tournament.csv").exists()


def test_one_method_of_the_inside_is_added(tool, folder):
    store(
        folder,
        "learning_rates",
        {"method": ["labels", "soft_targets"], "lr": 0.1, "seed": 0, "val_accuracy": 0.5},
    )
    hints = pd.DataFrame({"method": ["hints"], "seed": 0, "val_accuracy": 0.5})
    store(folder, "feature_methods", hints.assign(base="labels", factor=0.1, lr=0.3))
    store(folder, "tournament", hints.assign(base="labels", accuracy=0.5, agreement=0.5))
    tool.add("weight_transfer")
    sweep, _ = reference_results("feature_methods")
    table, _ = reference_results("tournament")
    for runs, name in ((sweep, "weight_transfer"), (table, "weight transfer")):
        assert set(runs["method"]) == {"hints", name}
        assert set(runs[runs["method"] == name].base) == {"labels", "soft targets"}
        assert (runs["method"] == "hints").sum() == 1
    assert (table["method"] == "weight transfer").sum() == 2 * 5


def test_what_is_in_no_comparison_cannot_be_added(tool):
    assert not available()["gated"].in_tournament
    with pytest.raises(ValueError, match="unknown method 'gated'"):
        tool.add("gated")


def test_all_methods_are_made_anew(tool):
    tool.main(["learning_rates"])
    table, card = reference_results("learning_rates")
    assert set(table["method"]) == set(contestants(complete=True))
    assert {"made_on", "seconds", "card"} <= set(card)
