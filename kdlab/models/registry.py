"""The table of models by the names that the literature uses, and `build`."""

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from kdlab.models.activations import make_activation, swap_activations
from kdlab.models.cnn import cnn
from kdlab.models.mlp import MLP
from kdlab.models.mobilenet import mobilenetv2
from kdlab.models.resnet import resnet, resnet50
from kdlab.models.shufflenet import shufflenetv1, shufflenetv2
from kdlab.models.text import Transformer, gru, lstm
from kdlab.models.vgg import vgg
from kdlab.models.vit import VisionTransformer
from kdlab.models.wide_resnet import wide_resnet
from kdlab.words import check_known

PLAIN = (16, 16, 32, 64)
X4 = (32, 64, 128, 256)

# Name: builder, and the options that the name fixes. The builder's other keyword-only parameters
# are the options that a caller may give.
MODELS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "mlp": (MLP, {}),
    "cnn": (cnn, {}),
    "cnn_tiny": (cnn, {"widths": (8, 16, 24), "depth": 1}),
    "cnn_small": (cnn, {"widths": (16, 24, 48), "depth": 1}),
    "cnn_large": (cnn, {"widths": (32, 64, 96), "depth": 1}),
    "resnet8": (resnet, {"depth": 8, "widths": PLAIN}),
    "resnet14": (resnet, {"depth": 14, "widths": PLAIN}),
    "resnet20": (resnet, {"depth": 20, "widths": PLAIN}),
    "resnet32": (resnet, {"depth": 32, "widths": PLAIN}),
    "resnet44": (resnet, {"depth": 44, "widths": PLAIN}),
    "resnet56": (resnet, {"depth": 56, "widths": PLAIN}),
    "resnet110": (resnet, {"depth": 110, "widths": PLAIN}),
    "resnet8x4": (resnet, {"depth": 8, "widths": X4}),
    "resnet32x4": (resnet, {"depth": 32, "widths": X4}),
    "resnet50": (resnet50, {}),
    "wrn_16_1": (wide_resnet, {"depth": 16, "widen": 1}),
    "wrn_16_2": (wide_resnet, {"depth": 16, "widen": 2}),
    "wrn_40_1": (wide_resnet, {"depth": 40, "widen": 1}),
    "wrn_40_2": (wide_resnet, {"depth": 40, "widen": 2}),
    "vgg8": (vgg, {"depths": (1, 1, 1, 1, 1)}),
    "vgg11": (vgg, {"depths": (1, 1, 2, 2, 2)}),
    "vgg13": (vgg, {"depths": (2, 2, 2, 2, 2)}),
    "vgg16": (vgg, {"depths": (2, 2, 3, 3, 3)}),
    "vgg19": (vgg, {"depths": (2, 2, 4, 4, 4)}),
    "mobilenetv2": (mobilenetv2, {}),
    "shufflenetv1": (shufflenetv1, {}),
    "shufflenetv2": (shufflenetv2, {}),
    "vit": (VisionTransformer, {}),
    "transformer": (Transformer, {}),
    "lstm": (lstm, {}),
    "gru": (gru, {}),
}

# Other names in use for some of them: those of RepDistiller and mdistiller.
ALIASES = {
    "ResNet50": "resnet50",
    "mobile_half": "mobilenetv2",
    "MobileNetV2": "mobilenetv2",
    "ShuffleV1": "shufflenetv1",
    "ShuffleV2": "shufflenetv2",
}


def available(data_shape: Sequence[int] | None = None) -> tuple[str, ...]:
    """Names that `build` knows; with a shape, (c, h, w) or (L,), those for such images or texts."""
    if data_shape is None:
        return tuple(MODELS)
    texts = len(data_shape) == 1
    return tuple(n for n, (builder, _) in MODELS.items() if _takes(builder, "vocabulary") == texts)


def build(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    *,
    seed: int | None = None,
    activation: str | None = None,
    **options: Any,
) -> nn.Module:
    """A freshly initialised model that turns inputs `[B, ...]` into logits `[B, num_classes]`.

    It is built on the CPU, in training mode.

    Args:
        name: one of `available()`, or what RepDistiller calls it (`ALIASES`: ResNet50, ShuffleV1).
        num_classes: C, at least 2.
        in_channels: channels of an image; not used by `mlp`, which takes `in_features`, nor by the
            models of texts, which take `vocabulary`.
        seed: if given, the weights depend on it alone, and PyTorch's global random state is left
            as it was. If not, they come from the global state (`torch.manual_seed`).
        activation: the function that stands in place of every ReLU, and of every GELU of a
            transformer: relu, leaky_relu, elu, gelu, silu, softplus or tanh; None leaves the model
            as published. The weights and their names stay the same. It matters for methods that
            match *slopes* (gradients with respect to the input): the second derivative of ReLU is
            zero almost everywhere, so they move a ReLU network only through its piecewise constant
            slopes, never through the places where the pieces meet. SiLU and Softplus have a real
            curvature. Lesson 03 shows it. `lstm` and `gru` have no activation to replace.
        options: of the model, such as `hidden=(64, 32)` for `mlp` or `vocabulary=2000` for `lstm`.

    Raises:
        ValueError: an unknown name, activation or option, a count below its least value, an
            activation where there is none to replace.
    """
    name = known_name(name)
    builder, fixed = MODELS[name]
    if not _is_count(num_classes, least=2):
        raise ValueError(f"num_classes: expected an integer of at least 2, got {num_classes!r}.")
    if not _is_count(in_channels, least=1):
        raise ValueError(f"in_channels: expected an integer of at least 1, got {in_channels!r}.")
    _check_options(name, options)
    if activation is not None:
        make_activation(activation)
    arguments = {**fixed, **options}
    if _takes(builder, "in_channels"):
        arguments["in_channels"] = in_channels
    with torch.device("cpu"), nullcontext() if seed is None else torch.random.fork_rng(devices=[]):
        if seed is not None:
            # Not torch.manual_seed: it would also reseed the accelerators, which are not forked.
            torch.default_generator.manual_seed(seed)
        model = builder(num_classes, **arguments)
    if activation is not None and not swap_activations(model, activation):
        raise ValueError(
            f"activation: {name!r} has none that could be replaced (its gates are one with the "
            f"cell), got {activation!r}; leave it out."
        )
    return model


def build_for(
    name: str,
    data_shape: Sequence[int],
    num_classes: int,
    *,
    seed: int | None = None,
    **options: Any,
) -> nn.Module:
    """`build` for samples of one shape: (c, h, w) of images, (L,) of texts.

    Sets in_channels for images, or in_features for `mlp`, and for a transformer of texts the
    max_length. A model of texts wants `vocabulary=data.tokenizer.vocabulary` beside it.

    Raises:
        ValueError: a shape that is not three positive integers (one for texts), a model of images
            for texts or the reverse, and what `build` raises.
    """
    name = known_name(name)
    builder, _ = MODELS[name]
    if len(data_shape) not in (1, 3) or not all(_is_count(side, least=1) for side in data_shape):
        raise ValueError(
            "data_shape: expected (channels, height, width) as three positive integers, or "
            f"(length,) of texts, got {data_shape!r}."
        )
    if name not in available(data_shape):
        kinds = "texts, (length,)", "images, (channels, height, width)"
        reads, got = kinds if _takes(builder, "vocabulary") else kinds[::-1]
        raise ValueError(
            f"data_shape: {name!r} reads {reads}; {tuple(data_shape)!r} is the shape of "
            f"{got.split(',')[0]}. For those there are {', '.join(available(data_shape))}."
        )
    if _takes(builder, "in_channels"):
        return build(name, num_classes, data_shape[0], seed=seed, **options)
    for option, value in (
        ("in_features", math.prod(data_shape)),
        ("max_length", data_shape[0]),
    ):
        if _takes(builder, option):
            options.setdefault(option, value)
    return build(name, num_classes, seed=seed, **options)


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, trainable or not; a shared one counts once.

    Buffers do not count, but for whole numbers of 8 bits: the weights of a quantized model.
    """
    whole = (b for b in model.buffers() if b.dtype in (torch.int8, torch.uint8))
    return sum(tensor.numel() for tensor in (*model.parameters(), *whole))


def known_name(name: str) -> str:
    """The name in `MODELS` for one of these or of `ALIASES`.

    Raises:
        ValueError: neither, with the nearest one.
    """
    name = ALIASES.get(name, name) if isinstance(name, str) else name
    check_known("model", name, MODELS)
    return name


def _check_options(name: str, options: dict[str, Any]) -> None:
    builder, fixed = MODELS[name]
    parameters = inspect.signature(builder).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in fixed]
    known += [] if "activation" in known else ["activation"]
    for option in options:
        check_known("option", option, known, f" of {name!r}")


def _takes(builder: Callable[..., nn.Module], option: str) -> bool:
    return option in inspect.signature(builder).parameters


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
