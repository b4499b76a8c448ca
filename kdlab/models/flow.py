"""Follows a forward operation by operation and notes which channels meet.

A channel is one position on an axis of a weight: a filter of a convolution, a unit of a Linear
layer. What meets in the forward is one channel: a filter's output, the batch norm's scale and
statistics for it, the weights of the next layer that read it, whatever a residual addition adds to
it. Whoever keeps or drops a channel has to keep or drop it in all these places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

Line = Tensor | None  # the channel at each position of one axis, [n] int64; None: no channels
Lines = tuple[Line, ...]  # one per axis of a tensor
NOTHING = 0  # the channel number of a position that holds no channel, such as padding

INPUT = "what enters here is no choice of channels"
KERNEL = "the size of a kernel is no choice of channels"


class Flow(TorchDispatchMode):
    """Sees each operation of a forward and says which channels its result has on which axis.

    Every position of every axis of every weight begins as a channel of its own; operations unite
    them. ``parent`` is the union-find forest.

    Args:
        weights: whose channels are followed.
        tied: where an operation takes channels in blocks of one size (a group norm, a grouped
            convolution, the heads of attention), unite those at the same position of each block, so
            that all blocks lose the same ones; else they all stay.
    """

    def __init__(self, weights: Iterable[Tensor], *, tied: bool = False) -> None:
        super().__init__()
        self.tied = tied
        self.read: set[int] = set()  # ids of tensors that entered an operation
        self.born: dict[int, list[Tensor]] = {}
        count = NOTHING + 1
        for weight in weights:
            if id(weight) not in self.born:
                starts = [count + sum(weight.shape[:axis]) for axis in range(weight.dim())]
                sides = zip(starts, weight.shape, strict=True)
                self.born[id(weight)] = [torch.arange(start, start + n) for start, n in sides]
                count += sum(weight.shape)
        self.parent = torch.arange(count)
        self.writes = torch.zeros(count, dtype=torch.bool)
        self.fixed: list[tuple[Tensor, str]] = []
        self.lines: dict[int, Lines] = {key: tuple(lines) for key, lines in self.born.items()}
        self.alive: list[Any] = []  # an id is unique only among tensors that live

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation, then follow it."""
        kwargs, name = kwargs or {}, func.overloadpacket.__name__.rstrip("_")
        moves = func.is_view or name in MOVES
        rule = _pointwise if torch.Tag.pointwise in func.tags else RULES.get(name)
        if "batch_norm" in name:  # its name depends on the device
            rule = _norm
        if not moves and rule is None:
            with self:  # some arrive whole that are made of others, as under inference_mode
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        entering = [line for tensor in _tensors((args, kwargs)) for line in self.of(tensor)]
        self.read.update(map(id, _tensors((args, kwargs))))
        if any(line is not None for line in entering):
            self.alive.append(out)
            results = _tensors(out)
            if moves:
                found = _move(self, func, args, kwargs)
            else:  # results after the first are statistics or places
                found = [(rule or _unknown)(self, func, args, kwargs, r) for r in results[:1]]
            self.lines |= {id(tensor): lines for tensor, lines in zip(results, found, strict=False)}
        return out

    def of(self, tensor: Tensor) -> Lines:
        """The channels on each axis of a tensor."""
        return self.lines.get(id(tensor), (None,) * tensor.dim())

    def find(self, line: Tensor) -> Tensor:
        """The channel that stands for each one's union."""
        top = line
        while not torch.equal(up := self.parent[top], top):
            top = up
        self.parent[line] = top
        return top

    def unite(self, a: Line, b: Line, why: str) -> Line:
        """Make the channels at equal positions one; where only one side has any, fix them."""
        if a is None or b is None:
            self.fix(a if b is None else b, why)
            return None
        both = (a != NOTHING) & (b != NOTHING)
        x, y = a[both], b[both]
        while True:
            x, y = self.find(x), self.find(y)
            apart = x != y
            if not apart.any():
                return torch.where(a == NOTHING, b, a)
            # A channel that occurs twice takes one of its unions now and the others next time.
            x, y = x[apart], y[apart]
            self.parent[torch.maximum(x, y)] = torch.minimum(x, y)

    def unite_all(self, lines: Sequence[Line], why: str) -> Line:
        """Unite several lines, one after the other."""
        return reduce(lambda a, b: self.unite(a, b, why), lines)

    def fix(self, line: Line, why: str) -> None:
        """Note that no channel of this axis can be left out."""
        if line is not None:
            self.fixed.append((line[line != NOTHING], why))

    def tie(self, line: Line, blocks: int, why: str) -> None:
        """Let all blocks of an axis keep the same positions, or else all channels."""
        if line is None or not self.tied or (line == NOTHING).any():
            self.fix(line, why)
        else:
            self.unite_all(list(line.reshape(blocks, -1)), why)

    def fix_all(self, tensors: Any, why: str) -> None:
        """Note it for all axes of all these tensors."""
        for tensor in _tensors(tensors):
            for line in self.of(tensor):
                self.fix(line, why)


Rule = Callable[[Flow, Any, Sequence[Any], dict[str, Any], Tensor], Lines]


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _pointwise(f: Flow, func: Any, args: Any, kwargs: Any, out: Tensor) -> Lines:
    """Each position meets the same position of the others; a side of 1 is spread over all."""
    lines: list[Line] = []
    for axis in range(-out.dim(), 0):
        meeting = [
            f.of(tensor)[axis]
            for tensor in _tensors((args, kwargs))
            if tensor.dim() >= -axis and tensor.shape[axis] == out.shape[axis]
        ]
        lines.append(f.unite_all(meeting, f"{func} meets its channels with something else"))
    return tuple(lines)


def _move(f: Flow, func: Any, args: Any, kwargs: Any) -> list[Lines]:
    """Values change places and nothing else, so the channels' numbers go the same way.

    The lines of each result, of which split and its kin have several.
    """
    source, *rest = tree_map(lambda v: v.cpu() if isinstance(v, Tensor) else v, list(args))
    results: list[list[Line]] = []
    for axis, line in enumerate(f.of(args[0])):
        if line is None:
            line = torch.full([source.shape[axis]], NOTHING)
        numbers = line.view([-1 if a == axis else 1 for a in range(source.dim())])
        numbers = torch.empty_like(source, dtype=torch.long).copy_(numbers)  # views ask for strides
        moved = _tensors(func(numbers, *rest, **kwargs))
        results = results or [[None] * part.dim() for part in moved]
        if (
            func.overloadpacket.__name__ in BETWEEN
            and not torch.isin(line, moved[0].unique()).all()
        ):
            f.fix(line, "the forward takes channels between bounds that it writes as numbers")
        for lines, part in zip(results, moved, strict=True):
            varying = [a for a in range(part.dim()) if (part != part.narrow(a, 0, 1)).any()]
            if len(line) == 1:  # a single channel shows by the size of its axis alone
                single = [a for a in range(part.dim()) if part.shape[a] == 1]
                varying = [axis] if axis in single else single[:1]
            if len(varying) == 1 and lines[varying[0]] is None:
                others = tuple(slice(None) if a == varying[0] else 0 for a in range(part.dim()))
                lines[varying[0]] = part[others]
            elif (
                f.tied
                and (inner := _inner(part, varying)) is not None
                and (lines[varying[-1]] is None)
            ):
                f.unite_all(list(inner), INPUT)
                lines[varying[-1]] = inner[0]
            else:
                f.fix(part.unique(), f"{func} spreads its channels over several axes")
    return [tuple(lines) for lines in results]


def _inner(part: Tensor, varying: list[int]) -> Tensor | None:
    """Channels that a view cut into blocks, [blocks, size], if nothing else is on these axes."""
    if len(varying) < 2:
        return None
    kept = part[tuple(slice(None) if axis in varying else 0 for axis in range(part.dim()))]
    inner = kept.reshape(-1, kept.shape[-1])
    whole = len(inner.unique()) == inner.numel() and NOTHING not in inner
    return inner if whole and bool((inner.diff(dim=1) > 0).all()) else None


def _cat(f: Flow, func: Any, args: Any, kwargs: Any, out: Tensor) -> Lines:
    """Channels stand in a row on the axis that grows, and meet on the others."""
    tensors = [tensor for tensor in args[0] if tensor.dim() == out.dim()]
    grows = (args[1] if len(args) > 1 else 0) % out.dim()
    result: list[Line] = []
    for axis in range(out.dim()):
        lines = [f.of(tensor)[axis] for tensor in tensors]
        if axis == grows:
            known = any(line is not None for line in lines)
            sides = [torch.full([t.shape[axis]], NOTHING) for t in tensors]
            row = [s if line is None else line for s, line in zip(sides, lines, strict=True)]
            result.append(torch.cat(row) if known else None)
        else:
            result.append(f.unite_all(lines, f"{func} lines them up with something else"))
    return tuple(result)


def _pad(f: Flow, func: Any, args: Any, kwargs: Any, out: Tensor) -> Lines:
    lines = list(f.of(args[0]))
    for axis, sides in enumerate(zip(args[1][::2], args[1][1::2], strict=True), start=1):
        line = lines[-axis]
        lines[-axis] = None if line is None else nn.functional.pad(line, sides, value=NOTHING)
    return tuple(lines)


def _same(f: Flow, func: Any, args: Any, kwargs: Any, out: Tensor) -> Lines:
    return f.of(args[0])


def _places(f: Flow, func: Any, args: Any, kwargs: Any, out: Tensor) -> Lines:
    """Pooling and resizing mix places, which are the axes from the third on."""
    first, second, *places = f.of(args[0])
    for line in places:
        f.fix(line, f"{func} mixes them")
    return (first, second, *(None for _ in places))


def _reduce(f: Flow, func: Any, args: Any, kwargs: Any, out: Tensor) -> Lines:
    """What is summed up is gone; channels that are summed up must all be there."""
    lines = f.of(args[0])
    asked = args[1] if len(args) > 1 else kwargs.get("dim")
    axes = list(range(len(lines))) if asked is None or asked == [] else asked
    gone = {axis % len(lines) for axis in ([axes] if isinstance(axes, int) else axes)}
    for axis in gone:
        f.fix(lines[axis], f"{func} mixes them")
    if out.dim() == len(lines):
        return tuple(None if axis in gone else line for axis, line in enumerate(lines))
    return tuple(line for axis, line in enumerate(lines) if axis not in gone)


def _softmax(f: Flow, func: Any, args: Any, kwargs: Any, out: Tensor) -> Lines:
    lines = f.of(args[0])
    f.fix(lines[args[1]], f"{func} mixes them")
    return lines


def _contract(f: Flow, func: Any, args: Any, kwargs: Any, out: Tensor) -> Lines:
    """``a @ b``, plus a bias if three tensors come: b's columns write the channels."""
    *bias, a, b = _tensors(args)
    f.unite(f.of(a)[-1], f.of(b)[-2], INPUT)
    written = f.of(b)[-1]
    if written is not None:
        f.writes[written] = True
        for tensor in bias:
            f.unite(written, f.of(tensor)[-1], f"{func} adds something else to it")
    return (*f.of(a)[:-1], written)


def _convolve(f: Flow, func: Any, args: Any, kwargs: Any, out: Tensor) -> Lines:
    image, weight, bias, *_, transposed, _, groups = args
    entering, kernel = f.of(image)[1], f.of(weight)
    written, read = (kernel[1], kernel[0]) if transposed else (kernel[0], kernel[1])
    for line in (*kernel[2:], *f.of(image)[2:]):
        f.fix(line, KERNEL)
    if groups == 1:
        f.unite(entering, read, INPUT)
    elif groups == image.shape[1] and not transposed:  # depthwise: each channel has its filters
        f.fix(read, KERNEL)
        each = None if entering is None else entering.repeat_interleave(weight.shape[0] // groups)
        f.unite(each, written, INPUT)
    elif f.tied and not transposed:
        why = f"a convolution of {groups} groups ties them together"
        f.tie(entering, groups, why)
        f.tie(written, groups, why)
        f.unite(None if entering is None else entering[: weight.shape[1]], read, INPUT)
    else:
        for line in (entering, read, written):
            f.fix(line, f"a convolution of {groups} groups ties them together")
    if written is not None:
        f.writes[written] = True
        if bias is not None and (groups == 1 or not transposed):
            f.unite(written, f.of(bias)[0], INPUT)
        else:
            f.fix_all(bias, f"a transposed convolution of {groups} groups ties them together")
    return (f.of(image)[0], written if groups == 1 or not transposed else None) + (None,) * len(
        kernel[2:]
    )


def _norm(f: Flow, func: Any, args: Any, kwargs: Any, out: Tensor) -> Lines:
    """Scale, shift and running statistics meet the channels: axis 1, or the last (layer norm)."""
    image, *rest = _tensors(args)
    lines = list(f.of(image))
    axis = -1 if "layer" in str(func) else 1
    for tensor in rest:
        if tensor.dim() != 1:
            return _unknown(f, func, args, kwargs, out)
        lines[axis] = f.unite(lines[axis], f.of(tensor)[0], INPUT)
    if "group" in str(func) and args[6] != 1:
        f.tie(lines[axis], args[6], f"a group norm of {args[6]} groups ties them together")
    return tuple(lines)


def _embed(f: Flow, func: Any, args: Any, kwargs: Any, out: Tensor) -> Lines:
    words, written = f.of(args[0])
    f.fix(words, "the number of tokens decides this size")
    if written is not None:
        f.writes[written] = True
    return (*f.of(args[1]), written)


def _unknown(f: Flow, func: Any, args: Any, kwargs: Any, out: Tensor) -> Lines:
    """Nothing is known of this operation: all channels that enter it have to stay."""
    f.fix_all((args, kwargs), f"{func} is not known to keep its channels apart")
    return (None,) * out.dim()


BETWEEN = ("slice", "select")  # their bounds are constants of the forward
# Operations that are no views, yet only move values.
MOVES = {"_unsafe_view", "index_select", "flip", "roll", "repeat"}
RULES: dict[str, Rule] = {
    name: rule
    for rule, names in {
        _convolve: "convolution",
        _contract: "mm addmm bmm baddbmm",
        _norm: "native_group_norm native_layer_norm",
        _embed: "embedding",
        _cat: "cat",
        _pad: "constant_pad_nd",
        _reduce: "mean sum amax amin max min var std",
        _softmax: "_softmax _log_softmax",
        _same: "_to_copy hardswish native_dropout bernoulli empty_like zeros_like ones_like "
        "full_like rand_like randn_like",
        _pointwise: "_prelu_kernel",
        _places: "avg_pool2d max_pool2d_with_indices _adaptive_avg_pool2d adaptive_max_pool2d "
        "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d",
    }.items()
    for name in names.split()
}
