"""Leave out what matters least: single weights, or whole channels, at once or little by little."""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import prune as torch_prune

from kdlab.compression.kinds import check_kinds
from kdlab.compression.quantized import check_not_quantized
from kdlab.compression.shapes import fit_weights
from kdlab.compression.verification import (
    WEIGHTED,
    Expected,
    Report,
    finished,
    misses,
    naming,
    nothing_to_change,
    opened,
    plain_copy,
    weighted,
)
from kdlab.datasets import Data
from kdlab.distillers import Distiller, SoftTargets
from kdlab.models.channels import UNKNOWN, Channels
from kdlab.training import Run, fit
from kdlab.training.loop import Moment
from kdlab.words import check_known

# Whose weights tell how important a channel is, and the power of their numbers that is summed up
# over all that writes and reads the channel.
LAYERS = (_ConvNd, nn.Linear, _BatchNorm, nn.LayerNorm)
IMPORTANCE: dict[str, tuple[tuple[type, ...], int]] = {
    "l1": (LAYERS, 1),
    "l2": (LAYERS, 2),
    "batch_norm": ((_BatchNorm,), 1),
    "random": ((), 0),
}
TOO_FEW = "it has too few channels to leave any out"


@torch.inference_mode(False)
def prune_weights(model: nn.Module, share: float, *, example: Tensor | None = None) -> nn.Module:
    """A copy in which the smallest weights of all layers together are 0.

    The shapes stay, and with them parameters, file, FLOPs and time: `kdlab.metrics.cost` shows
    that nothing is saved before something makes use of the zeros. Only weights of convolutions and
    Linear layers are pruned, by `torch.nn.utils.prune` (PyTorch's own), and made permanent; so is
    what weight norm and other parametrizations made of them. `report` has a line for each layer.

    Args:
        model: stays as it was.
        share: of those weights that are not 0 yet, from 0 up to below 1.
        example: inputs ``[2, ...]`` for a forward in eval and in train mode before and after; None
            looks at the weights alone.

    Raises:
        ValueError: a share out of range, a model without such weights, or one that cannot be
            copied and changed, such as a quantized one or a ScriptModule.

    Source: Han, Pool, Tran, Dally, Learning both weights and connections for efficient neural
    networks, 2015, arXiv:1506.02626, with a threshold for each layer; here there is one for all.
    """
    share = _check_share(share)
    pruned, expected, baked = opened(model, example)
    layers, left = weighted(pruned)
    if not layers:
        raise nothing_to_change(pruned, left)
    zeros = sum(int((layer.weight == 0).sum()) for layer in layers.values())
    count = sum(layer.weight.numel() for layer in layers.values())
    for layer in layers.values():  # PyTorch flattens by a view, which other orders refuse
        layer.weight.data = layer.weight.data.contiguous()
    torch_prune.global_unstructured(
        [(layer, "weight") for layer in layers.values()],
        pruning_method=torch_prune.L1Unstructured,
        amount=zeros + round(share * (count - zeros)),
    )
    for layer in layers.values():
        torch_prune.remove(layer, "weight")
    changed = {
        path: f"{int((layer.weight == 0).sum())} of {layer.weight.numel()} weights are 0"
        for path, layer in layers.items()
    }
    return finished("prune_weights", pruned, Report(changed, left), baked, expected)


@torch.inference_mode(False)
def prune_channels(
    model: nn.Module,
    example: Tensor,
    share: float,
    *,
    importance: str = "l1",
    multiple_of: int = 1,
) -> nn.Module:
    """A copy whose layers are narrower: the least important channels are cut out everywhere.

    Every layer loses the same share of its channels. Those that residual additions tie together
    go together, attention and grouped layers lose as many in each head or group, and the classes
    stay. Which channels belong together is found by following one forward operation by operation,
    in eval and in train mode (`kdlab.models.channels`). Whatever is not known to keep its channels
    apart stays whole, such as recurrent layers, and so does what a forward needs in its size;
    `report` has a line with the reason for each layer. A pruned model is stored with
    `kdlab.compression.export`, and a .safetensors file of it is loaded into a model as it was
    before.

    Args:
        model: an image model; stays as it was.
        example: inputs ``[B, ...]`` for one forward; their values do not matter.
        share: of the channels, from 0 up to below 1; each layer keeps at least one.
        importance: l1 or l2 (norm of all weights that write or read the channel), batch_norm (its
            scale; layers without a batch norm stay), or random, which is the control.
        multiple_of: what a layer keeps is rounded down to a multiple of this; a layer of which
            nothing would be left stays whole. Processors compute 8 or 16 channels at a time: in
            onnxruntime on an AMD EPYC, `cnn_small` cut from 16, 24 and 48 channels to 12, 18 and
            36 had 43 % fewer FLOPs and took 18 % *longer*.

    Raises:
        ValueError: a share or a multiple out of range, an unknown importance, token numbers or no
            tensor as example, a model of which no channel can be cut, which does not answer after
            the cut as it did before (with the layer), or which cannot be copied and changed.

    Sources: Fang, Ma, Song, Mi, Wang, DepGraph: towards any structural pruning, 2023,
    arXiv:2301.12900 (groups and their importance). L1 norm: Li, Kadav, Durdanovic, Samet, Graf,
    Pruning filters for efficient ConvNets, 2016, arXiv:1608.08710 (there of the filter alone).
    Batch norm's scale: Liu, Li, Shen, Huang, Yan, Zhang, Learning efficient convolutional networks
    through network slimming, 2017, arXiv:1708.06519.
    """
    check_not_quantized(model)
    check_kinds(example=example)
    share = _check_share(share)
    check_known("importance", importance, IMPORTANCE)
    _check_count("multiple_of", multiple_of)
    if not example.is_floating_point():
        raise ValueError(
            f"example: dtype {example.dtype}, expected images: the channels of models of texts "
            "cannot be followed; make those smaller with factorize or by distillation"
        )
    plain, expected, baked = opened(model, example)
    assert expected is not None
    layers: dict[str, nn.Module] = {
        path: m for path, m in plain.named_modules() if isinstance(m, WEIGHTED)
    }
    if not layers:
        raise nothing_to_change(plain, {})
    channels = _channels(plain, expected, *expected.shapes)
    scores = _scores(channels, plain, importance)
    keep, why = _chosen(channels, scores, share, multiple_of)
    pruned = _cut(plain, channels, keep)
    if fault := _fault(pruned, channels, keep, expected):
        keep, broken = _without_faults(plain, channels, keep, expected)
        why |= broken
        pruned = _cut(plain, channels, keep)
        if fault := _fault(pruned, channels, keep, expected):
            raise ValueError(
                f"model: got layers that cannot be cut together ({fault}), expected a forward that "
                "works with fewer channels; use prune_weights or factorize"
            )
    found = _told(channels, keep, why, layers)
    tried = share > 0 and all(why.get(g) != TOO_FEW for g in range(len(channels.groups)))
    if tried and not found.changed:
        path, reason = next(iter(found.left.items()))
        raise ValueError(
            f"model: got a {type(model).__name__} of which no channel can be cut "
            f"({path or 'its layer'}: {reason}), expected a layer whose size the forward leaves "
            "open; use prune_weights or factorize"
        )
    return finished("prune_channels", pruned, found, baked)  # `_fault` has run its forward


def prune_gradually(
    model: nn.Module,
    share: float,
    steps: int,
    prune: Callable[[nn.Module, float], nn.Module],
    recover: Callable[[nn.Module], Any],
) -> nn.Module:
    """Prune in several steps, and let the model recover after each.

    Each step leaves the same fraction of what is there, (1 - share)^(1 / steps), so that all of
    them together leave 1 - share.

    Args:
        model: stays as it was.
        share: what is pruned in the end, from 0 up to below 1.
        steps: how many; 1 is pruning at once.
        prune: ``prune_weights``, or ``lambda m, s: prune_channels(m, example, s)``.
        recover: trains the model that it is given, such as ``lambda m: recover(m, data, teacher,
            epochs=2)``.

    Raises:
        ValueError: a share out of range, or fewer than one step.
    """
    _check_count("steps", steps)
    each = 1 - (1 - _check_share(share)) ** (1 / steps)
    for _ in range(steps):
        model = prune(model, each)
        recover(model)
    return model


def recover(
    pruned: nn.Module,
    data: Data,
    teacher: nn.Module | None = None,
    distiller: Distiller | None = None,
    **options: Any,
) -> Run:
    """Train what pruning has left, in place: under the unpruned model, or on the labels alone.

    Weights that are exactly 0 at the start are 0 after each step, so that unstructured pruning
    lasts.

    Args:
        pruned: what to train.
        data: what to learn from.
        teacher: the model before it was pruned; None trains on the labels.
        distiller: the method under the teacher; None takes ``SoftTargets()``.
        options: of ``kdlab.training.fit``, such as ``epochs`` and ``lr``; the same ones make the
            comparison with and without a teacher fair.

    Raises:
        ValueError: an argument of another kind, what ``fit`` raises.
    """
    check_kinds(pruned=pruned, data=data, teacher=teacher)
    zeros = {name: w == 0 for name, w in pruned.named_parameters() if w.dim() > 1}
    zeros = {name: places for name, places in zeros.items() if places.any()}

    @torch.no_grad()
    def hold(moment: Moment) -> None:
        for name, places in zeros.items():
            weight = moment.model.get_parameter(name)
            weight.masked_fill_(places.to(weight.device), 0)

    if teacher is not None and distiller is None:
        distiller = SoftTargets()
    callbacks = (hold, *options.pop("callbacks", ()))
    return fit(pruned, data, distiller, teacher=teacher, callbacks=callbacks, **options)


def sparsity(model: nn.Module) -> float:
    """Share of the weights of convolutions and Linear layers that are 0, in [0, 1].

    Raises:
        ValueError: a model without such weights, such as a quantized one.
    """
    plain, _ = plain_copy(model)
    layers, left = weighted(plain)
    weights = [layer.weight for layer in layers.values()]
    if not weights:
        raise nothing_to_change(model, left)
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def _check_share(share: float) -> float:
    if not isinstance(share, numbers.Real) or not math.isfinite(share) or not 0 <= share < 1:
        raise ValueError(f"share: {share!r} came, expected a number from 0 up to below 1")
    return float(share)


def _check_count(name: str, count: int) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"{name}: {count!r} came, expected a whole number from 1 on")


def _channels(model: nn.Module, expected: Expected, *modes: bool) -> Channels:
    probe = copy.deepcopy(model)
    with naming("prune_channels"), torch.random.fork_rng():
        return Channels(probe, expected.example, modes=modes, tied=True)


def _scores(channels: Channels, model: nn.Module, importance: str) -> Tensor:
    """How important each channel is, [count]; UNKNOWN where the measure says nothing."""
    if importance == "random":
        return torch.rand(channels.count)
    kinds, power = IMPORTANCE[importance]
    scores = torch.full([channels.count], UNKNOWN, dtype=torch.float32)
    for path, layer in model.named_modules():
        name = f"{path}.weight" if path else "weight"
        depthwise = isinstance(layer, _ConvNd) and layer.groups == layer.in_channels > 1
        if isinstance(layer, kinds) and name in channels.tensors and not depthwise:
            weight = model.get_parameter(name).detach().cpu().float()
            for axis in range(min(2, weight.dim())):
                line = channels.along(name, axis)
                norms = weight.movedim(axis, 0).reshape(len(line), -1).abs().pow(power).sum(1)
                scores[line] = scores[line].clamp(min=0)
                scores.index_add_(0, line, norms)
    return scores


def _chosen(
    channels: Channels, scores: Tensor, share: float, multiple_of: int
) -> tuple[Tensor, dict[int, str]]:
    """Which channels are kept, [count] bool, and why groups stay whole."""
    keep = torch.ones(channels.count, dtype=torch.bool)
    why = dict(channels.fixed)
    for number, group in enumerate(channels.groups):
        if number in why:
            continue
        count = max(1, int(len(group) * (1 - share)))
        count -= count % multiple_of
        if not count or len(group) == 1:
            why[number] = TOO_FEW
        elif bool((scores[group.start : group.stop] == UNKNOWN).any()):
            why[number] = "the measure of importance says nothing of it"
        else:
            order = scores[group.start : group.stop].argsort()
            keep[group.start + order[: len(group) - count]] = False
    return keep, why


def _cut(plain: nn.Module, channels: Channels, keep: Tensor) -> nn.Module:
    pruned = copy.deepcopy(plain)
    weights = {}
    for name, tensor in pruned.state_dict().items():
        if isinstance(tensor, Tensor):
            for axis in range(tensor.dim()):
                kept = keep[channels.along(name, axis)].nonzero()[:, 0]
                tensor = tensor.index_select(axis, kept.to(tensor.device))
            weights[name] = tensor
    fit_weights(pruned, weights)
    return pruned


def _fault(pruned: nn.Module, channels: Channels, keep: Tensor, expected: Expected) -> str | None:
    """Why this cut is wrong: the forward fails, or what met other channels before meets now."""
    if broken := misses(pruned, expected):
        return broken[1]
    after = _channels(pruned, expected, False)
    alone = {  # a single channel looks like an axis of size 1, and meets whatever there is
        group.start + int(keep[group.start : group.stop].nonzero()[0])
        for group in channels.groups
        if keep[group.start : group.stop].sum() == 1
    }
    was: dict[int, int] = {}
    for name, tensor in after.tensors.items():
        for axis in range(tensor.dim()):
            before = channels.along(name, axis)
            pairs = zip(
                after.along(name, axis).tolist(), before[keep[before]].tolist(), strict=True
            )
            if any(was.setdefault(new, old) != old for new, old in pairs if old not in alone):
                return f"{name} would meet channels that it did not meet before"
    return None


def _without_faults(
    plain: nn.Module, channels: Channels, keep: Tensor, expected: Expected
) -> tuple[Tensor, dict[int, str]]:
    """Try each group of channels alone, and keep those whole that cannot be cut."""
    why = {}
    for number, group in enumerate(channels.groups):
        if not keep[group.start : group.stop].all():
            alone = torch.ones_like(keep)
            alone[group.start : group.stop] = keep[group.start : group.stop]
            if fault := _fault(_cut(plain, channels, alone), channels, alone, expected):
                why[number] = f"with fewer of its channels {fault}"
    keep = keep.clone()
    for number in why:
        keep[channels.groups[number].start : channels.groups[number].stop] = True
    return keep, why


def _told(
    channels: Channels, keep: Tensor, why: dict[int, str], layers: dict[str, nn.Module]
) -> Report:
    found = Report()
    for path, layer in layers.items():
        name = f"{path}.weight" if path else "weight"
        old = list(channels.tensors[name].shape)
        lines = [channels.along(name, axis) for axis in range(len(old))]
        new = [int(keep[line].sum()) for line in lines]
        if new != old:
            found.changed[path] = f"weight {old} became {new}"
            continue
        written = lines[1 if getattr(layer, "transposed", False) else 0]
        reasons = [why[g] for g in channels.groups_along(written) if g in why]
        found.left[path] = reasons[0] if reasons else "none of its channels was to go"
    return found
