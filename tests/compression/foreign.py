"""Small models as people write them, each with one thing that the course's own models do not do."""

import types

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

CLASSES = 4
SHAPE = (1, 12, 12)


class Written(nn.Module):
    """A model by its forward, a function of itself and the inputs, and its parts."""

    def __init__(self, forward, **parts) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def conv(inputs: int, outputs: int, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


def plain_parts() -> dict[str, nn.Module]:
    return {"a": conv(1, 8), "norm": nn.BatchNorm2d(8), "b": conv(8, 8), "head": head(8)}


def usual(m, x):
    return m.head(F.relu(m.b(F.relu(m.norm(m.a(x))))))


def two_layers(*between: nn.Module, wrap=lambda layer: layer) -> nn.Sequential:
    return nn.Sequential(
        wrap(conv(1, 8)), *between, nn.ReLU(), wrap(conv(8, 8)), nn.ReLU(), head(8)
    )


def with_auxiliary_head(m, x):
    early = F.relu(m.a(x))
    out = m.head(F.relu(m.b(early)))
    return (out, m.aux(early)) if m.training else out


def by_chunks(join):
    def forward(m, x):
        return m.head(join(m, *m.b(F.relu(m.a(x))).chunk(2, 1)))

    return forward


def shuffled(m, x):
    y = m.b(F.relu(m.a(x)))
    b, c, h, w = y.shape
    y = y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
    return m.head(F.relu(m.c(y)))


def attended(m, x):
    tokens = m.embed(x).flatten(2).transpose(1, 2)
    return m.head((tokens + m.attention(tokens, tokens, tokens)[0]).mean(1))


def half_frozen(m, x):
    with torch.no_grad():
        y = F.relu(m.norm(m.a(x)))
    return m.head(F.relu(m.b(y)))


def tied() -> nn.Module:
    model = Written(
        lambda m, x: m.head(F.relu(m.r(F.relu(m.q(F.relu(m.p(x.flatten(1)))))))),
        p=nn.Linear(144, 16),
        q=nn.Linear(16, 16),
        r=nn.Linear(16, 16),
        head=nn.Linear(16, CLASSES),
    )
    model.r.weight = model.q.weight
    return model


def hooked() -> nn.Module:
    model = Written(usual, **plain_parts())
    model.b.register_forward_hook(lambda module, inputs, output: output * 2)
    return model


def masked() -> nn.Module:
    model = Written(usual, **plain_parts())
    nn.utils.prune.l1_unstructured(model.b, "weight", 0.3)
    return model


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class LowRankUpdate(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down = nn.Parameter(torch.randn(2, inputs) * 0.1)
        self.up = nn.Parameter(torch.randn(outputs, 2) * 0.1)

    def forward(self, x):
        return super().forward(x) + x @ self.down.T @ self.up.T


class Counting(nn.Module):
    """Has a state that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0

    def forward(self, x):
        return x * self.scale

    def get_extra_state(self):
        return {"scale": self.scale, "shape": (1, 2), "seen": torch.tensor([3, 4]), "raw": b"\x01"}

    def set_extra_state(self, state):
        assert state["shape"] == (1, 2) and state["seen"].tolist() == [3, 4]
        assert state["raw"] == b"\x01"
        self.scale = state["scale"]


def traced() -> nn.Module:
    return torch.jit.trace(two_layers().eval(), torch.zeros(2, *SHAPE))


def dynamically_quantized() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    return torch.ao.quantization.quantize_dynamic(model.eval())


def with_torchao() -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    quantize_(model.eval(), Int8WeightOnlyConfig())
    return model


def not_finite() -> nn.Module:
    model = Written(usual, **plain_parts())
    model.b.weight.data[0, 0, 0, 0] = float("nan")
    return model


MODELS = {
    "linear_norm": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(144, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES)
    ),
    "conv1d_norm": lambda: nn.Sequential(
        nn.Flatten(2),
        nn.Conv1d(1, 8, 3, padding=1),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Conv1d(8, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    ),
    "batch_statistics": lambda: two_layers(nn.BatchNorm2d(8, track_running_stats=False)),
    "norm_without_scale": lambda: two_layers(nn.BatchNorm2d(8, affine=False)),
    "conv_used_twice": lambda: Written(
        lambda m, x: m.head(m.n2(m.c(F.relu(m.n1(m.c(F.relu(m.a(x)))))))),
        a=conv(1, 8),
        c=conv(8, 8),
        n1=nn.BatchNorm2d(8),
        n2=nn.BatchNorm2d(8),
        head=head(8),
    ),
    "padding_same": lambda: nn.Sequential(
        nn.Conv2d(1, 8, 3, padding="same"),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 4, padding="same"),
        nn.ReLU(),
        head(8),
    ),
    "weight_norm": lambda: two_layers(wrap=nn.utils.weight_norm),
    "weight_norm_parametrized": lambda: two_layers(wrap=parametrizations.weight_norm),
    "spectral_norm": lambda: two_layers(wrap=nn.utils.spectral_norm),
    "spectral_norm_parametrized": lambda: two_layers(wrap=parametrizations.spectral_norm),
    "orthogonal": lambda: nn.Sequential(
        nn.Flatten(),
        parametrizations.orthogonal(nn.Linear(144, 16)),
        nn.ReLU(),
        nn.Linear(16, CLASSES),
    ),
    "transposed_head": lambda: Written(
        lambda m, x: m.t(F.relu(m.b(F.relu(m.a(x))))).mean((2, 3)),
        a=conv(1, 8),
        b=conv(8, 8),
        t=nn.ConvTranspose2d(8, CLASSES, 3),
    ),
    "conv1d_head": lambda: Written(
        lambda m, x: m.t(F.relu(m.b(F.relu(m.a(x)))).flatten(2)).mean(2),
        a=conv(1, 8),
        b=conv(8, 8),
        t=nn.Conv1d(8, CLASSES, 3),
    ),
    "attention": lambda: Written(
        attended,
        embed=nn.Conv2d(1, 16, 3, stride=3),
        attention=nn.MultiheadAttention(16, 4, batch_first=True),
        head=nn.Linear(16, CLASSES),
    ),
    "encoder_layer": lambda: Written(
        lambda m, x: m.head(m.layer(m.embed(x).flatten(2).transpose(1, 2)).mean(1)),
        embed=nn.Conv2d(1, 16, 3, stride=3),
        layer=nn.TransformerEncoderLayer(16, 4, 32, batch_first=True),
        head=nn.Linear(16, CLASSES),
    ),
    "depthwise_twice": lambda: nn.Sequential(
        conv(1, 8),
        nn.ReLU(),
        conv(8, 16, groups=8),
        nn.ReLU(),
        nn.Conv2d(16, 8, 1),
        nn.ReLU(),
        head(8),
    ),
    "grouped": lambda: nn.Sequential(
        conv(1, 8),
        nn.ReLU(),
        conv(8, 16, groups=2),
        nn.ReLU(),
        nn.Conv2d(16, 8, 1),
        nn.ReLU(),
        head(8),
    ),
    "grouped_transposed": lambda: nn.Sequential(
        conv(1, 8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 16, 3, groups=4),
        nn.ReLU(),
        nn.Conv2d(16, 8, 1),
        nn.ReLU(),
        head(8),
    ),
    "layer_norm_of_maps": lambda: two_layers(nn.LayerNorm([8, 12, 12])),
    "pixel_shuffle": lambda: nn.Sequential(
        conv(1, 16), nn.PixelShuffle(2), nn.ReLU(), conv(4, 8), nn.ReLU(), conv(8, 8), head(8)
    ),
    "chunks_that_meet": lambda: Written(
        by_chunks(lambda m, p, q: p * torch.sigmoid(q)), a=conv(1, 8), b=conv(8, 16), head=head(8)
    ),
    "chunks_apart": lambda: Written(
        by_chunks(lambda m, p, q: F.relu(m.p(F.relu(p))) + F.relu(m.q(F.relu(q)))),
        a=conv(1, 8),
        b=conv(8, 16),
        p=conv(8, 8),
        q=conv(8, 8),
        head=head(8),
    ),
    "channel_shuffle": lambda: Written(
        shuffled, a=conv(1, 8), b=conv(8, 8), c=conv(8, 8), head=head(8)
    ),
    "lstm": lambda: Written(
        lambda m, x: m.head(m.lstm(F.relu(m.embed(x.squeeze(1))))[0][:, -1]),
        embed=nn.Linear(12, 16),
        lstm=nn.LSTM(16, 16, batch_first=True),
        head=nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, CLASSES)),
    ),
    "hard_coded_view": lambda: Written(
        lambda m, x: m.head(F.relu(m.b(F.relu(m.a(x)))).mean((2, 3)).view(-1, 8)),
        a=conv(1, 8),
        b=conv(8, 8),
        head=nn.Linear(8, CLASSES),
    ),
    "auxiliary_head": lambda: Written(
        with_auxiliary_head, a=conv(1, 8), b=conv(8, 8), head=head(8), aux=head(8)
    ),
    "concat_with_input": lambda: Written(
        lambda m, x: m.head(F.relu(m.b(torch.cat([F.relu(m.a(x)), x], 1)))),
        a=conv(1, 8),
        b=conv(9, 8),
        head=head(8),
    ),
    "group_norm": lambda: two_layers(nn.GroupNorm(2, 8)),
    "instance_norm": lambda: two_layers(nn.InstanceNorm2d(8, affine=True)),
    "no_norm": two_layers,
    "sync_norm": lambda: nn.SyncBatchNorm.convert_sync_batchnorm(two_layers(nn.BatchNorm2d(8))),
    "tied": tied,
    "conv3d": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 1)),
        nn.Conv3d(1, 8, (1, 3, 3)),
        nn.BatchNorm3d(8),
        nn.ReLU(),
        nn.Conv3d(8, 8, (1, 3, 3)),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    ),
    "u_net": lambda: Written(
        lambda m, x: m.head(
            F.relu(
                m.out(torch.cat([m.up(F.relu(m.down(F.max_pool2d(F.relu(m.a(x)), 2)))), m.a(x)], 1))
            )
        ),
        a=conv(1, 8),
        down=conv(8, 16),
        up=nn.ConvTranspose2d(16, 8, 2, 2),
        out=conv(16, 8),
        head=head(8),
    ),
    "tuple": lambda: Written(lambda m, x: (usual(m, x), x), **plain_parts()),
    "dict": lambda: Written(lambda m, x: {"logits": usual(m, x), "x": x}, **plain_parts()),
    "object": lambda: Written(
        lambda m, x: types.SimpleNamespace(logits=usual(m, x)), **plain_parts()
    ),
    "float64": lambda: Written(usual, **plain_parts()).double(),
    "bfloat16": lambda: Written(usual, **plain_parts()).bfloat16(),
    "frozen": lambda: Written(usual, **plain_parts()).requires_grad_(False),
    "half_frozen": lambda: Written(half_frozen, **plain_parts()),
    "extra_state": lambda: two_layers(Counting()),
    "hooked": hooked,
    "masked": masked,
    "compiled": lambda: torch.compile(Written(usual, **plain_parts()), backend="eager"),
    "standardised": lambda: nn.Sequential(
        Standardised(1, 8, 3), nn.ReLU(), Standardised(8, 8, 3), nn.ReLU(), head(8)
    ),
    "low_rank_update": lambda: nn.Sequential(
        nn.Flatten(), LowRankUpdate(144, 32), nn.ReLU(), LowRankUpdate(32, CLASSES)
    ),
    "dropout": lambda: two_layers(nn.Dropout(0.5)),
    "prelu": lambda: two_layers(nn.PReLU(8)),
    "unused_layer": lambda: Written(usual, **plain_parts(), unused=nn.Linear(8, 5)),
}
# refused by every function that changes layers
OPAQUE = {
    "traced": (traced, "ScriptModule|TracedModule"),
    "dynamically_quantized": (dynamically_quantized, "quantized already"),
    "torchao": (with_torchao, "Int8Tensor.*quantized already|AffineQuantizedTensor"),
    "complex": (
        lambda: Written(
            lambda m, x: m.head(m.a(x.flatten(1).to(torch.complex64)).abs()),
            a=nn.Linear(144, 16, dtype=torch.complex64),
            head=nn.Linear(16, CLASSES),
        ),
        r"complex numbers in a\.weight",
    ),
    "lazy": (
        lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(CLASSES)),
        r"1\.weight without a sh",
    ),
    "no_parameter": (
        lambda: Written(lambda m, x: x.flatten(1)[:, :CLASSES]),
        "no convolution and no Linear layer",
    ),
    "not_finite": (not_finite, r"b\.weight with numbers that are not finite"),
}


def build_foreign(name: str, seed: int = 0) -> nn.Module:
    """In eval mode, with statistics in its norms that are not those of the start."""
    torch.manual_seed(seed)
    model = (MODELS.get(name) or OPAQUE[name][0])()
    for layer in model.modules():
        mean = getattr(layer, "running_mean", None)
        if isinstance(mean, torch.Tensor):
            nn.init.uniform_(mean, -0.2, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return model.eval()
