"""No loss is forgotten: it is exported, and stands in a table that holds it against NumPy."""

import importlib
import pkgutil

import cases
import test_attention
import test_features
import test_gradients
import test_relations
import test_sample_gates
import test_tasks

from kdlab import losses

TABLES = (
    cases.CASES,
    test_features.LOSSES,
    test_relations.CASES,
    test_gradients.LOSSES,
    test_attention.CASES,
)
# They take something else than student and teacher, so tests of their own call them.
ALONE = {
    "channel_gated_hint_loss": test_sample_gates,
    "contrastive_loss": test_relations,
    "instance_transformation_loss": test_relations,
    "mixture_loss": test_sample_gates,
    "multi_label_loss": test_tasks,
    "sigmoid_target_loss": test_tasks,
    "value_loss": test_tasks,
    "value_target_loss": test_tasks,
}


def called(function) -> set[str]:
    """The name of a function, and what is named in it: a table may hold a lambda around a loss."""
    return {function.__name__, *function.__code__.co_names}


def covered() -> set[str]:
    names = set()
    for entry in (entry for table in TABLES for entry in table.values()):
        loss = entry.loss if isinstance(entry, cases.Case) else entry
        names |= called(loss[0] if isinstance(loss, tuple) else loss)
    for name, module in ALONE.items():
        tests = [value for key, value in vars(module).items() if key.startswith("test_")]
        names |= {name} & set.union(*(called(test) for test in tests))
    return names


def test_every_exported_loss_is_in_a_table():
    exported = {name for name in losses.__all__ if name.endswith("_loss")}
    assert len(exported) > 20
    assert exported - covered() == set(), "add an entry to CASES of cases.py, or to its family's"


def test_every_loss_is_exported():
    written = set()
    for module in pkgutil.iter_modules(losses.__path__):
        content = vars(importlib.import_module(f"kdlab.losses.{module.name}"))
        written |= {name for name in content if name.endswith("_loss") and name[0] != "_"}
    assert written - set(losses.__all__) == set(), "export it in kdlab/losses/__init__.py"
