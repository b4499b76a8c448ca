"""A student that begins with weights of its teacher: some of its blocks, some of its channels."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kdlab.models.blocks import BLOCKS, join, pair_layers, parts_of
from kdlab.models.channels import IMPORTANCE, UNKNOWN, Channels
from kdlab.models.modes import inputs_for, uncompiled
from kdlab.models.taps import COMPILED
from kdlab.words import check_known

ADVICE = (
    "choose a student that differs from its teacher in width and depth alone, or let such layers "
    "keep their start with strict=False"
)


@dataclass(frozen=True)
class Inheritance:
    """What a student took from its teacher; printed, it shows one line per layer.

    Attributes:
        layers: for each of the student's layers the teacher's layer that it was taken from.
        channels: which of that layer's outputs, [n] int64, ascending.
        out_of: how many outputs that layer has.
        left: the student's layers that keep the start they had, and why.
        unused: the teacher's layers from which nothing was taken.
    """

    layers: dict[str, str] = field(default_factory=dict)
    channels: dict[str, Tensor] = field(default_factory=dict)
    out_of: dict[str, int] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{layer} <- {source}: {len(self.channels[layer])} of {self.out_of[layer]}"
            for layer, source in self.layers.items()
        ]
        lines += [f"{layer} keeps its start: {why}" for layer, why in self.left.items()]
        return "\n".join(lines)


@torch.no_grad()
@uncompiled()
def inherit(
    student: nn.Module,
    teacher: nn.Module,
    example: Tensor,
    *,
    importance: str = "l1",
    blocks: str = "spread",
    strict: bool = True,
) -> Inheritance:
    """Start a student with weights of its teacher, in place.

    *Which layer.* Layers are found by their paths. Where a row of blocks (a Sequential or
    ModuleList) is shorter in the student, `blocks` says which of the t teacher blocks the s
    student blocks take; where that one does not fit (it has a projection that the student's has
    not, or the first layer's inputs), the nearest that does.

    - "spread": evenly from the first to the last, block i takes round(i · (t - 1) / (s - 1));
      12 to 6 gives 0, 2, 4, 7, 9, 11, as in the released code of DistilBERT.
    - "every": every (t / s)-th from the first on: 12 to 6 gives 0, 2, 4, 6, 8, 10.
    - "first", "last": the first or the last s.

    *Which channels.* Where the student is narrower, the most important channels of the teacher
    are kept, in the teacher's order, and the same ones wherever they flow: batch norm with its
    statistics, the next layer's inputs, everything that residual additions tie together, depthwise
    filters, a flattened map. `Channels` finds that by following one forward of each model.

    - "l1": the sum of the absolute weights of all filters that write the channel.
    - "batch_norm": the sum of |scale| over all batch norms that the channel goes through.
    - "random": drawn from PyTorch's global random numbers; the control.

    Nothing is rescaled. With fewer inputs a sum is smaller, and the running statistics of batch
    norms, taken from the teacher, do not fit until the first steps in training mode have renewed
    them: the outcome is a start for training, not a smaller model that works. Where a network has
    no shortcuts, a block that is left out leaves its neighbours with channels that mean something
    else. If both models are alike in everything, the student becomes a copy of the teacher.

    Args:
        student: is changed only if everything fits.
        teacher: has the same kind of layers at the same paths, at least as wide and as deep.
        example: inputs `[B, ...]` for one forward of each model; their values do not matter.
        importance: l1, batch_norm or random.
        blocks: spread, every, first or last.
        strict: if False, layers that have no counterpart, or one of a shape that does not fit,
            keep the start they have and are listed in the report.

    Raises:
        ValueError: an unknown option; a layer without a counterpart, or of another shape than
            leaving out channels can explain (with both names and shapes); nothing that fits.

    Sources: blocks: Sanh, Debut, Chaumond, Wolf, DistilBERT, a distilled version of BERT, 2019,
    arXiv 1910.01108. L1 norm: Li, Kadav, Durdanovic, Samet, Graf, Pruning filters for efficient
    ConvNets, 2016, arXiv 1608.08710. Batch norm's scale: Liu, Li, Shen, Huang, Yan, Zhang, Learning
    efficient convolutional networks through network slimming, 2017, arXiv 1708.06519. Compared in
    lesson 02.
    """
    check_known("importance", importance, IMPORTANCE)
    check_known("blocks", blocks, BLOCKS)
    student, teacher = (getattr(model, COMPILED, model) for model in (student, teacher))
    mine, theirs = (Channels(model, inputs_for(model, example)) for model in (student, teacher))
    scores = IMPORTANCE[importance](theirs, teacher).cpu()

    def fits(path: str, source: str) -> bool:
        try:
            for name in mine.tensors:
                if name.startswith(f"{path}."):
                    _places(mine, name, theirs, _renamed(name, path, source), scores)
        except _Misfit:
            return False
        return True

    sources = pair_layers(student, teacher, blocks, fits)
    report = Inheritance()
    values: dict[str, Tensor] = {}
    for layer, names in _layers(mine).items():
        try:
            if layer not in sources:
                raise _Misfit(_missing(layer, sources, teacher))
            source = sources[layer]
            places = {
                n: _places(mine, n, theirs, _renamed(n, layer, source), scores) for n in names
            }
        except _Misfit as misfit:
            if strict:
                raise ValueError(f"student: {misfit}; {ADVICE}") from None
            report.left[layer] = str(misfit)
            continue
        for name, axes in places.items():
            value = theirs.tensors[_renamed(name, layer, source)]
            for axis, kept in enumerate(axes):
                value = value.index_select(axis, kept.to(value.device))
            values[name] = value
        report.layers[layer] = source
        first = theirs.tensors[_renamed(names[0], layer, source)]
        report.out_of[layer] = len(first) if first.dim() else 1
        report.channels[layer] = places[names[0]][0] if first.dim() else torch.arange(1)
    if not values:
        raise ValueError("student: none of its layers has a counterpart in the teacher; " + ADVICE)
    for name, value in values.items():
        mine.tensors[name].copy_(value)
    report.unused.extend(layer for layer in _layers(theirs) if layer not in report.layers.values())
    return report


class _Misfit(Exception):
    """Why a layer cannot be taken from the teacher."""


def _missing(layer: str, sources: dict[str, str], teacher: nn.Module) -> str:
    near = layer
    while near not in sources:
        near = near.rpartition(".")[0]
    place = teacher.get_submodule(sources[near])
    has = f"the parts {', '.join(parts_of(place))}" if parts_of(place) else "no parts"
    where = sources[near] or "the model"
    kind = type(place).__name__
    return f"{layer} has no counterpart: in the teacher {where} is a {kind} with {has}"


def _places(
    mine: Channels, name: str, theirs: Channels, source: str, scores: Tensor
) -> list[Tensor]:
    """Which positions of each axis of a teacher's tensor the student's tensor takes."""
    small, large = mine.tensors[name], theirs.tensors.get(source)
    if large is None:
        raise _Misfit(f"{name} has no counterpart in the teacher, which has no {source}")
    shapes = f"{name} is {list(small.shape)}, the teacher's {source} is {list(large.shape)}"
    if small.dim() != large.dim():
        raise _Misfit(f"{shapes}: another kind of layer")
    try:
        return [
            _positions(mine, mine.along(name, axis), theirs, theirs.along(source, axis), scores)
            for axis in range(small.dim())
        ]
    except _Misfit as misfit:
        raise _Misfit(f"{shapes}: {misfit}") from None


def _positions(
    mine: Channels, here: Tensor, theirs: Channels, there: Tensor, scores: Tensor
) -> Tensor:
    """Which positions of a teacher's axis remain when its groups shrink to the student's."""
    pairs = list(zip(mine.groups_along(here), theirs.groups_along(there), strict=False))
    heir = torch.full([theirs.count], -1)  # the student's channel for each of the teacher's
    for small, large in pairs:
        wanted, given = mine.groups[small], theirs.groups[large]
        if len(wanted) != len(given):
            for reason in (mine.fixed.get(small), theirs.fixed.get(large)):
                if reason:
                    raise _Misfit(f"{len(wanted)} for {len(given)}, but {reason}")
        if len(wanted) > len(given):
            raise _Misfit(f"the student is wider, {len(wanted)} channels for {len(given)}")
        heir[_best(scores, given, len(wanted))] = torch.tensor(wanted)
    kept = (heir[there] >= 0).nonzero().flatten()
    if not torch.equal(heir[there][kept], here):
        raise _Misfit("channels are laid out in another way; is a map of another size flattened?")
    return kept


def _best(scores: Tensor, group: range, count: int) -> Tensor:
    """The numbers of the most important channels of a group, ascending."""
    own = scores[group.start : group.stop]
    if count < len(group) and bool((own == UNKNOWN).any()):
        raise _Misfit("no layer that this importance is read from; choose another importance")
    return group.start + own.argsort(descending=True, stable=True)[:count].sort().values


def _layers(channels: Channels) -> dict[str, list[str]]:
    """The names of the tensors that each layer owns."""
    layers: dict[str, list[str]] = {}
    for name in channels.tensors:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    return layers


def _renamed(name: str, layer: str, source: str) -> str:
    return join(source, name.removeprefix(layer).removeprefix("."))
