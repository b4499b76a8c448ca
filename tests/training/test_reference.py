"""Stored results: read with their card, and the learning rate chosen by validation alone."""

import json

import pandas as pd
import pytest

from kdlab.distillers import contestants
from kdlab.training import reference
from kdlab.training.reference import best_learning_rates, reference_results, tuned_methods


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
    assert set(best_learning_rates()) == set(contestants(complete=True))


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
        assert set(tuned_methods(base)) == {base, *inside}
        runs = table[table["base"] == base]
        assert set(runs["method"]) == {base, *inside}
        assert (runs.groupby("method").size() == 5).all()
