"""One large matrix as the product of two small ones: Linear layers and convolutions of low rank."""

from __future__ import annotations

import copy
import math
import numbers

import torch
from torch import nn

from kdlab.compression.quantized import check_not_quantized


@torch.no_grad()
def factorize(model: nn.Module, energy: float = 0.9) -> nn.Module:
    """A copy in which layers are split in two wherever that saves parameters.

    The weights of a layer, one row for each output, are W = U Σ Vᵀ. Of the singular values as many
    are kept, from the largest on, as are needed for ``energy``: r with
    σ₁² + ... + σᵣ² ≥ energy · (σ₁² + σ₂² + ...). No matrix of rank r is nearer to W. Then

    - a Linear layer becomes one to r values, without bias, and one from there;
    - a convolution becomes one with r filters of the same size, stride and padding, and a 1×1
      convolution that mixes them.

    A layer stays where r · (outputs + inputs) is not below outputs · inputs, and so do grouped
    and depthwise convolutions, embeddings and recurrent layers. The two halves stand in a
    Sequential at the layer's old path, so taps of its output go on working. What accuracy was lost
    comes back with `recover`.

    Args:
        model: stays as it was.
        energy: share of the squared weights that is kept, above 0 up to 1.

    Raises:
        ValueError: an energy out of range, or a quantized model.

    Sources: Denton, Zaremba, Bruna, LeCun, Fergus, Exploiting linear structure within
    convolutional networks for efficient evaluation, 2014, arXiv:1404.0736; the split of a
    convolution: Zhang, Zou, He, Sun, Accelerating very deep convolutional networks for
    classification and detection, 2015, arXiv:1505.06798.
    """
    check_not_quantized(model)
    if not isinstance(energy, numbers.Real) or math.isnan(energy) or not 0 < energy <= 1:
        raise ValueError(f"energy: {energy!r} came, expected a number above 0 up to 1")
    whole = copy.deepcopy(model)
    for path, layer in list(whole.named_modules()):
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1):
            halves = _halves(layer, float(energy))
            if halves is None:
                continue
            if not path:
                return halves
            parent, _, name = path.rpartition(".")
            whole.get_submodule(parent)._modules[name] = halves
    return whole


def _halves(layer: nn.Linear | nn.Conv2d, energy: float) -> nn.Sequential | None:
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
        weight.copy_(value.view_as(weight))
    if layer.bias is not None:
        pair[1].get_parameter("bias").copy_(layer.bias)
    halves = nn.Sequential(*pair).to(rows.device, rows.dtype)
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
