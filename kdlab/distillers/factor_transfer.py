"""FT: the teacher paraphrases its features into factors, the student learns to produce them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.datasets import Split
from kdlab.distillers.adapters import as_map, match_size, read_features, rows_of
from kdlab.distillers.base import LayerDistiller, Layers, Outputs
from kdlab.distillers.connectors import given, map_shapes
from kdlab.losses import factor_transfer_loss
from kdlab.losses.checks import check_positive, compute_dtype

IMAGES, BATCH, LEARNING_RATE = 1024, 32, 2e-3  # of the paraphraser's training


class FactorTransfer(LayerDistiller):
    """``weight · Σ_layers mean |f_S/‖f_S‖ − f_T/‖f_T‖|`` between factors.

    The *paraphraser*, a convolutional autoencoder, learns to reconstruct the teacher's maps before
    the student is trained; its encoder gives the teacher's factors and stays frozen. The
    *translator*, of the same form as the encoder, gives the student's factors and trains with the
    student. Factors of different sizes are compared at the smaller one.

    Source: Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor
    Transfer", NeurIPS 2018, arXiv:1802.04977. Three 3×3 convolutions a side, the rate ½ and the
    weight 500 are the authors' for CIFAR-10 (the 200 of arXiv:1910.10699 belongs to another
    distance). Here the paraphraser sees at most 1,024 training images, so that it takes seconds,
    and ends in no activation, because maps may be negative. Compared in lesson 02.

    Args:
        layers: pairs of layers. The benchmark's code reads the last stage, in networks with a
            fourth (VGG, MobileNetV2, ResNet-50) "stage4".
        weight: of the term, at least 0.
        rate: k in (0, 1]: channels of a factor per channel of the teacher.
        epochs: passes of the paraphraser over its images, at least 1.
    """

    def __init__(
        self,
        layers: Layers = "stage3",
        weight: float = 500.0,
        rate: float = 0.5,
        epochs: int = 10,
    ) -> None:
        super().__init__(layers, weight)
        check_positive("rate", rate)
        check_positive("epochs", epochs)
        self.rate = rate
        self.epochs = epochs

    def prepare(self, student: nn.Module, teacher: nn.Module | None, train: Split) -> None:
        """Train the paraphrasers, and build the translators."""
        found = map_shapes(self.layers, student, teacher, train)
        factors = [max(1, round(self.rate * theirs[1])) for _, theirs in found]
        self.translators = nn.ModuleList(
            encoder(mine[1], k) for (mine, _), k in zip(found, factors, strict=True)
        )
        self.paraphrasers = nn.ModuleList(
            trained_autoencoder(teacher_maps(given(teacher), path, train), k, self.epochs)[0]
            for (_, path), k in zip(self.layers, factors, strict=True)
        ).requires_grad_(False)

    def forward(
        self, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the term ``factor``."""
        pairs = self.pairs(student, teacher)
        values = []
        for translate, paraphrase, (mine, theirs) in zip(
            self.translators, self.paraphrasers, pairs, strict=True
        ):
            factors = match_size(translate(as_map(mine)), paraphrase(as_map(theirs)))
            values.append(factor_transfer_loss(*factors))
        return {"factor": self.weight * torch.stack(values).sum()}


def encoder(channels: int, factors: int) -> nn.Sequential:
    """Return three 3×3 convolutions that lead from ``channels`` to ``factors``."""
    widths = [(channels, channels), (channels, factors), (factors, factors)]
    layers: list[nn.Module] = []
    for before, after in widths:
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


def decoder(channels: int, factors: int) -> nn.Sequential:
    """Return the way back, without an activation at its end."""
    widths = [(factors, factors), (factors, channels), (channels, channels)]
    layers: list[nn.Module] = []
    for before, after in widths:
        layers += [nn.ConvTranspose2d(before, after, 3, padding=1), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def teacher_maps(teacher: nn.Module, path: str, train: Split) -> Tensor:
    """Return a layer's maps ``[n, c, h, w]`` for at most 1,024 images, drawn at random."""
    chosen = torch.randperm(len(train))[:IMAGES]
    rows = rows_of(teacher, [path], train)
    found = [
        as_map(read_features(teacher, [path], train.x[index], rows)[path])
        for index in chosen.split(BATCH)
    ]
    maps = torch.cat(found)
    return maps.to(compute_dtype(maps))


def trained_autoencoder(
    maps: Tensor, factors: int, epochs: int
) -> tuple[nn.Sequential, nn.Sequential]:
    """Return an encoder and a decoder that learned to reconstruct ``maps``."""
    channels = maps.shape[1]
    encode, decode = (part(channels, factors).to(maps) for part in (encoder, decoder))
    scale = maps.square().mean().sqrt().clamp(min=1e-12)  # so that one learning rate fits all
    optimizer = torch.optim.Adam([*encode.parameters(), *decode.parameters()], lr=LEARNING_RATE)
    with torch.enable_grad():
        for _ in range(epochs):
            for index in torch.randperm(len(maps)).split(BATCH):
                batch = maps[index.to(maps.device)] / scale
                optimizer.zero_grad(set_to_none=True)
                F.mse_loss(decode(encode(batch)), batch).backward()
                optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():  # from now on they take, and give, maps as the layer gives them
        enters, *_ = encode.parameters()
        *_, leaves, shift = decode.parameters()
        enters.div_(scale)
        leaves.mul_(scale)
        shift.mul_(scale)
    return encode, decode
