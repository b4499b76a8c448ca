"""Where published methods read a layer "before the activation", in any model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from kdlab.models.activations import KINDS
from kdlab.models.taps import INPUT, check_path, last_outputs, modules_of
from kdlab.models.taps import paths as tap_paths

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class _Row(NamedTuple):
    path: str
    kind: str
    shape: tuple[int, ...] | None


class TapPath(_Row):
    """A layer that can be tapped: its dotted path, its class, the shape of its output if known.

    Attributes:
        preactivation: the tap path that methods "before the activation" read in its place, as
            `preactivation` finds it; None where no example ran.
    """

    preactivation: str | None = None

    def __repr__(self) -> str:
        read = "" if self.preactivation is None else f", preactivation={self.preactivation!r}"
        return f"TapPath({self.path!r}, {self.kind!r}, {self.shape!r}{read})"


def paths(model: nn.Module, example: Tensor | None = None) -> list[TapPath]:
    """All layers of a model that can be tapped, in the order in which they are defined.

    Args:
        model: any module.
        example: inputs `[B, ...]` for one forward in eval mode without gradients, which fills in
            the shapes and `TapPath.preactivation`. A layer whose `forward` is not called, such as a
            ModuleList, keeps None. The mode of each layer is restored.
    """
    rows = [TapPath(*row) for row in tap_paths(model, example)]
    if example is not None:
        seen = _Seen(model, example, [row.path for row in rows if row.shape is not None])
        for row in rows:
            row.preactivation = seen.preactivation(row.path)
    return rows


def preactivation(model: nn.Module, path: str, example: Tensor) -> str:
    """The tap path at which methods "before the activation" read the part ``path``.

    Activation boundaries, the overhaul of feature distillation and knowledge review (its teacher)
    want a feature of which the next thing that happens is an activation, negative half included:

    - the part ends in an activation (ResNet, VGG): what goes into that;
    - the part's output goes into a norm, and the norm's output into an activation (a stage of a
      Wide ResNet, a DenseNet, a convolution before its batch norm): what comes out of the norm.
      Published code reads it there, in the next block, and not the raw residual stream;
    - neither (the linear bottlenecks of MobileNetV2, a transformer's blocks): the part itself.

    Found by one run, in which the tensors that are passed on are compared by identity. An
    activation that is called as a function (`torch.relu`) is never seen: make it a module.

    Args:
        model: any module; it is not changed.
        path: a dotted module path, as in `paths(model)`, which shows what is found for each.
        example: inputs `[B, ...]` for one forward in eval mode without gradients.

    Returns:
        A path for `Taps`: ``path`` itself, or that of an activation with ":input" at its end.

    Raises:
        ValueError: a path that the model does not have (with the nearest match), one that already
            ends in ":input", or a part that ``example`` does not reach.
    """
    check_path(model, path, inputs=False)
    found = _Seen(model, example, [path]).preactivation(path)
    if found is None:
        raise ValueError(
            f"path: no forward of {path!r} when the model ran on the example, so it is unknown "
            "what comes after it; name a part that the model's forward calls."
        )
    return found


def norm_before(model: nn.Module, tap: str, example: Tensor | None = None) -> nn.Module | None:
    """The norm whose output the tap path ``...:input`` reads, or None if it reads something else.

    Args:
        model: any module.
        tap: a tap path, as `preactivation` returns it.
        example: inputs `[B, ...]` for one forward. Without it only a norm that stands right before
            the layer in one `Sequential` is found.
    """
    path = tap.removesuffix(INPUT)
    if path == tap:
        return None
    if example is not None:
        seen = _Seen(model, example, [tap])
        read = seen.tensors.get(tap)
        outputs = ((norm, seen.tensors.get(path)) for path, norm in seen.norms.items())
        return next((norm for norm, output in outputs if output is read is not None), None)
    parent, _, name = path.rpartition(".")
    row = modules_of(model).get(parent, model)
    names = list(row._modules)
    if not isinstance(row, nn.Sequential) or not names.index(name):
        return None
    before = row[names.index(name) - 1]
    return before if isinstance(before, NORMS) else None


class _Seen:
    """What the activations, the norms and the ``asked`` paths took and gave in one forward."""

    def __init__(self, model: nn.Module, example: Tensor, asked: Iterable[str]) -> None:
        modules = modules_of(model)
        self.activations = [path for path, m in modules.items() if isinstance(m, KINDS)]
        self.norms = {path: m for path, m in modules.items() if isinstance(m, NORMS)}
        both = [path for inner in (self.activations, self.norms) for path in inner]
        wanted = [*asked, *both, *(path + INPUT for path in both)]
        self.tensors: Mapping[str, Tensor | None] = last_outputs(model, wanted, example)

    def preactivation(self, path: str) -> str | None:
        output = self.tensors.get(path)
        if path not in self.tensors:
            return None
        inside = [a for a in self.activations if a == path or a.startswith(f"{path}.")]
        ends = [a for a in inside if self.tensors.get(a) is output is not None]
        if ends:
            return ends[-1] + INPUT
        for norm in self.norms:
            if self.tensors.get(norm + INPUT) is output is not None:
                normed = self.tensors.get(norm)
                after = (a for a in self.activations if self.tensors.get(a + INPUT) is normed)
                activation = next(after, None) if normed is not None else None
                if activation is not None:
                    return activation + INPUT
        return path
