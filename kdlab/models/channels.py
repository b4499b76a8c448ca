"""Which channels of a model belong together, wherever they flow, and which matter most."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import accumulate, chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdlab.models.flow import Flow
from kdlab.models.modes import evaluating

UNKNOWN = -1.0  # the importance of a channel of which the measure says nothing


class Channels:
    """The channels of a model's weights, and the groups in which they come.

    A *group* is a set of channels that lie along the very same axes, such as the outputs of one
    convolution, or all that one stage of a residual network adds up. Channels are numbered group
    by group, and within a group in the order in which the weights hold them.

    Args:
        model: any module; it runs once, in eval mode without gradients, and stays as it was.
        example: inputs for that forward, on the model's device.
        modes: values of ``training`` in which the forward is followed (statistics move in train
            mode); then what no forward reads is fixed. Empty: one forward in eval mode.
        tied: see `Flow`.

    Attributes:
        tensors: parameters and buffers by their dotted names.
        count: how many channels there are.
        groups: the channels of each group, as a range of numbers.
        fixed: groups of which none can be left out, and why.
        writers: the (name, axis) whose positions are filters: each writes one channel.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        *,
        modes: Sequence[bool] = (),
        tied: bool = False,
    ) -> None:
        state = model.state_dict(keep_vars=True)
        self.tensors = {name: t for name, t in state.items() if isinstance(t, Tensor)}
        flow = _follow(model, Flow(self.tensors.values(), tied=tied), example, modes)
        if modes:
            unread = [tensor for tensor in self.tensors.values() if id(tensor) not in flow.read]
            flow.fix_all(unread, "no forward reads it")
        born = {name: flow.born[id(tensor)] for name, tensor in self.tensors.items()}
        united = {name: [flow.find(line) for line in lines] for name, lines in born.items()}
        axes: defaultdict[int, list[int]] = defaultdict(list)
        for number, line in enumerate(line for lines in united.values() for line in lines):
            for channel in line.unique().tolist():
                axes[channel].append(number)
        members: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for channel in sorted(axes):
            members[tuple(axes[channel])].append(channel)
        number_of = torch.zeros(len(flow.parent), dtype=torch.long)
        number_of[torch.tensor(list(chain(*members.values())), dtype=torch.long)] = torch.arange(
            len(axes)
        )
        ends = list(accumulate(map(len, members.values())))
        self.count = len(axes)
        self.groups = list(map(range, [0, *ends], ends))
        self._group_of = [group for group, range_ in enumerate(self.groups) for _ in range_]
        self._lines = {name: [number_of[line] for line in lines] for name, lines in united.items()}
        self.fixed = {
            group: why
            for line, why in flow.fixed
            for group in self.groups_along(number_of[flow.find(line)])
        }
        self.writers = [
            (name, axis)
            for name, lines in born.items()
            for axis, line in enumerate(lines)
            if len(lines) > 1 and bool(flow.writes[line].all())
        ]

    def along(self, name: str, axis: int) -> Tensor:
        """The channel's number at each position of an axis, [n] int64."""
        return self._lines[name][axis]

    def groups_along(self, line: Tensor) -> list[int]:
        """The groups of these channels, in the order in which they first occur."""
        return list(dict.fromkeys(self._group_of[number] for number in line.tolist()))


def _follow(model: nn.Module, flow: Flow, example: Tensor, modes: Sequence[bool]) -> Flow:
    with evaluating(model), torch.no_grad():
        for training in modes or (False,):
            if training:
                model.train()
            given = example.clone()  # a forward may write into it
            with flow:
                output = model(given)
            known = isinstance(output, Tensor | tuple | list | dict)
            flow.fix_all(
                output if known else vars(output), "the number of classes decides this size"
            )
    return flow


def _l1(channels: Channels, model: nn.Module) -> Tensor:
    scores = torch.full([channels.count], UNKNOWN, dtype=torch.float64)
    for name, axis in channels.writers:
        weight = channels.tensors[name].cpu().double()
        norms = weight.abs().movedim(axis, 0).flatten(1).sum(1)
        _add(scores, channels.along(name, axis), norms)
    return scores


def _batch_norm(channels: Channels, model: nn.Module) -> Tensor:
    scores = torch.full([channels.count], UNKNOWN, dtype=torch.float64)
    for path, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.affine:
            name = f"{path}.weight" if path else "weight"
            _add(scores, channels.along(name, 0), module.weight.abs())
    return scores


def _random(channels: Channels, model: nn.Module) -> Tensor:
    return torch.rand(channels.count)


def _add(scores: Tensor, line: Tensor, values: Tensor) -> None:
    scores[line] = scores[line].clamp(min=0)
    scores.index_add_(0, line, values.to(scores))


IMPORTANCE: dict[str, Callable[[Channels, nn.Module], Tensor]] = {
    "l1": _l1,
    "batch_norm": _batch_norm,
    "random": _random,
}
