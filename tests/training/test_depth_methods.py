"""The methods of lesson 04: what they are, for whom, and how their places are chosen."""

import pandas as pd
import pytest

from kdlab.distillers import HiddenStates, SelfAttentionRelations, SoftTargets
from kdlab.training import depth_methods
from kdlab.training.depth_methods import (
    EXITS,
    INNER,
    LSTM,
    METHODS,
    RELATION_HEADS,
    WITHOUT_WEIGHT,
    attention_setting,
    tuned_attention,
)

RELATIONS = {  # what makes each of them different
    "relations, last layer": {"mapping": "last"},
    "relations, all layers": {"mapping": "uniform", "schedule": "all"},
    "relations, climbing": {"mapping": "uniform", "schedule": "climb"},
    "relations, learned mapping": {"mapping": "learned"},
    "LSTM, relations": {"relations": ("hidden",)},
}


@pytest.mark.parametrize(("method", "options"), RELATIONS.items())
def test_relations_come_on_top_of_soft_targets_with_the_given_weight(method, options):
    setting = attention_setting(method, 7.0, 0.002)
    soft, relations = setting.distiller.parts
    assert isinstance(soft, SoftTargets) and isinstance(relations, SelfAttentionRelations)
    assert relations.weight == 7.0 and relations.relation_heads == RELATION_HEADS
    other = attention_setting(method, 7.0, 0.002, relation_heads=8).distiller.parts[1]
    assert other.relation_heads == 8
    assert {name: getattr(relations, name) for name in options} == options
    assert setting.options == {"lr": 0.002}


def test_hidden_states_are_compared_with_the_given_weight():
    soft, hidden = attention_setting("hidden states", 3.0, 0.001).distiller.parts
    assert isinstance(soft, SoftTargets) and isinstance(hidden, HiddenStates)
    assert hidden.weight == 3.0


@pytest.mark.parametrize("method", METHODS)
def test_the_name_says_who_learns(method):
    setting = attention_setting(method, 1.0, 0.001)
    assert setting.student == (LSTM if method.startswith("LSTM") else None)
    plain = setting.distiller is None or isinstance(setting.distiller, SoftTargets)
    assert plain == (method in WITHOUT_WEIGHT)
    assert (setting.distiller is None) == method.endswith("labels")


def test_the_place_is_the_best_mean_on_validation_texts(monkeypatch):
    rows = [
        {"method": method, "weight": weight, "lr": lr, "val_accuracy": value}
        for method in METHODS
        for weight, lr, values in (
            (1.0, 0.001, (0.9, 0.1)),  # one lucky seed
            (2.0, 0.002, (0.6, 0.7)),
            (3.0, 0.004, (0.5, 0.5)),
        )
        for value in values
    ]
    monkeypatch.setattr(depth_methods, "reference_results", lambda name: (pd.DataFrame(rows), {}))
    tuned = tuned_attention()
    assert list(tuned) == list(METHODS)
    assert all(setting.options["lr"] == 0.002 for setting in tuned.values())
    assert tuned["hidden states"].distiller.parts[1].weight == 2.0
    climbing = tuned_attention(relation_heads=2)["relations, climbing"].distiller.parts[1]
    assert (climbing.weight, climbing.relation_heads) == (2.0, 2)


def test_the_stored_choice_has_every_method():
    assert list(tuned_attention()) == list(METHODS)


@pytest.mark.parametrize("name", EXITS)
def test_every_way_has_heads_at_the_layers_given(name):
    method = EXITS[name](INNER)
    assert set(INNER) <= set(method.student_taps)
    assert method.complete and method.needs_teacher == (name != "be your own teacher")
    balances = [part.balance for part in method.modules() if hasattr(part, "balance")]
    expected = {"deep supervision": ["equal"], "weights from the losses": ["loss"]}
    assert balances == expected.get(name, [])
