"""Teachers that hide a narrow student among channels that do nothing, and models to do it with.

Where the channels of a model meet is written down here by hand, one label per axis of each tensor:
axes of one label hold the same channels. "-" has no channels, "a*9" is a flattened 3x3 map of a,
"a+b" is a next to b; "!" marks the axis that is written, if it is not the first.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def pieces(label: str) -> list[tuple[str, int]]:
    parts = [part.rstrip("!").partition("*") for part in label.split("+")]
    return [(name, int(times or 1)) for name, _, times in parts]


def axes_of(labels: dict[str, str], name: str, tensor: Tensor) -> list[str]:
    """One label for each axis; what is not written down has no channels."""
    return (labels.get(name, "").split() + ["-"] * tensor.dim())[: tensor.dim()]


def widen(truth: nn.Module, wide: nn.Module, labels: dict[str, str], seed: int = 0) -> None:
    """Make ``wide`` compute what ``truth`` computes, in channels drawn for each label.

    The filters of all other channels are zero, and so is what a norm makes of them; what later
    layers would read from them is noise.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, Tensor] = {}

    def places(label: str, small: int, large: int) -> Tensor:
        if label == "-":
            assert small == large, label
            return torch.arange(small)
        found, start = [], 0
        shares = sum(times for _, times in pieces(label))
        for name, times in pieces(label):
            n, of = small // shares, large // shares
            if name not in drawn:
                drawn[name] = torch.randperm(of, generator=generator)[:n].sort().values
            assert len(drawn[name]) == n, label
            found.append((start + drawn[name][:, None] * times + torch.arange(times)).flatten())
            start += of * times
        return torch.cat(found)

    narrow, state = truth.state_dict(), wide.state_dict()
    for name, value in narrow.items():
        target = state[name]
        if not value.dim():
            target.copy_(value)
            continue
        axes = axes_of(labels, name, value)
        kept = [places(axes[k], value.shape[k], target.shape[k]) for k in range(value.dim())]
        written = next((k for k in range(value.dim()) if axes[k].endswith("!")), 0)
        target.copy_(100 * torch.randn(target.shape, generator=generator))
        dead = torch.ones(target.shape[written], dtype=torch.bool)
        dead[kept[written]] = False
        target.movedim(written, 0)[dead] = 1.0 if name.endswith("running_var") else 0.0
        target[torch.meshgrid(*kept, indexing="ij")] = value


def number_places(model: nn.Module) -> nn.Module:
    """Each value of a tensor becomes the number of its place."""
    for tensor in model.double().state_dict().values():
        tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape))
    return model


def kept_in(
    student: nn.Module, teacher: nn.Module, labels: dict[str, str]
) -> dict[str, list[tuple[str, list[int]]]]:
    """Where each label's channels come from, by the numbers the student took: (axis, places)."""
    found: dict[str, list[tuple[str, list[int]]]] = {}
    large = teacher.state_dict()
    for name, value in student.state_dict().items():
        full = large[name].shape
        places = torch.stack(torch.unravel_index(value.long(), full)) if value.dim() else []
        for axis, label in enumerate(axes_of(labels, name, value)):
            lines = places[axis].movedim(axis, 0).reshape(len(value.movedim(axis, 0)), -1)
            assert (lines == lines[:, :1]).all(), f"{name}: no selection along axis {axis}"
            line = lines[:, 0].tolist()
            if label == "-":
                assert line == list(range(full[axis])), name
                continue
            start, shares = 0, sum(times for _, times in pieces(label))
            for piece, times in pieces(label):
                stop = start + full[axis] // shares * times
                mine = [place - start for place in line if start <= place < stop]
                channels = sorted({place // times for place in mine})
                assert mine == [c * times + k for c in channels for k in range(times)], name
                found.setdefault(piece, []).append((f"{name}[{axis}]", channels))
                start = stop
    return found


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and statistics in float64: nothing is at its usual start."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(noise + 0.5 if tensor.dim() < 2 or "running" in name else noise - 0.5)
    return model.double()


def norm(path: str, label: str) -> dict[str, str]:
    kinds = ("weight", "bias", "running_mean", "running_var")
    return {f"{path}.{kind}": label for kind in kinds}


def chain(model: nn.Module) -> dict[str, str]:
    """Layers in a row: each reads what the one before wrote."""
    labels, before = {}, "-"
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            last = path == "head" or path == f"layers.{len(getattr(model, 'layers', ())) - 1}"
            own = "-" if last else path
            labels |= {f"{path}.weight": f"{own} {before}", f"{path}.bias": own}
            before = own
        elif isinstance(module, nn.BatchNorm2d):
            labels |= norm(path, before)
    return labels


def residual(model: nn.Module) -> dict[str, str]:
    """ResNets and wide ResNets: a stage adds up in one set of channels."""
    plain = isinstance(model.stem, nn.Sequential)
    labels = {"stem.0.weight" if plain else "stem.weight": "sum0 -"} | norm("stem.1", "sum0")
    stream = "sum0"
    for stage in (1, 2, 3):
        for number, block in enumerate(getattr(model, f"stage{stage}")):
            path = f"stage{stage}.{number}"
            projects = bool(block.shortcut is not None and block.shortcut.state_dict())
            out = f"sum{stage}" if projects else stream
            labels |= {f"{path}.conv1.weight": f"{path} {stream}"}
            labels |= {f"{path}.conv2.weight": f"{out} {path}"}
            labels |= norm(f"{path}.bn1", path if plain else stream)
            labels |= norm(f"{path}.bn2", out if plain else path)
            labels |= {f"{path}.shortcut{'.0' if plain else ''}.weight": f"{out} {stream}"}
            labels |= norm(f"{path}.shortcut.1", out)
            stream = out
    return labels | norm("norm.0", stream) | {"head.weight": f"- {stream}", "head.bias": "-"}


def inverted(model: nn.Module) -> dict[str, str]:
    """MobileNetV2: wide inside a block, narrow between blocks."""
    labels, stream = {"stem.0.weight": "stem -"} | norm("stem.1", "stem"), "stem"
    for stage in (1, 2, 3, 4):
        for number, block in enumerate(getattr(model, f"stage{stage}")):
            path = f"stage{stage}.{number}"
            out = stream if block.has_shortcut else f"{path}.out"
            inner = f"{path}.layers"
            labels |= {f"{inner}.0.weight": f"{path} {stream}", f"{inner}.3.weight": f"{path} -"}
            labels |= norm(f"{inner}.1", path) | norm(f"{inner}.4", path)
            labels |= {f"{inner}.6.weight": f"{out} {path}"} | norm(f"{inner}.7", out)
            stream = out
    labels |= {"mix.0.weight": f"mix {stream}", "head.weight": "- mix", "head.bias": "-"}
    return labels | norm("mix.1", "mix")


class Flattened(nn.Module):
    """A map is flattened into a Linear layer; biases; ReLU6 in place; padding by hand."""

    LABELS: ClassVar = {
        "a.weight": "a -", "a.bias": "a", "b.weight": "b a*9", "b.bias": "b",
        "c.weight": "- b", "c.bias": "-",
    }  # fmt: skip

    def __init__(self, w: int) -> None:
        super().__init__()
        self.a, self.act = nn.Conv2d(3, w, 3), nn.ReLU6(inplace=True)
        self.b, self.c = nn.Linear(9 * w, 2 * w), nn.Linear(2 * w, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.act(self.a(F.pad(x, (0, 1, 0, 1)))), 3)
        return self.c(F.hardswish(self.b(torch.flatten(F.dropout(x, training=self.training), 1))))


class Dense(nn.Module):
    """Channels side by side (cat), taken apart again (chunk), a norm over both."""

    LABELS: ClassVar = {
        "a.weight": "a -", "b.weight": "b a", "n.weight": "a+b", "n.bias": "a+b",
        "n.running_mean": "a+b", "n.running_var": "a+b", "c.weight": "c a+b", "d.weight": "d b",
        "e.weight": "- c", "f.weight": "- d",
    }  # fmt: skip

    def __init__(self, w: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, w, 3, bias=False), nn.Conv2d(w, w, 1, bias=False)
        self.n = nn.BatchNorm2d(2 * w)
        self.c, self.d = nn.Conv2d(2 * w, w, 1, bias=False), nn.Conv2d(w, w, 1, bias=False)
        self.e, self.f = nn.Linear(w, 5, bias=False), nn.Linear(w, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).relu()
        both = self.n(torch.cat([a, self.b(a)], dim=1))
        _, b = both.chunk(2, dim=1)
        return self.e(self.c(both).mean((2, 3))) + self.f(self.d(b).amax((2, 3)))


class Gated(nn.Module):
    """Gates per channel and per place, two depthwise filters each, a transposed convolution."""

    LABELS: ClassVar = {
        "a.weight": "a -", "down.weight": "down a", "down.bias": "down", "up.weight": "a down",
        "up.bias": "a", "scale": "a", "deep.weight": "a*2 -", "deep.bias": "a*2",
        "back.weight": "a*2 b!", "back.bias": "b", "spot.weight": "- b", "c.weight": "- b",
    }  # fmt: skip

    def __init__(self, w: int) -> None:
        super().__init__()
        self.a, self.scale = nn.Conv2d(3, w, 3, bias=False), nn.Parameter(torch.ones(w, 1, 1))
        self.down, self.up = nn.Linear(w, w // 2), nn.Linear(w // 2, w)
        self.deep = nn.Conv2d(w, 2 * w, 3, groups=w)
        self.back = nn.ConvTranspose2d(2 * w, w, 2)
        self.spot, self.c = nn.Conv2d(w, 1, 1), nn.Linear(w, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        gate = torch.sigmoid(self.up(self.down(x.mean((2, 3))).relu()))
        x = x * gate[:, :, None, None] * self.scale
        x = self.back(F.interpolate(self.deep(x), scale_factor=2, mode="nearest"))
        x = x * self.spot(x).sigmoid()
        return self.c(F.max_pool2d(x, 2).sum((2, 3)))


class Halved(nn.Module):
    """One convolution whose halves go separate ways."""

    LABELS: ClassVar = {"a.weight": "p+q -", "b.weight": "- p", "c.weight": "- q"}

    def __init__(self, w: int) -> None:
        super().__init__()
        self.w, self.a = w, nn.Conv2d(3, 2 * w, 3, bias=False)
        self.b, self.c = nn.Linear(w, 5, bias=False), nn.Linear(w, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        p, q = self.a(x).relu().split(self.w, dim=1)
        return self.b(p.mean((2, 3))) * self.c(q.amax((2, 3)))


class Padded(nn.Module):
    """The shortcut without weights: every second place, and zeros for the channels it lacks."""

    LABELS: ClassVar = {
        "a.weight": "low -", "b.weight": "low+high low", "n.weight": "low+high",
        "n.bias": "low+high", "n.running_mean": "low+high", "n.running_var": "low+high",
        "c.weight": "- low+high",
    }  # fmt: skip

    def __init__(self, w: int) -> None:
        super().__init__()
        self.w = w
        self.a, self.b = nn.Conv2d(3, w, 3, bias=False), nn.Conv2d(w, 2 * w, 1, 2, bias=False)
        self.n, self.c = nn.BatchNorm2d(2 * w), nn.Linear(2 * w, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.w))
        return self.c((shortcut + self.n(self.b(x))).relu().mean((2, 3)))


class Words(nn.Module):
    """Tokens: an embedding, a class token, attention with one head."""

    LABELS: ClassVar = {
        "words.weight": "- d!", "first": "- - d!", "q.weight": "k d", "k.weight": "k d",
        "v.weight": "d d", "out.weight": "- d",
    }  # fmt: skip

    def __init__(self, w: int) -> None:
        super().__init__()
        self.words, self.first = nn.Embedding(7, w), nn.Parameter(torch.ones(1, 1, w))
        self.q, self.k = nn.Linear(w, w, bias=False), nn.Linear(w, w, bias=False)
        self.v, self.out = nn.Linear(w, w, bias=False), nn.Linear(w, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.first.expand(len(x), -1, -1), self.words(x)], dim=1)
        scores = torch.bmm(self.q(x), self.k(x).transpose(1, 2)) / 4
        x = x + torch.bmm(scores.softmax(-1), self.v(x))
        return self.out(x[:, 0])
