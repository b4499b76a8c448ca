"""Layers of two models, matched from low to high: which teaches which, and when."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import count, takewhile

import torch
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.datasets.data import TASKS
from kdlab.distillers.adapters import match_size, resize
from kdlab.distillers.base import Distiller, Outputs, checked_teacher, read_layers
from kdlab.distillers.connectors import given, pair_shapes
from kdlab.losses.checks import check_weight
from kdlab.models.taps import modules_of
from kdlab.models.text import PADDING
from kdlab.words import check_known

FAMILIES = (("blocks.{}", 0), ("layers.{}", 0), ("stage{}", 1))  # paths of layers, the first number
PARTS = {  # what can be read at a layer
    "query": "{}.attention.query",
    "key": "{}.attention.key",
    "value": "{}.attention.value",
    "hidden": "{}",
    "scores": "{}.attention.weights:input",
}
MOST_PLACES = 8  # a side; a larger feature map is pooled, as tables of all pairs of places grow
SPEED = 10.0  # a handful of numbers would hardly move at a student's learning rate

LayerMapping = str | Mapping[int, int]


class HierarchicalDistiller(Distiller):
    """A method that compares a hierarchy of layers, w_i(progress) · Σ_j a_ij · loss(i, j).

    Layers are found by name in ``prepare`` and counted from 0, the lowest: a transformer's
    ``blocks.0``, ``blocks.1`` and so on, ``layers.0`` of an LSTM, ``stage1`` of a CNN. Which layer
    j of the teacher teaches layer i of the student is the *mapping*, a_ij:

    - "uniform": the teacher's layers at even distances, last to last (TinyBERT);
    - "last": the last layer alone (MiniLM);
    - a dict of student's layer → teacher's layer;
    - "learned": all of them, Σ_j a_ij = 1, a softmax of trained numbers for each layer i. The loss
      alone would put everything on whatever is easiest to copy, so an own term holds it back,
      τ_i · KL(a_i ‖ uniform) with τ_i = ``evenness`` · mean_j loss(i, j): its best answer is
      softmax(−loss / τ). With an evenness of 0 it collapses; ``teacher_layers`` shows that.

    How much each layer counts is the *schedule*, Σ_i w_i = 1 at any time:

    - "all": all alike, from the first step to the last;
    - "climb": each has its turn, the lowest first, with a linear passage from one to the next.

    ``measures`` gives w_i as ``layer_i``, and if the mapping is learned Σ_j a_ij · j as
    ``layer_i_from`` and the mean over i of exp(entropy of a_i) as ``teacher_layers``: from 1, a
    collapse, to the number of the teacher's layers.

    Sources: Jiao et al., "TinyBERT", 2019, arXiv:1909.10351 (uniform); Passban, Wu, Rezagholizadeh,
    Liu, "ALP-KD: Attention-Based Layer Projection for Knowledge Distillation", AAAI 2021,
    arXiv:2012.14022 (why all of the teacher's layers; there the weights come from inner products);
    Sun, Yu, Song, Liu, Yang, Zhou, "MobileBERT", ACL 2020, arXiv:2004.02984 (layer after layer).
    The term against collapse and the linear passages are ours. Derived in lesson 04.

    Args:
        mapping: as above.
        schedule: "all" or "climb".
        weight: of all terms, at least 0.
        evenness: of a learned mapping, at least 0.

    Raises:
        ValueError: an unknown mapping or schedule, a negative weight; in ``prepare`` a model
            without such layers, or layers that cannot be compared, with their paths and shapes.
    """

    complete = False
    in_tournament = False  # few pairs of models have attention or as many tokens
    _read: tuple[str, ...] = ()  # at each layer: names in PARTS
    preferences: nn.Parameter | None

    tasks = TASKS

    def __init__(
        self,
        mapping: LayerMapping = "uniform",
        schedule: str = "all",
        weight: float = 1.0,
        evenness: float = 1.0,
    ) -> None:
        super().__init__()
        if isinstance(mapping, str):
            check_known("mapping", mapping, ("uniform", "last", "learned"))
        elif not mapping or any(type(n) is not int for pair in mapping.items() for n in pair):
            raise ValueError(
                f"mapping: {mapping!r}, expected a name or numbers of layers, student's → "
                "teacher's, such as {0: 1, 1: 3}"
            )
        check_known("schedule", schedule, SCHEDULES)
        check_weight("weight", weight)
        check_weight("evenness", evenness)
        self.mapping = mapping if isinstance(mapping, str) else dict(mapping)
        self.schedule = schedule
        self.weight = float(weight)
        self.evenness = float(evenness)
        self.register_parameter("preferences", None)
        self._rows: dict[int, tuple[int, ...]] = {}
        self._measured: dict[str, Tensor] = {}

    @property
    def needs_only_logits(self) -> bool:
        """False: it reads inner layers, though which ones is known only in ``prepare``."""
        return False

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Find and match the layers, and check that what is read at them can be compared."""
        teacher = given(teacher)
        mine, theirs = layers_of(student), layers_of(teacher)
        self._rows = layer_rows(self.mapping, len(mine), len(theirs))
        pairs = [(mine[i], theirs[j]) for i, row in self._rows.items() for j in row]
        self._paths = {
            part: [(PARTS[part].format(a), PARTS[part].format(b)) for a, b in pairs]
            for part in self._read
        }
        both = [pair for part in self._read for pair in self._paths[part]]
        self.student_taps = tuple(dict.fromkeys(path for path, _ in both))
        self.teacher_taps = tuple(dict.fromkeys(path for _, path in both))
        _check_paths("student", student, self.student_taps)
        _check_paths("teacher", teacher, self.teacher_taps)
        for part in self._read:
            found = pair_shapes(self._paths[part], student, teacher, train)
            for paths, own in zip(self._paths[part], found, strict=True):
                self._check_pair(part, paths, own)
        self.preferences = None
        if self.mapping == "learned":
            self.preferences = nn.Parameter(torch.zeros(len(mine), len(theirs)))

    def _check_pair(
        self, part: str, paths: tuple[str, str], found: tuple[torch.Size, torch.Size]
    ) -> None:
        mine, theirs = (torch.empty(shape, device="meta") for shape in found)
        try:
            mine, theirs = _comparable(part, mine, theirs)
            self.join(part, mine.shape, theirs.shape)
        except ValueError as error:
            raise ValueError(
                f"layers: the student's {paths[0]!r} gives shape {list(found[0])}, the teacher's "
                f"{paths[1]!r} {list(found[1])}; {error}"
            ) from None

    def join(self, part: str, student: torch.Size, teacher: torch.Size) -> None:
        """Check further, or build, what one pair of these shapes needs: a method says it here.

        Called in ``prepare`` for each pair in its order; a ValueError gets the paths in front.
        """

    def read(
        self, part: str, student: Outputs, teacher: Outputs | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Return what ``part`` holds at each pair of layers, in single precision."""
        found = read_layers(self._paths[part], student, checked_teacher(teacher, self))
        return [_comparable(part, *pair) for pair in found]

    def mask(self, student: Outputs) -> Tensor | None:
        """Return where the inputs hold tokens, ``[B, N]``, and None for images."""
        if student.inputs is None or student.inputs.dtype != torch.int64:
            return None
        return student.inputs != PADDING

    def terms(self, values: Mapping[str, Sequence[Tensor]], progress: float) -> dict[str, Tensor]:
        """Return each name's values, one for each pair of layers, as one weighted term."""
        rows = len(self._rows)
        tables = {name: torch.stack(list(v)).view(rows, -1) for name, v in values.items()}
        total = torch.stack(list(tables.values())).sum(0)
        turns = total.new_tensor(SCHEDULES[self.schedule](rows, progress))
        self._measured = {f"layer_{i}": turn for i, turn in zip(self._rows, turns, strict=True)}
        if self.preferences is None:
            return {name: self.weight * turns @ table.sum(1) for name, table in tables.items()}
        log_shares = (SPEED * self.preferences).log_softmax(1)
        shares = log_shares.exp()
        surprise = (shares * log_shares).sum(1)
        depths = torch.arange(shares.shape[1], device=shares.device, dtype=shares.dtype)
        means = (shares @ depths).detach()
        self._measured |= {f"layer_{i}_from": m for i, m in zip(self._rows, means, strict=True)}
        self._measured["teacher_layers"] = (-surprise).exp().mean().detach()
        found = {n: self.weight * turns @ (shares * table).sum(1) for n, table in tables.items()}
        pull = self.evenness * total.detach().mean(1) * (surprise + math.log(shares.shape[1]))
        return found | {"evenness": self.weight * turns @ pull}

    def measures(self) -> dict[str, Tensor]:
        """Return how much each layer counts, and what a learned mapping has learned."""
        return self._measured


def layers_of(model: nn.Module) -> tuple[str, ...]:
    """Return the paths of a model's layers, the lowest first.

    Raises:
        ValueError: no layers under a known name.
    """
    known = modules_of(model)
    for form, first in FAMILIES:
        found = tuple(takewhile(known.__contains__, map(form.format, count(first))))
        if found:
            return found
    names = ", ".join(form.format(first) for form, first in FAMILIES)
    raise ValueError(
        f"layers: {type(model).__name__} has none of {names}, so its layers cannot be counted; "
        "name them so, or use Hints(layers={...}), which takes any path"
    )


def layer_rows(mapping: LayerMapping, student: int, teacher: int) -> dict[int, tuple[int, ...]]:
    """Return which of the ``teacher`` layers teach each of the ``student`` layers, by number.

    Raises:
        ValueError: a layer that a model does not have.
    """
    if isinstance(mapping, str):
        return MAPPINGS[mapping](student, teacher)
    for who, depth, numbers in (
        ("student", student, mapping.keys()),
        ("teacher", teacher, mapping.values()),
    ):
        wrong = [number for number in numbers if not 0 <= number < depth]
        if wrong:
            raise ValueError(
                f"mapping: layer {wrong[0]} of the {who}, expected 0 to {depth - 1}: it has {depth}"
            )
    return {i: (mapping[i],) for i in sorted(mapping)}


def uniform(student: int, teacher: int) -> dict[int, tuple[int, ...]]:
    """Return the teacher's layers at even distances, its last for the student's last."""
    return {i: (-(-(i + 1) * teacher // student) - 1,) for i in range(student)}


def last(student: int, teacher: int) -> dict[int, tuple[int, ...]]:
    """Return the last layer for the last."""
    return {student - 1: (teacher - 1,)}


def every(student: int, teacher: int) -> dict[int, tuple[int, ...]]:
    """Return all layers for each."""
    return {i: tuple(range(teacher)) for i in range(student)}


MAPPINGS: dict[str, Callable[[int, int], dict[int, tuple[int, ...]]]] = {
    "uniform": uniform,
    "last": last,
    "learned": every,
}


def all_alike(layers: int, progress: float) -> list[float]:
    """Return the same weight for each layer."""
    return [1 / layers] * layers


def climbing(layers: int, progress: float) -> list[float]:
    """Return weights around one layer, which rises from the lowest to the highest.

    Layer i alone has the weight 1 at the middle of its turn, (i + ½) / layers of the run.
    """
    now = min(max(progress * layers - 0.5, 0.0), layers - 1.0)
    return [max(0.0, 1 - abs(i - now)) for i in range(layers)]


SCHEDULES: dict[str, Callable[[int, float], list[float]]] = {
    "all": all_alike,
    "climb": climbing,
}


def as_tokens(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as token vectors ``[B, N, d]`` of one N; the places of a map are its tokens.

    Of two maps the larger is pooled to the size of the smaller, and both to 8×8 at most; a map
    beside tokens is brought to their number, if that is a square.

    Raises:
        ValueError: neither tokens nor maps, or numbers of tokens that differ.
    """
    if student.dim() == teacher.dim() == 4:
        student, teacher = match_size(student, teacher)
        size = tuple(min(side, MOST_PLACES) for side in student.shape[2:])
        student, teacher = resize(student, size), resize(teacher, size)
    mine, theirs = _places(student, teacher), _places(teacher, student)
    if mine.dim() != 3 or theirs.dim() != 3:
        raise ValueError("expected tokens [B, N, d] or feature maps [B, c, h, w]")
    if mine.shape[1] != theirs.shape[1]:
        raise ValueError(
            "expected equally many tokens: do both cut the input in the same way (a transformer of "
            "images by its patch)?"
        )
    return mine, theirs


def _places(features: Tensor, other: Tensor) -> Tensor:
    """Return a map as tokens, as many as the other has if those make a square."""
    if features.dim() != 4:
        return features
    if other.dim() == 3:
        side = math.isqrt(other.shape[1])
        features = resize(features, (side, side))
    return features.flatten(2).mT


def _comparable(part: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if part != "scores":
        return as_tokens(student, teacher)
    if student.shape[1:] != teacher.shape[1:]:
        what = "heads" if student.shape[1] != teacher.shape[1] else "tokens"
        raise ValueError(
            f"expected equally many {what}, since scores [B, h, N, N] are compared one by one; "
            "SelfAttentionRelations needs no equal heads"
        )
    return student, teacher


def _check_paths(who: str, model: nn.Module, paths: Sequence[str]) -> None:
    known = modules_of(model)
    for path in paths:
        if path.removesuffix(":input") not in known:
            raise ValueError(
                f"{who}: {type(model).__name__} has no {path!r}, so no attention to compare; "
                'HiddenStates() or SelfAttentionRelations(("hidden",)) read what any layer gives'
            )
