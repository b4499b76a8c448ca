"""Leave out what matters least: single weights, or whole channels, at once or little by little."""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from kdlab.compression.extras import need
from kdlab.compression.kinds import check_kinds
from kdlab.compression.quantized import check_not_quantized
from kdlab.datasets import Data
from kdlab.distillers import Distiller, SoftTargets
from kdlab.models.attention import SelfAttention
from kdlab.models.modes import device_of, evaluating
from kdlab.training import Run, fit
from kdlab.training.loop import Moment
from kdlab.words import check_known

# The measures of Torch-Pruning: each sums over all that a channel's group writes and reads, scales
# of batch norms among it.
IMPORTANCE: dict[str, Callable[[Any], Any]] = {
    "l1": lambda measures: measures.GroupMagnitudeImportance(p=1),
    "l2": lambda measures: measures.GroupMagnitudeImportance(p=2),
    "batch_norm": lambda measures: measures.BNScaleImportance(),
    "random": lambda measures: measures.RandomImportance(),
}


def prune_weights(model: nn.Module, share: float) -> nn.Module:
    """A copy in which the smallest weights of all layers together are 0.

    The shapes stay, and with them parameters, file, FLOPs and time: `kdlab.metrics.cost` shows
    that nothing is saved before something makes use of the zeros. Only weights of convolutions and
    Linear layers are pruned, by `torch.nn.utils.prune` (PyTorch's own), and made permanent.

    Args:
        model: stays as it was.
        share: of those weights that are not 0 yet, from 0 up to below 1.

    Raises:
        ValueError: a share out of range, or a model without such weights, such as a quantized one.

    Source: Han, Pool, Tran, Dally, Learning both weights and connections for efficient neural
    networks, 2015, arXiv:1506.02626, with a threshold for each layer; here there is one for all.
    """
    check_not_quantized(model)
    share = _check_share(share)
    pruned = copy.deepcopy(model)
    layers = list(_prunable(pruned))
    if not layers:
        raise ValueError("model: it has no convolution and no Linear layer to prune")
    zeros = sum(int((layer.weight == 0).sum()) for layer in layers)
    count = sum(layer.weight.numel() for layer in layers)
    torch_prune.global_unstructured(
        [(layer, "weight") for layer in layers],
        pruning_method=torch_prune.L1Unstructured,
        amount=zeros + round(share * (count - zeros)),
    )
    for layer in layers:
        torch_prune.remove(layer, "weight")
    return pruned


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
    go together, attention loses as many in each head, and the classes stay. Which channels belong
    together is found by Torch-Pruning's dependency graph, which was tried with PyTorch 2.13 on all
    image models of the course. A pruned model is stored with `kdlab.compression.export`, and a
    .safetensors file of it is loaded into a model as it was before.

    Args:
        model: an image model; stays as it was.
        example: inputs ``[B, ...]`` for one forward; their values do not matter.
        share: of the channels, from 0 up to below 1; each layer keeps at least one.
        importance: l1 or l2 (norm of all weights that write or read the channel), batch_norm (its
            scale), or random, which is the control.
        multiple_of: what a layer keeps is rounded down to a multiple of this; a layer of which
            nothing would be left stays whole. Processors compute 8 or 16 channels at a time: in
            onnxruntime on an AMD EPYC, `cnn_small` cut from 16, 24 and 48 channels to 12, 18 and
            36 had 43 % fewer FLOPs and took 18 % *longer*.

    Raises:
        ValueError: a share or a multiple out of range, an unknown importance, token numbers or no
            tensor as example, a quantized model.
        ImportError: the package torch-pruning is missing.

    Sources: Fang, Ma, Song, Mi, Wang, DepGraph: towards any structural pruning, 2023,
    arXiv:2301.12900. L1 norm: Li, Kadav, Durdanovic, Samet, Graf, Pruning filters for efficient
    ConvNets, 2016, arXiv:1608.08710 (there of the filter alone). Batch norm's scale: Liu, Li, Shen,
    Huang, Yan, Zhang, Learning efficient convolutional networks through network slimming, 2017,
    arXiv:1708.06519.
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
    torch_pruning = need("torch_pruning")
    pruned = copy.deepcopy(model)
    example = example.to(device_of(pruned))
    heads = {
        layer: module.heads
        for module in pruned.modules()
        if isinstance(module, SelfAttention)
        for layer in (module.query, module.key, module.value)
    }
    with evaluating(pruned), torch.enable_grad():
        torch_pruning.pruner.BasePruner(
            pruned,
            example,
            importance=IMPORTANCE[importance](torch_pruning.importance),
            pruning_ratio=share,
            ignored_layers=[_last_layer(pruned, example)],
            num_heads=heads,
            round_to=multiple_of,
            in_channel_groups={},  # else all calls share these two, which keep every model alive
            out_channel_groups={},
        ).step()
    return pruned


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
    check_not_quantized(model)
    weights = [layer.weight for layer in _prunable(model)]
    if not weights:
        raise ValueError("model: it has no convolution and no Linear layer")
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def _prunable(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear))


def _check_share(share: float) -> float:
    if not isinstance(share, numbers.Real) or not math.isfinite(share) or not 0 <= share < 1:
        raise ValueError(f"share: {share!r} came, expected a number from 0 up to below 1")
    return float(share)


def _check_count(name: str, count: int) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"{name}: {count!r} came, expected a whole number from 1 on")


@torch.no_grad()
def _last_layer(model: nn.Module, example: Tensor) -> nn.Module:
    """The layer that gives the logits: of those with weights, the one that runs last."""
    ran: list[nn.Module] = []
    hooks = [
        layer.register_forward_hook(lambda module, *_: ran.append(module))
        for layer in _prunable(model)
    ]
    try:
        model(example)
    finally:
        for hook in hooks:
            hook.remove()
    if not ran:
        raise ValueError("model: it has no convolution and no Linear layer to prune")
    return ran[-1]
