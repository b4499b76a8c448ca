"""Stored results: read with their card, and the learning rate chosen by validation alone."""

import json

import pandas as pd
import pytest

from kdlab.training import reference
from kdlab.training.reference import best_learning_rates, reference_results


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
    from kdlab.distillers import available

    assert set(best_learning_rates()) == {"labels", *available()}
