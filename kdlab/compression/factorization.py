"""One large matrix as the product of two small ones: Linear layers and convolutions of low rank."""

from __future__ import annotations

import math
import numbers
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.compression.quantized import check_not_quantized
from kdlab.compression.verification import Report, finished, nothing_to_change, opened, weighted

READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
FORWARDS = (nn.Linear.forward, nn.Conv2d.forward)


class LowRank(nn.Sequential):
    """Two layers in the place of one, whose weight and bias can still be read."""

    @property
    def weight(self) -> Tensor:
        """The product, in the shape of the layer that it stands for."""
        first, second = (half.get_parameter("weight") for half in self)
        product = second.flatten(1) @ first.flatten(1)
        return product.view(len(second), *first.shape[1:])

    @property
    def bias(self) -> Any:
        """That of the second layer, or None."""
        return self[1].bias


@torch.inference_mode(False)
@torch.no_grad()
def factorize(model: nn.Module, energy: float = 0.9, *, example: Tensor | None = None) -> nn.Module:
    """A copy in which layers are split in two wherever that saves parameters.

    The weights of a layer, one row for each output, are W = U Σ Vᵀ. Of the singular values as many
    are kept, from the largest on, as are needed for ``energy``: r with
    σ₁² + ... + σᵣ² ≥ energy · (σ₁² + σ₂² + ...). No matrix of rank r is nearer to W. Then

    - a Linear layer becomes one to r values, without bias, and one from there;
    - a convolution becomes one with r filters of the same size, stride and padding, and a 1×1
      convolution that mixes them.

    A layer stays where r · (outputs + inputs) is not below outputs · inputs, and so do grouped,
    depthwise, transposed, 1-D and 3-D convolutions, embeddings, recurrent layers, the layers inside
    PyTorch's own attention and transformer layers (which read their weights), layers with hooks,
    with a forward of their own, or whose weight has a second place in the model; `report` says of
    each why. The two halves stand in a Sequential at the layer's old path, so taps of its output go
    on working. What accuracy was lost comes back with `recover`.

    Args:
        model: stays as it was.
        energy: share of the squared weights that is kept, above 0 up to 1.
        example: inputs ``[2, ...]`` for a forward in eval and in train mode before and after; None
            looks at the weights alone.

    Raises:
        ValueError: an energy out of range, a model that cannot be copied and changed, such as a
            quantized one or a ScriptModule, or one that does not answer as before (with the layer).

    Sources: Denton, Zaremba, Bruna, LeCun, Fergus, Exploiting linear structure within
    convolutional networks for efficient evaluation, 2014, arXiv:1404.0736; the split of a
    convolution: Zhang, Zou, He, Sun, Accelerating very deep convolutional networks for
    classification and detection, 2015, arXiv:1505.06798.
    """
    check_not_quantized(model)
    if not isinstance(energy, numbers.Real) or math.isnan(energy) or not 0 < energy <= 1:
        raise ValueError(f"energy: {energy!r} came, expected a number above 0 up to 1")
    whole, expected, baked = opened(model, example)
    layers, left = weighted(whole)
    if not layers:
        raise nothing_to_change(whole, left)
    owners = Counter(id(p) for m in whole.modules() for p in m._parameters.values())
    found = Report(left=left)
    made: dict[int, nn.Module] = {}
    for path, layer in layers.items():
        parent = whole.get_submodule(path.rpartition(".")[0])
        halves = None
        if why := _reason(layer, parent, owners):
            left[path] = why
        elif (halves := _halves(layer, float(energy))) is None:
            left[path] = "two layers would not be smaller"
        else:
            made[id(layer)] = halves
            found.changed[path] = f"rank {len(halves[0].weight)} of {min(_sides(layer))}"
    for path, layer in list(whole.named_modules(remove_duplicate=False)):
        if id(layer) in made:  # at all places of a layer that is used twice
            parent_path, _, name = path.rpartition(".")
            if not path:
                whole = made[id(layer)]
            else:
                whole.get_submodule(parent_path)._modules[name] = made[id(layer)]
    return finished("factorize", whole, found, baked, expected)


def _reason(layer: Any, parent: nn.Module, owners: Counter[int]) -> str | None:
    """Why a layer is no plain product that another may take the place of."""
    kind = type(layer)
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        return f"a {kind.__name__} is not split"
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return "its groups are small already"
    if isinstance(parent, READERS):
        return f"a {type(parent).__name__} reads its weight"
    if kind.forward not in FORWARDS or (
        isinstance(layer, nn.Conv2d) and kind._conv_forward is not nn.Conv2d._conv_forward
    ):
        return f"a {kind.__name__} has a forward of its own"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "hooks are registered on it"
    if set(layer._parameters) != {"weight", "bias"} or layer._buffers or layer._modules:
        return "it has weights of its own"
    if owners[id(layer.weight)] > 1:
        return "its weight has a second place in the model"
    return None


def _sides(layer: Any) -> tuple[int, int]:
    rows = layer.weight.flatten(1)
    return len(rows), rows.shape[1]


def _halves(layer: Any, energy: float) -> LowRank | None:
    """The two layers that take its place, or None where they would be no smaller."""
    rows = layer.weight.flatten(1)
    u, s, vt = torch.linalg.svd(rows.double(), full_matrices=False)
    kept = s.square().cumsum(0)
    # rounding must not ask for one more than all that is there
    rank = int((kept < energy * kept[-1] * (1 - 1e-9)).sum()) + 1
    if rank * sum(rows.shape) >= rows.numel():
        return None
    root = s[:rank].sqrt()  # halves of one size learn at one speed
    first, second = root[:, None] * vt[:rank], u[:, :rank] * root
    pair = _linear_pair(layer, rank) if isinstance(layer, nn.Linear) else _conv_pair(layer, rank)
    for half, value in zip(pair, (first, second), strict=True):
        weight = half.get_parameter("weight")
        weight.copy_(value.view_as(weight)).requires_grad_(layer.weight.requires_grad)
    if layer.bias is not None:
        bias = pair[1].get_parameter("bias")
        bias.copy_(layer.bias).requires_grad_(layer.bias.requires_grad)
    halves = LowRank(*pair).to(rows.device, rows.dtype)
    return halves.train(layer.training)


def _linear_pair(layer: nn.Linear, rank: int) -> tuple[nn.Linear, nn.Linear]:
    has_bias = layer.bias is not None
    return (
        nn.Linear(layer.in_features, rank, bias=False),
        nn.Linear(rank, layer.out_features, bias=has_bias),
    )


def _conv_pair(layer: nn.Conv2d, rank: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    first = nn.Conv2d(
        layer.in_channels,
        rank,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        bias=False,
        padding_mode=layer.padding_mode,
    )
    return first, nn.Conv2d(rank, layer.out_channels, 1, bias=layer.bias is not None)
