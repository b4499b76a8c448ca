"""Weights of other shapes in a model that was built for wider ones."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def fit_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a model these weights, in place, and cut its layers to their shapes.

    So a structurally pruned model is had again without unpickling it: built as it was before,
    then cut. Convolutions, Linear layers and norms note their new sizes.

    Args:
        model: has tensors of these names, each with as many axes and nowhere shorter.
        weights: its whole state.

    Raises:
        ValueError: a name that only one side has, or a tensor that cutting cannot explain. Then
            the model is as it was.
    """
    state = model.state_dict(keep_vars=True)
    if odd := sorted(state.keys() ^ weights.keys()):
        where = "the file" if odd[0] in state else "the model"
        raise ValueError(
            f"model: {where} has no {odd[0]} ({len(odd)} such names); build the model of which "
            "these are the weights"
        )
    for name, old in state.items():  # the model's order: a file's is another each time
        new = weights[name]
        if old.dim() != new.dim() or any(a < b for a, b in zip(old.shape, new.shape, strict=True)):
            raise ValueError(
                f"model: {name} is {list(old.shape)}, but {list(new.shape)} came; build the model "
                "as it was before it was cut"
            )
    for name, new in weights.items():
        path, _, own = name.rpartition(".")
        layer = model.get_submodule(path)
        new = new.to(state[name])
        if own in layer._parameters:
            layer._parameters[own] = nn.Parameter(new, state[name].requires_grad)
        else:
            layer._buffers[own] = new
    for layer in model.modules():
        for kind, note in SIZES.items():
            if isinstance(layer, kind):
                note(layer)


def _note_linear(layer: Any) -> None:
    layer.out_features, layer.in_features = layer.weight.shape


def _note_convolution(layer: Any) -> None:
    if layer.groups > 1:  # each group stays as wide as it was
        layer.groups = len(layer.weight) * layer.groups // layer.out_channels
    layer.out_channels = len(layer.weight)
    layer.in_channels = layer.weight.shape[1] * layer.groups


def _note_batch_norm(layer: Any) -> None:
    layer.num_features = len(layer.running_mean)


def _note_layer_norm(layer: Any) -> None:
    layer.normalized_shape = tuple(layer.weight.shape)


SIZES = {
    nn.Linear: _note_linear,
    nn.Conv2d: _note_convolution,
    _BatchNorm: _note_batch_norm,
    nn.LayerNorm: _note_layer_norm,
}
