"""One network for many budgets: narrow networks inside a wide one, sharing its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from kdlab.compression.kinds import check_kinds
from kdlab.compression.shapes import fit_weights
from kdlab.compression.verification import (
    check_finite,
    check_open,
    copied,
    expect,
    misses,
    naming,
    place,
)
from kdlab.datasets import Data
from kdlab.distillers import Distiller, Labels
from kdlab.distillers.base import Outputs, Wrapper
from kdlab.losses import soft_target_loss
from kdlab.metrics import cost, evaluate
from kdlab.models import logits_of
from kdlab.models.channels import Channels
from kdlab.models.modes import evaluating, unwrapped
from kdlab.training import predict
from kdlab.words import check_known

WIDTHS = (0.25, 0.5, 0.75, 1.0)


class Nested(nn.Module):
    """A model that also answers with only the first channels of each of its layers.

    `nested(inputs)` gives logits `[B, C]` at `nested.width`, which may be set at any time;
    `nested.at(width, inputs)` gives those of any width. All widths share the weights of the
    widest. Each has batch-norm statistics of its own, because what a layer reads differs with the
    number of channels that wrote it. Train it with ``fit(nested, data, Sandwich())``, then call
    ``nested.recalibrate``.

    Args:
        model: any model of images of the course, or another whose channels can be followed; it
            becomes the widest network and is trained in place.
        example: inputs `[B, ...]` for one forward.
        widths: shares of the channels, above 0, the largest 1. Of n channels a width w keeps the
            first ⌈w · n⌉, in each group of channels that belong together; where channels cannot be
            left out, as between the heads of attention, all.

    Raises:
        ValueError: widths out of range, fewer than two, or without 1; a model of which nothing can
            be left out.

    Sources: Yu, Yang, Xu, Yang, Huang, Slimmable neural networks, 2018, arXiv:1812.08928; Yu,
    Huang, Universally slimmable networks and improved training techniques, 2019,
    arXiv:1903.05134.
    """

    @torch.inference_mode(False)
    def __init__(self, model: nn.Module, example: Tensor, widths: Sequence[float] = WIDTHS) -> None:
        super().__init__()
        check_open(model)
        check_finite(model, "at the start")
        check_kinds(example=example)
        model = unwrapped(model)
        self.widths = tuple(sorted(set(widths)))
        if len(self.widths) < 2 or self.widths[0] <= 0 or self.widths[-1] != 1:
            raise ValueError(f"widths: {widths!r} came, expected shares above 0, such as {WIDTHS}")
        self.model = model
        self.width = 1.0
        expected = expect(model, example)
        with naming("Nested"), torch.random.fork_rng():
            channels = Channels(copied(model), expected.example, modes=tuple(expected.shapes))
        self._kept = {width: _kept(channels, width) for width in self.widths[:-1]}
        if not any(self._kept[self.widths[0]].values()):
            raise ValueError(
                f"model: got a {type(model).__name__}, but no channel of it can be left out, so "
                "all widths are the same; expected layers whose size the forward leaves open"
            )
        norms = [path for path, m in model.named_modules() if isinstance(m, _BatchNorm)]
        self._statistics = [n for n, _ in model.named_buffers() if n.rpartition(".")[0] in norms]
        for width in self.widths[:-1]:
            for name in self._statistics:
                self.register_buffer(_own(name, width), self._cut(name, width).clone())
        for width in self.widths[:-1]:
            self.width = width
            if broken := misses(self, expected):
                raise ValueError(
                    f"model: got layers that cannot be narrower ({broken[1]} at width {width:g}, "
                    f"{place(broken[0])}), expected a forward that works with fewer channels; "
                    "replace this layer"
                )
        self.width = 1.0

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `[B, C]` at `self.width`."""
        return self.at(self.width, inputs)

    def at(self, width: float, inputs: Tensor) -> Tensor:
        """Logits `[B, C]` at one of the widths.

        Raises:
            ValueError: a width that there is not.
        """
        self._check(width)
        if width == 1:
            return self.model(inputs)
        with self._groups(width):
            return functional_call(self.model, self._weights(width), (inputs,))

    def subnetwork(self, width: float) -> nn.Module:
        """A model of its own, as small as its width, in eval mode: to measure, ship or train.

        Raises:
            ValueError: a width that there is not.
        """
        self._check(width)
        alone = copied(self.model)
        if width != 1:
            weights = self._weights(width)
            fit_weights(alone, {name: weight.detach() for name, weight in weights.items()})
        return alone.eval()

    @torch.no_grad()
    def recalibrate(self, images: Tensor, batch_size: int = 128) -> None:
        """Set the batch-norm statistics of each width to means over `images`, `[N, ...]`.

        Those from training lag behind the weights, and narrow networks suffer most. Take training
        images, never test ones. All batches count the same, so an N that the batch size divides is
        best.

        Raises:
            ValueError: no images.
        """
        if len(images) == 0:
            raise ValueError("images: none came, expected at least one, [N, ...]")
        norms = [module for module in self.model.modules() if isinstance(module, _BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        stored = [self._stored(name, w) for w in self.widths for name in self._statistics]
        before = [tensor.clone() for tensor in stored]
        try:
            with evaluating(self):
                for norm in norms:
                    norm.momentum = None  # then the statistics are means over all batches
                    norm.train()
                for tensor in stored:
                    tensor.zero_()  # the number of batches too
                for width in self.widths:
                    for chunk in images.split(batch_size):
                        self.at(width, chunk)
        except BaseException:
            for tensor, value in zip(stored, before, strict=True):
                tensor.copy_(value)
            raise
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum

    def _check(self, width: float) -> None:
        check_known("width", f"{width:g}", [f"{known:g}" for known in self.widths])

    def _cut(self, name: str, width: float) -> Tensor:
        tensor = _tensor(self.model, name)
        for axis, places in self._kept[width][name].items():
            tensor = tensor.index_select(axis, places.to(tensor.device))
        return tensor

    def _stored(self, name: str, width: float) -> Tensor:
        return self.model.get_buffer(name) if width == 1 else self.get_buffer(_own(name, width))

    def _weights(self, width: float) -> dict[str, Tensor]:
        own = {name: self._stored(name, width) for name in self._statistics}
        return {name: own[name] if name in own else self._cut(name, width) for name in self._names}

    @property
    def _names(self) -> list[str]:
        state = self.model.state_dict()
        return [name for name, value in state.items() if isinstance(value, Tensor)]

    @contextmanager
    def _groups(self, width: float) -> Iterator[None]:
        """Depthwise convolutions have as many groups as there are channels."""
        grouped = {
            path: module
            for path, module in self.model.named_modules()
            if isinstance(module, nn.Conv2d) and module.groups > 1
        }
        before = {path: module.groups for path, module in grouped.items()}
        try:
            for path, module in grouped.items():
                places = self._kept[width][f"{path}.weight"].get(0)
                if places is not None:
                    module.groups = len(places) * before[path] // module.out_channels
            yield
        finally:
            for path, module in grouped.items():
                module.groups = before[path]


class Sandwich(Wrapper):
    """In-place distillation: the widest network teaches the narrow ones, in each step.

    The widest learns by a method of its own. The narrowest and some widths between, drawn anew for
    each step, learn the widest's answers: KL(widest ‖ narrow) at temperature 1, without labels,
    and without a gradient into the widest's answers.

    Args:
        widest: how the widest learns; None takes ``Labels()``. With ``SoftTargets()`` a teacher
            distils into the widest, and the widest into all others.
        between: how many widths between are drawn in each step; with fewer there are, all. The
            paper draws 2.

    Raises:
        ValueError: a negative number, or (in training) a student that is not ``Nested``.

    Source: Yu, Huang, Universally slimmable networks and improved training techniques, 2019,
    arXiv:1903.05134.
    """

    def __init__(self, widest: Distiller | None = None, between: int = 1) -> None:
        super().__init__(Labels() if widest is None else widest)
        if isinstance(between, bool) or not isinstance(between, int) or between < 0:
            raise ValueError(f"between: {between!r} came, expected a whole number from 0 on")
        self.between = between
        self._student: tuple[Nested, ...] = ()

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Any) -> None:
        """Remember the student, of which other widths will be asked."""
        if not isinstance(student, Nested):
            raise ValueError(
                f"student: a {type(student).__name__} came, expected Nested(model, example)"
            )
        self._student = (student,)  # in a tuple: its weights are not this method's
        super().prepare(student, teacher, train)

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the widest's terms, ``narrowest`` and, with widths between, ``between``."""
        (nested,), (widest,) = self._student, self._parts
        terms = dict(widest(student, teacher, targets))
        assert student.inputs is not None
        losses = []
        for width in self._drawn(nested.widths[:-1]):
            logits = logits_of(nested.at(width, student.inputs), "student").float()
            losses.append(soft_target_loss(logits, student.logits, temperature=1.0))
        terms["narrowest"] = losses[0]
        if losses[1:]:
            terms["between"] = torch.stack(losses[1:]).sum()
        return terms

    def _drawn(self, narrow: Sequence[float]) -> list[float]:
        order = torch.randperm(len(narrow) - 1)[: self.between].tolist()
        return [narrow[0], *(narrow[1 + number] for number in order)]


def compare_widths(nested: Nested, data: Data, example: Tensor, **options: Any) -> pd.DataFrame:
    """Accuracy and cost of each subnetwork, one row a width, from narrow to wide.

    Choose by ``val_accuracy``; ``test_accuracy`` is for the report of what was chosen.

    Args:
        nested: trained and recalibrated.
        data: validation and test samples.
        example: inputs ``[B, ...]`` for the cost.
        options: of ``kdlab.metrics.cost``, such as ``threads`` or ``watts``.

    Raises:
        ValueError: no data set, what ``cost`` raises.
    """
    check_kinds(data=data)
    rows = []
    for width in nested.widths:
        alone = nested.subnetwork(width)
        scores = {
            f"{part}_accuracy": evaluate(predict(alone, split.x), split.y)["accuracy"]
            for part, split in (("val", data.val), ("test", data.test))
        }
        rows.append({"width": width, **scores, **asdict(cost(alone, example, **options))})
    return pd.DataFrame(rows)


def pick(table: pd.DataFrame, by: str = "val_accuracy", **at_most: float) -> pd.Series[Any]:
    """The best row of those within a budget.

    Args:
        table: one row for each model, such as ``compare_widths`` gives.
        by: the column that should be high; of equal rows the first wins.
        at_most: column = the most it may be, such as ``latency_ms=1.0`` or ``bytes=50_000``.

    Raises:
        ValueError: a column that the table has not; a budget that no row keeps.
    """
    for column in (by, *at_most):
        check_known("column", column, map(str, table.columns))
    within = table
    for column, most in at_most.items():
        within = within[within[column] <= most]
        if within.empty:
            raise ValueError(
                f"{column}: nothing within the budget needs at most {most:g}; the least of all is "
                f"{table[column].min():g}"
            )
    return within.sort_values(by, ascending=False, kind="stable").iloc[0]


def _kept(channels: Channels, width: float) -> dict[str, dict[int, Tensor]]:
    """For each tensor the axes on which something is left out, and the places that stay."""
    keep = torch.ones(channels.count, dtype=torch.bool)
    for number, group in enumerate(channels.groups):
        if number not in channels.fixed:
            keep[group.start + math.ceil(width * len(group)) : group.stop] = False
    places = {
        name: [keep[channels.along(name, axis)] for axis in range(tensor.dim())]
        for name, tensor in channels.tensors.items()
    }
    return {
        name: {axis: stay.nonzero()[:, 0] for axis, stay in enumerate(axes) if not stay.all()}
        for name, axes in places.items()
    }


def _own(name: str, width: float) -> str:
    return f"{name}_at_{width:g}".replace(".", "_")


def _tensor(model: nn.Module, name: str) -> Tensor:
    path, _, own = name.rpartition(".")
    return getattr(model.get_submodule(path), own)
