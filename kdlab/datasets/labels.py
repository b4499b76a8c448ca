"""Class numbers and names: labels that leave numbers out, and names in all their forms."""

from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np

from kdlab.datasets.data import UNLABELLED


def class_names(classes: Any) -> tuple[str, ...]:
    """The names of the classes as texts.

    Raises ValueError for what is no list of names, or has one twice.
    """
    shape = getattr(classes, "shape", None)
    listed = isinstance(classes, Iterable) and not isinstance(classes, Mapping | Set | bytes)
    if not listed or (shape is not None and len(shape) != 1):
        kind = type(classes).__name__ + (f" of shape {list(shape)}" if shape is not None else "")
        raise ValueError(
            f"classes: got {kind}, expected a list with one name per class, in the order of the "
            "labels"
        )
    names = tuple(c.decode("utf-8", "replace") if isinstance(c, bytes) else str(c) for c in classes)
    if len(set(names)) < len(names):
        raise ValueError(f"classes must differ from one another, got {', '.join(names)}")
    return names


def named(count: int) -> tuple[str, ...]:
    """The names of classes that have none: their numbers."""
    return tuple(map(str, range(count)))


def without_gaps(
    labels: dict[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], int, tuple[str, ...]]:
    """Labels int64 ``[N]`` of each split, counted from 0, and how many there are.

    Where numbers are left out, the names of the classes are the numbers that were given; else there
    are none. A class may be missing in training if another split closes the gap.

    Raises ValueError for a number that looks like a mark for "ignore", and for one of another split
    that training has not.
    """
    train = labels["train"]
    top = int(train.max())
    if top < 0 or min(int(y.min()) for y in labels.values() if len(y)) < UNLABELLED:
        return labels, top + 1, ()
    used = np.unique(np.concatenate([y[(y >= 0) & (y <= top)] for y in labels.values()]))
    if len(used) == top + 1:
        return labels, top + 1, ()
    used = np.unique(train[train >= 0])
    rest = used[:-1]
    run = len(rest) > 1 and rest[0] <= 1 and rest[-1] - rest[0] == len(rest) - 1
    if run and top - rest[-1] > len(rest):
        raise ValueError(
            f"y_train: got the label {top} {(train == top).sum()} times beside {rest[0]} to "
            f"{rest[-1]}, expected numbers without such a gap; if it means 'ignore', leave these "
            "images out or say -1; if it is a class, number it next"
        )
    found = {}
    for part, y in labels.items():
        if strange := sorted(set(y.tolist()) - set(used.tolist()) - {UNLABELLED}):
            raise ValueError(
                f"y_{part}: got the label {strange[0]}, which y_train has not; expected one of "
                f"{', '.join(map(str, used[:20]))}; leave it out, or train on it"
            )
        found[part] = np.where(y == UNLABELLED, UNLABELLED, np.searchsorted(used, y))
    return found, len(used), tuple(map(str, used.tolist()))
