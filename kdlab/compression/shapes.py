"""Weights of other shapes in a model that was built for wider ones."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from kdlab.models.modes import evaluating


def fit_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a model these weights, in place, and cut its layers to their shapes.

    So a structurally pruned model is had again without unpickling it: built as it was before,
    then cut. Convolutions, Linear layers and norms note their new sizes.

    Args:
        model: has tensors of these names, each with as many axes and nowhere shorter.
        weights: all tensors of its state.

    Raises:
        ValueError: a name that only one side has, or a tensor that cutting cannot explain. Then
            the model is as it was.
    """
    state: dict[str, Tensor] = {}
    own_names: dict[str, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor) and not is_extra(name):
            plain = name.replace("_orig_mod.", "")  # of a compiled part; files do not keep it
            state[plain], own_names[plain] = value, name
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
    fitted: dict[int, Tensor] = {}  # what had two names goes on having them
    for name, old in state.items():
        path, _, own = own_names[name].rpartition(".")
        layer = model.get_submodule(path)
        is_parameter = own in layer._parameters
        if id(old) not in fitted:
            fit = weights[name].to(old)
            fitted[id(old)] = nn.Parameter(fit, old.requires_grad) if is_parameter else fit
        held: dict[str, Any] = layer._parameters if is_parameter else layer._buffers
        held[own] = fitted[id(old)]
    with evaluating(model):  # to read a weight with a spectral norm changes it in training mode
        for layer in model.modules():
            for kind, note in SIZES.items():
                if isinstance(layer, kind):
                    note(layer)


def is_extra(name: str) -> bool:
    """Whether this entry of a state is what a module's ``get_extra_state`` gave."""
    return name.rpartition(".")[2] == "_extra_state"


def _note_linear(layer: Any) -> None:
    layer.out_features, layer.in_features = layer.weight.shape


def _note_convolution(layer: Any) -> None:
    if layer.groups > 1 and layer.groups == layer.in_channels:  # depthwise
        before = layer.in_channels if layer.transposed else layer.out_channels
        layer.groups = len(layer.weight) * layer.groups // before
    sizes = len(layer.weight), layer.weight.shape[1] * layer.groups
    layer.in_channels, layer.out_channels = sizes if layer.transposed else sizes[::-1]


def _note_norm(layer: Any) -> None:
    if layer.weight is not None or getattr(layer, "running_mean", None) is not None:
        layer.num_features = len(layer.weight if layer.weight is not None else layer.running_mean)


def _note_group_norm(layer: Any) -> None:
    if layer.weight is not None:
        layer.num_channels = len(layer.weight)


def _note_layer_norm(layer: Any) -> None:
    if layer.weight is not None:
        layer.normalized_shape = tuple(layer.weight.shape)


def _note_embedding(layer: Any) -> None:
    layer.num_embeddings, layer.embedding_dim = layer.weight.shape


def _note_prelu(layer: Any) -> None:
    layer.num_parameters = len(layer.weight)


SIZES = {
    nn.Linear: _note_linear,
    _ConvNd: _note_convolution,
    _NormBase: _note_norm,
    nn.GroupNorm: _note_group_norm,
    nn.LayerNorm: _note_layer_norm,
    nn.RMSNorm: _note_layer_norm,
    nn.Embedding: _note_embedding,
    nn.PReLU: _note_prelu,
}
