"""Foreign models: small networks written as people write them, not as this package does.

All take images ``[B, 3, 8, 8]`` and tell ``CLASSES`` classes apart. `ZOO` names each of them, with
the layers that a method may read and what it costs, counted by hand.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

CLASSES = 4


def conv(inputs: int, outputs: int, stride: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, **options)


class Plain(nn.Module):
    """The other side of every pair: nothing about it is special."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(conv(3, width), nn.BatchNorm2d(width), nn.ReLU())
        self.stage2 = nn.Sequential(conv(width, 8, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.pool(self.stage2(self.stage1(x))))


# What a model returns.


class AuxiliaryHead(Plain):
    """Two answers in training, one afterwards, as in GoogLeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Any:
        first = self.stage1(x)
        logits = self.head(self.pool(self.stage2(first)))
        return (logits, self.auxiliary(first.mean((2, 3)))) if self.training else logits


class Mapping(Plain):
    """A dict with features beside the logits."""

    def forward(self, x: Tensor) -> Any:
        features = self.pool(self.stage2(self.stage1(x)))
        return {"features": features, "logits": self.head(features)}


class ModelOutput(OrderedDict):
    """What a library's models return: entries that are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Answer:
    def __init__(self, logits: Tensor, hidden: Tensor) -> None:
        self.loss, self.logits, self.hidden = None, logits, hidden


class AnObject(Plain):
    """An object with ``.logits``, and a loss that nobody asked for."""

    def forward(self, x: Tensor) -> Any:
        hidden = self.pool(self.stage2(self.stage1(x)))
        return Answer(self.head(hidden), hidden)


class AList(Plain):
    """A list: the logits, then every stage."""

    def forward(self, x: Tensor) -> Any:
        stages = [self.stage1(x)]
        stages.append(self.stage2(stages[-1]))
        return [self.head(self.pool(stages[-1])), *stages]


# Layers of another kind.


class RowLSTM(nn.Module):
    """Reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(24, 10, batch_first=True)
        self.fc = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 1, 3).flatten(2)
        out, (_h, _c) = self.lstm(rows)
        return self.fc(out[:, -1])


class RowGRU(nn.Module):
    """Both directions, and the sequence before the batch, which is PyTorch's default."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(24, 6, bidirectional=True)
        self.norm = nn.LayerNorm(12)
        self.out = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.gru(x.permute(2, 0, 1, 3).flatten(2))
        return self.out(self.norm(out.mean(0)))


class Signal(nn.Module):
    """One-dimensional convolutions; the last gives the classes and is averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(3, 6, 5, padding="same")
        self.bn1 = nn.BatchNorm1d(6)
        self.conv2 = nn.Conv1d(6, 8, 3, stride=2)
        self.last = nn.Conv1d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x.flatten(2))))
        return self.last(F.relu(self.conv2(x))).mean(2)


class Attention(nn.Module):
    """Patches, one `nn.MultiheadAttention` and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.attn = nn.MultiheadAttention(12, 3, batch_first=True)
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = tokens + self.attn(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(self.norm(tokens).mean(1))


class Encoder(nn.Module):
    """PyTorch's own transformer layers, with a class token and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(24, 12)
        self.cls = nn.Parameter(0.1 * torch.randn(1, 1, 12))
        layer = nn.TransformerEncoderLayer(12, 2, 16, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.permute(0, 2, 1, 3).flatten(2))
        tokens = torch.cat([self.cls.expand(len(x), -1, -1), tokens], dim=1)
        return self.head(self.encoder(tokens)[:, 0])


class UNet(nn.Module):
    """Down, up by a transposed convolution, and a concatenation with what was there before."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.down2 = nn.Sequential(nn.MaxPool2d(2), conv(6, 8), nn.ReLU(inplace=True))
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.merge = nn.Sequential(conv(15, 8), nn.ReLU(inplace=True))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        up = self.up(self.down2(first))
        return self.head(self.merge(torch.cat([first, up, x], dim=1)).mean((2, 3)))


class Upsampler(nn.Module):
    """Ends in a transposed convolution whose outputs are the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(conv(3, 6, 2), nn.ReLU())
        self.decode = nn.ConvTranspose2d(6, CLASSES, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x)).amax((2, 3))


class Depthwise(nn.Module):
    """A depthwise convolution with two filters for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), nn.ReLU6())
        self.deep = nn.Sequential(conv(6, 12, 2, groups=6), nn.BatchNorm2d(12), nn.ReLU6())
        self.point = nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.point(self.deep(self.stem(x))).mean((2, 3)))


class Shuffled(nn.Module):
    """Channels become places (PixelShuffle)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(conv(3, 8, 2), nn.ReLU())
        self.shuffle = nn.PixelShuffle(2)
        self.second = nn.Sequential(conv(2, 6), nn.ReLU())
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.shuffle(self.first(x))).mean((2, 3)))


class Chunked(nn.Module):
    """Half of the channels gate the other half."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = conv(3, 12)
        self.then = nn.Sequential(conv(6, 8, 2), nn.ReLU())
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.mix(x).chunk(2, dim=1)
        return self.head(self.then(value * gate.sigmoid()).mean((2, 3)))


# Norms.


class Normed(nn.Module):
    """Two convolutions, each with a norm that is given as a function of size."""

    def __init__(self, norm: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.block1 = nn.Sequential(conv(3, 6), norm(6, 8), nn.ReLU())
        self.block2 = nn.Sequential(conv(6, 8, 2), norm(8, 4), nn.ReLU())
        self.classifier = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.block2(self.block1(x)).mean((2, 3)))


class Wrapped(nn.Module):
    """Every convolution and the classifier go through a function such as `weight_norm`."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.conv1, self.conv2 = wrap(conv(3, 6)), wrap(conv(6, 8, 2))
        self.head = wrap(nn.Linear(8, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv2(F.relu(self.conv1(x)))).mean((2, 3)))


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.nn.utils.weight_norm(layer)


# Weights that are used more than once, or not at all.


class Tied(nn.Module):
    """An autoencoder's two matrices are one; so are the first convolution's two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(192, 10)
        self.decoder = nn.Linear(10, 10, bias=False)
        self.head = nn.Linear(10, 10, bias=False)
        self.head.weight = self.decoder.weight
        self.out = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.encoder(x.flatten(1)))
        return self.out(torch.relu(self.head(torch.relu(self.decoder(hidden)))))


class Twice(nn.Module):
    """One block applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.block = nn.Sequential(conv(6, 6), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.block(self.stem(x))).mean((2, 3)))


class Lazy(nn.Module):
    """Nobody has said yet how many inputs the layers have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.LazyConv2d(6, 3)
        self.head = nn.LazyLinear(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x)).flatten(1))


class FrozenBackbone(Plain):
    """A backbone that somebody else trained; only the classifier is to learn."""

    def __init__(self) -> None:
        super().__init__()
        for part in (self.stage1, self.stage2):
            part.requires_grad_(False)
            for norm in part.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.running_mean.normal_()
                    norm.running_var.uniform_(0.5, 2)


class NoParameters(nn.Module):
    """Fixed random features and nothing to learn: a buffer holds all."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.randn(192, CLASSES) / 8)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix


class Fourier(nn.Module):
    """A complex parameter, as in models that filter in the frequency domain."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(3, 8, 5, dtype=torch.complex64))
        self.head = nn.Linear(192, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.fft.irfft2(torch.fft.rfft2(x) * self.filter).flatten(1))


# Habits.


class HardView(nn.Module):
    """A ``view`` with the number of features written out, as in many a tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 6, 3)
        self.pool = nn.AvgPool2d(2, 1)
        self.fc1, self.fc2 = nn.Linear(54, 10), nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv2(F.relu(self.conv1(x)))))
        x = x.view(-1, 54)
        return self.fc2(F.relu(self.fc1(x)))


class ForgottenDropout(Plain):
    """``F.dropout`` without ``training=``: random in eval mode, too."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.pool(self.stage2(self.stage1(x))), 0.3))


class Container(Plain):
    """Has a length, which is 0: ``if teacher`` is false for it."""

    def __len__(self) -> int:
        return 0


class ExtraState(Plain):
    """Keeps more than tensors in its state."""

    def __init__(self) -> None:
        super().__init__()
        self.version = {"format": 2, "labels": ("a", "b", "c", "d")}

    def get_extra_state(self) -> Any:
        return self.version

    def set_extra_state(self, state: Any) -> None:
        self.version = state


class Checkpointed(Plain):
    """Saves memory by computing the stages again in the backward, in the old, reentrant way."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x.requires_grad_() if x.is_leaf else x
            x = checkpoint(self.stage1, x, use_reentrant=True)
            x = checkpoint(self.stage2, x, use_reentrant=True)
        else:
            x = self.stage2(self.stage1(x))
        return self.head(self.pool(x))


class InPlace(nn.Module):
    """An in-place ReLU on a view of what a layer gave."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid = conv(3, 6), conv(6, 8, 2)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        F.relu_(x[:, :3])
        x = self.mid(x).flatten(2)
        F.relu(x, inplace=True)
        return self.head(x.mean(2))


class Branching(Plain):
    """Another path in training: stochastic depth, written with an ``if``."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(conv(6, 6), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage1(x)
        if self.training and torch.rand(()) < 0.5:
            x = x + self.block(x)
        elif not self.training:
            x = x + 0.5 * self.block(x)
        return self.head(self.pool(self.stage2(x)))


# What PyTorch makes of a model.


def compiled() -> nn.Module:
    return torch.compile(Plain(), backend="eager")


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(Typed())


def traced() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(Typed().eval(), torch.zeros(2, 3, 8, 8))


class Typed(nn.Sequential):
    """The plain model as TorchScript can read it."""

    def __init__(self) -> None:
        plain = Plain()
        super().__init__(OrderedDict(plain.named_children()))


def exported() -> nn.Module:
    batch = torch.export.Dim("batch", min=1, max=4096)
    example = torch.zeros(2, 3, 8, 8)
    program = torch.export.export(Plain().eval(), (example,), dynamic_shapes=({0: batch},))
    return program.module()


def dynamically_quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(
            nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.ReLU(), nn.Linear(12, CLASSES)),
            {nn.Linear},
        )


def a_function() -> Callable[[Tensor], Tensor]:
    matrix = torch.randn(192, CLASSES) / 8
    return lambda images: images.flatten(1) @ matrix


@dataclass(frozen=True)
class Foreign:
    """One model and what is known of it.

    Attributes:
        make: builds it; weights follow PyTorch's seed.
        layers: two inner layers to compare, from shallow to deep; empty where there is none.
        embedding: what a classifier reads, ``[B, d]``: a path.
        classifier: the path of that one.
        macs: multiplications and additions (in pairs) of one image, counted by hand.
        student: False where there is nothing to train; such a model only teaches.
        dtype: of the images that it takes.
        random: what it learns or teaches cannot be repeated in a plain loop, because it draws
            random numbers, or because an answer depends on the other images of the batch.
        dice: even its answers in eval mode are random.
        error: of its logits by rounding, as a share of the largest.
        onnx: whether it is also written as .onnx, which takes most of a second; False where
            another model has the same operations.
        every: of the methods that read inner layers only each so manieth is tried, because each
            has this model compiled once more.
    """

    make: Callable[[], Any]
    layers: tuple[str, ...] = ("stage1", "stage2")
    embedding: str = "pool"
    macs: int | None = None
    student: bool = True
    dtype: torch.dtype = torch.float32
    random: bool = False
    dice: bool = False
    error: float = 1e-5
    onnx: bool = True
    every: int = 1

    @property
    def classifier(self) -> str:
        return self.embedding.removesuffix(":input").replace("pool", "head")

    def build(self, seed: int = 0) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make()


PLAIN_MACS = 64 * 27 * 6 + 16 * 54 * 8 + 8 * CLASSES
TWO_LAYERS = {"layers": ("conv1", "conv2"), "embedding": "head:input"}
BLOCKS = {"layers": ("block1", "block2"), "embedding": "classifier:input", "macs": PLAIN_MACS}

ZOO: dict[str, Foreign] = {
    # outputs
    "auxiliary head": Foreign(AuxiliaryHead, macs=PLAIN_MACS, onnx=False),
    "dict": Foreign(Mapping, macs=PLAIN_MACS),
    "object": Foreign(AnObject, macs=PLAIN_MACS, onnx=False),
    "list": Foreign(AList, macs=PLAIN_MACS, onnx=False),
    # layers
    "LSTM": Foreign(RowLSTM, ("lstm",), "fc:input", 8 * 4 * 10 * (24 + 10) + 10 * CLASSES),
    "GRU, both ways": Foreign(
        RowGRU, ("norm",), "out:input", 2 * 8 * 3 * 6 * (24 + 6) + 12 * CLASSES
    ),
    "Conv1d": Foreign(
        Signal, ("conv1", "conv2"), "last", 64 * 15 * 6 + 31 * 18 * 8 + 31 * 8 * CLASSES
    ),
    "multi-head attention": Foreign(
        Attention, ("patches", "norm"), "head:input", 4 * 48 * 12 + 4 * 4 * 144 + 2 * 16 * 12 + 48
    ),
    "transformer encoder": Foreign(
        Encoder,
        ("embed", "encoder"),
        "head:input",
        8 * 24 * 12 + 2 * (4 * 9 * 144 + 2 * 81 * 12 + 2 * 9 * 12 * 16) + 48,
        random=True,
    ),
    "U-Net": Foreign(
        UNet,
        ("down1", "down2"),
        "head:input",
        64 * 27 * 6 + 16 * 54 * 8 + 16 * 8 * 24 + 64 * 135 * 8 + 8 * CLASSES,
    ),
    "transposed convolution last": Foreign(
        Upsampler, ("encode", "decode"), "encode", 16 * 27 * 6 + 16 * 6 * 4 * CLASSES
    ),
    "depthwise × 2": Foreign(
        Depthwise,
        ("stem", "deep"),
        "head:input",
        64 * 27 * 6 + 16 * 9 * 12 + 16 * 12 * 8 + 8 * CLASSES,
    ),
    "pixel shuffle": Foreign(
        Shuffled, ("first", "second"), "head:input", 16 * 27 * 8 + 64 * 18 * 6 + 6 * CLASSES
    ),
    "channel chunk": Foreign(
        Chunked, ("mix", "then"), "head:input", 64 * 27 * 12 + 16 * 54 * 8 + 8 * CLASSES
    ),
    # norms
    "group norm": Foreign(lambda: Normed(lambda c, _: nn.GroupNorm(2, c)), **BLOCKS),
    "layer norm [c, h, w]": Foreign(
        lambda: Normed(lambda c, side: nn.LayerNorm([c, side, side])), **BLOCKS
    ),
    "batch statistics": Foreign(
        lambda: Normed(lambda c, _: nn.BatchNorm2d(c, track_running_stats=False)),
        **BLOCKS,
        random=True,
    ),
    "no norm": Foreign(
        lambda: Wrapped(lambda layer: layer), **TWO_LAYERS, macs=PLAIN_MACS, onnx=False
    ),
    "weight norm, old": Foreign(lambda: Wrapped(old_weight_norm), **TWO_LAYERS, macs=PLAIN_MACS),
    "weight norm": Foreign(
        lambda: Wrapped(parametrizations.weight_norm), **TWO_LAYERS, macs=PLAIN_MACS, onnx=False
    ),
    "spectral norm": Foreign(lambda: Wrapped(parametrizations.spectral_norm), **TWO_LAYERS),
    # shared, missing and frozen weights
    "tied weights": Foreign(
        Tied, ("encoder", "decoder"), "out:input", 1920 + 100 + 100 + 10 * CLASSES
    ),
    "one block twice": Foreign(
        Twice,
        ("stem", "block"),
        "head:input",
        64 * 27 * 6 + 2 * 64 * 54 * 6 + 6 * CLASSES,
        onnx=False,
    ),
    "lazy": Foreign(Lazy, ("conv",), "head:input"),
    "frozen backbone": Foreign(FrozenBackbone, macs=PLAIN_MACS, onnx=False),
    "no parameter": Foreign(NoParameters, (), "", 192 * CLASSES),
    "complex parameter": Foreign(Fourier, (), "head:input"),
    # habits
    "view(-1, 54)": Foreign(
        HardView,
        ("conv1", "conv2"),
        "fc2:input",
        36 * 27 * 5 + 16 * 45 * 6 + 540 + 10 * CLASSES,
    ),
    "dropout in eval mode": Foreign(ForgottenDropout, macs=PLAIN_MACS, random=True, dice=True),
    "length 0": Foreign(Container, macs=PLAIN_MACS, onnx=False),
    "extra state": Foreign(ExtraState, macs=PLAIN_MACS, onnx=False),
    "reentrant checkpointing": Foreign(Checkpointed, macs=PLAIN_MACS),
    "in-place on a view": Foreign(InPlace, ("stem", "mid"), "head:input", PLAIN_MACS),
    "branch on training": Foreign(
        Branching, macs=PLAIN_MACS + 64 * 54 * 6, random=True, onnx=False
    ),
    # dtypes
    "bf16": Foreign(lambda: Plain().bfloat16(), macs=PLAIN_MACS, error=0.05),
    "float64": Foreign(lambda: Plain().double(), macs=PLAIN_MACS, dtype=torch.float64),
    # what PyTorch makes of a model
    "compiled": Foreign(compiled, macs=PLAIN_MACS, every=10),
    "scripted": Foreign(scripted, macs=PLAIN_MACS),
    "traced": Foreign(traced, macs=PLAIN_MACS),
    # teachers only
    "exported program": Foreign(exported, student=False, macs=PLAIN_MACS),
    "dynamically quantized": Foreign(
        dynamically_quantized, ("1", "2"), "3:input", random=True, student=False
    ),
    "a function": Foreign(a_function, (), "", student=False),
}
