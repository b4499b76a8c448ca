"""The methods of lesson 04, as its stored comparisons and its live ones train them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from kdlab.distillers import Distiller, build
from kdlab.training.reference import reference_results
from kdlab.training.study import Setting

# Narrower than the teacher, with fewer layers and fewer heads; and one of another kind.
STUDENT = ("transformer", {"width": 32, "depth": 2, "heads": 2})
LSTM = ("lstm", {"width": 32})
BUDGET: dict[str, Any] = {
    "epochs": 10,
    "batch_size": 32,
    "optimizer": "adamw",
    "weight_decay": 0.01,
}
RELATION_HEADS = 4

# A student with room for exits: as many layers as the teacher, half as wide.
DEEP_STUDENT = ("transformer", {"width": 32, "depth": 4, "heads": 2})
INNER = ("blocks.0", "blocks.1", "blocks.2")

Method = Callable[[float, int], Setting]


def _soft() -> Distiller:
    return build("soft_targets")


def _relations(**options: Any) -> Method:
    def setting(weight: float, heads: int) -> Setting:
        method = build("self_attention_relations", relation_heads=heads, weight=weight, **options)
        return Setting(_soft() + method)

    return setting


def _of_lstm(method: Method) -> Method:
    return lambda weight, heads: replace(method(weight, heads), student=LSTM)


# Name → what it is at a weight, with so many relation heads; all but the labels are added to soft
# targets.
METHODS: Mapping[str, Method] = {
    "labels": lambda *_: Setting(),
    "soft targets": lambda *_: Setting(_soft()),
    "relations, last layer": _relations(mapping="last"),
    "relations, all layers": _relations(),
    "relations, climbing": _relations(schedule="climb"),
    "relations, learned mapping": _relations(mapping="learned"),
    "hidden states": lambda weight, _: Setting(_soft() + build("hidden_states", weight=weight)),
    "LSTM, labels": _of_lstm(lambda *_: Setting()),
    "LSTM, soft targets": _of_lstm(lambda *_: Setting(_soft())),
    "LSTM, relations": _of_lstm(_relations(relations=("hidden",))),
}
WITHOUT_WEIGHT = ("labels", "soft targets", "LSTM, labels", "LSTM, soft targets")


def attention_setting(
    method: str, weight: float, lr: float, relation_heads: int = RELATION_HEADS
) -> Setting:
    """Return one of ``METHODS`` at a weight of its own term and a learning rate."""
    return replace(METHODS[method](weight, relation_heads), options={"lr": lr})


def tuned_attention(relation_heads: int = RELATION_HEADS) -> dict[str, Setting]:
    """Return every method at the weight and rate that were best on validation texts.

    The choice was made with ``RELATION_HEADS``.
    """
    table, _ = reference_results("attention_choice")
    means = table.groupby(["method", "weight", "lr"])["val_accuracy"].mean()
    best: dict[str, tuple[float, float]] = {name: means[name].idxmax() for name in METHODS}
    return {name: attention_setting(name, *best[name], relation_heads) for name in METHODS}


# Ways to train a model with exits, by name; the heads sit at the layers given.
EXITS: Mapping[str, Callable[[tuple[str, ...]], Distiller]] = {
    "deep supervision": lambda layers: _soft() + _heads(layers, "equal"),
    "weights from the losses": lambda layers: _soft() + _heads(layers, "loss"),
    "be your own teacher": lambda layers: build("self_distillation", layers=layers),
}


def _heads(layers: tuple[str, ...], balance: str) -> Distiller:
    # with a weight of 1 the heads of a small student pull its last answer down
    return build("deep_supervision", layers=layers, weight=0.3, balance=balance)
