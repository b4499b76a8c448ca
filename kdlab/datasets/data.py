"""What every data set is once loaded: three splits of tensors in memory, and facts about them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdlab.datasets.tokens import Tokenizer

UNLABELLED = -1
"""The label of an image whose class the student is not told."""

TASKS: tuple[str, ...] = ("classes", "labels", "values")


@dataclass(frozen=True, eq=False)
class Split:
    """Images or texts, and labels, of one part.

    Images x are float32 ``[N, c, h, w]`` and already normalised, texts x are token numbers int64
    ``[N, L]``, y is int64 ``[N]``; whole numbers of another type become int64.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        y = self.y
        whole = isinstance(y, Tensor) and not (y.is_floating_point() or y.is_complex())
        if whole and y.dtype != torch.int64:
            object.__setattr__(self, "y", y.long())

    def __len__(self) -> int:
        return len(self.y)

    @property
    def labelled(self) -> Tensor:
        """Which samples have a label, bool ``[N]``."""
        floating = self.y.is_floating_point()
        return ~self.y.isnan().flatten(1).any(1) if floating else self.y != UNLABELLED

    def select(self, index: Tensor | np.ndarray | Sequence[int] | slice) -> "Split":
        """The images at ``index``: positions, a mask of length N, or a slice."""
        where = index if isinstance(index, slice | Tensor) else torch.as_tensor(np.asarray(index))
        if isinstance(where, Tensor) and where.dtype != torch.bool:
            where = where.long()  # an empty list arrives as float
        return Split(self.x[where], self.y[where])

    def first(self, n: int) -> "Split":
        """The first ``n`` images, or all of them where there are fewer."""
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        return self.select(slice(n))


@dataclass(frozen=True, eq=False)
class Data:
    """A data set in memory.

    ``mean`` and ``std`` (one value per channel, none for texts) come from the training split alone
    and were applied to all three. ``card`` holds plain facts: source, licence, sizes, seed and
    options. ``tokenizer`` turns texts into token numbers and back; images have none.

    ``task`` says what is learned: "classes", one of them holds; "labels", several may, and y is
    ``[N, C]`` in [0, 1]; "values", numbers ``[N, C]``. ``classes`` are the names of the C outputs.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    card: dict[str, Any]
    tokenizer: Tokenizer | None = None
    task: str = "classes"

    @property
    def num_classes(self) -> int:
        """How many outputs there are: classes (seen in training or not), labels or values."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width of one image, or the length of one text in tokens."""
        return tuple(self.train.x.shape[1:])

    @property
    def _facts(self) -> tuple[Any, ...]:
        usual = (self.classes, self.mean, self.std)
        return usual if self.task == "classes" else (*usual, self.task)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of every array, the class names and the normalisation; computed once.

        Equal for equal arrays. Generated sets may differ in the last digit between machines.
        """
        digest = hashlib.sha256(repr(self._facts).encode())
        for split in (self.train, self.val, self.test):
            for array in (split.x, split.y):
                digest.update(repr((tuple(array.shape), array.dtype)).encode())
                flat = array.detach().cpu().contiguous().reshape(-1)
                digest.update(flat.view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def image(self, x: Tensor) -> np.ndarray:
        """Undo the normalisation, for a picture.

        Takes ``[N, c, h, w]`` (or one image ``[c, h, w]``) and gives values in [0, 1] of shape
        ``[N, h, w]`` for one channel, ``[N, h, w, c]`` for more (without N for one image).
        """
        if x.ndim not in (3, 4) or x.shape[-3] != len(self.mean):
            raise ValueError(
                f"x must be [N, {len(self.mean)}, h, w] or [{len(self.mean)}, h, w], "
                f"got {list(x.shape)}"
            )
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        pixels = (x.detach().float().cpu() * std + mean).clamp(0, 1)
        return (pixels.squeeze(-3) if len(self.mean) == 1 else pixels.movedim(-3, -1)).numpy()

    @property
    def _kinds(self) -> np.ndarray:
        """What subsets are balanced over: the classes; nothing where there are none."""
        y = self.train.y.numpy()
        return y if self.task == "classes" else np.zeros(len(y), np.int64)

    def with_labels(self, n: int, seed: int = 0) -> "Data":
        """Keep ``n`` training labels, as balanced over classes as they allow; hide all others.

        The images stay. With one seed, a larger ``n`` keeps all that a smaller one keeps.
        """
        labelled = np.flatnonzero(self.train.labelled.numpy())
        _check_count("n", n, 0, len(labelled), "training labels")
        keep = labelled[in_balanced_order(self._kinds[labelled], seed)[:n]]
        y = torch.full_like(self.train.y, torch.nan if self.task != "classes" else UNLABELLED)
        y[keep] = self.train.y[keep]
        return replace(self, train=Split(self.train.x, y), card={**self.card, "labels": n})

    def subset(self, n: int, seed: int = 0) -> "Data":
        """Keep ``n`` training images, balanced over classes (unlabelled ones count as a class).

        Validation, test and the normalisation stay. With one seed, subsets are nested.
        """
        _check_count("n", n, 1, len(self.train), "training images")
        keep = np.sort(in_balanced_order(self._kinds, seed)[:n])
        sizes = {**self.card.get("sizes", {}), "train": n}
        return replace(self, train=self.train.select(keep), card={**self.card, "sizes": sizes})


def within_limit(part: str, y: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """Positions of at most ``limit`` labels ``y``, in the classes' proportions, ascending.

    Raises ValueError that names ``n_<part>``, for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"n_{part} must be at least 1, got {limit}")
    if limit is None or limit >= len(y):
        return np.arange(len(y))
    return np.sort(in_stratified_order(y, seed)[:limit])


def in_balanced_order(y: np.ndarray, seed: int) -> np.ndarray:
    """Positions of ``y`` in random order such that every prefix is balanced over its classes."""
    return _in_order(y, seed, lambda rank, count: rank)


def in_stratified_order(y: np.ndarray, seed: int) -> np.ndarray:
    """Positions of ``y`` in random order such that every prefix keeps the classes' proportions."""
    return _in_order(y, seed, lambda rank, count: (rank + 0.5) / count)


def _in_order(y: np.ndarray, seed: int, key: Any) -> np.ndarray:
    shuffled = np.random.default_rng(seed).permutation(len(y))
    keys = np.empty(len(y))
    for label in np.unique(y):
        members = np.flatnonzero(y[shuffled] == label)
        keys[members] = key(np.arange(len(members)), len(members))
    return shuffled[np.argsort(keys, kind="stable")]


def _check_count(name: str, n: int, low: int, high: int, what: str) -> None:
    if not low <= n <= high:
        raise ValueError(f"{name} must be from {low} to {high} (the {what} there are), got {n}")
