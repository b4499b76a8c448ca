"""A small vision transformer: patches of an image are its tokens."""

import torch
from torch import Tensor, nn

from kdlab.models.attention import Encoder, check_sizes, start_weights


class PatchEmbedding(nn.Module):
    """What a patch shows plus where it lies: images `[B, c, H, W]` to tokens `[B, N, d]`.

    N = (H / patch) · (W / patch), row by row. The places are waves (`waves`), not learned, so any
    image size that the patches cover will do.
    """

    def __init__(self, in_channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, width, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """Embedded patches `[B, N, d]`."""
        x = self.patches(images)
        places = waves(x.shape[2], x.shape[3], x.shape[1]).to(x)
        return x.flatten(2).transpose(1, 2) + places


class VisionTransformer(Encoder):
    """A vision transformer; its taps are those of the text transformer, with patches for tokens.

    Taps: `embed` and `blocks.0`, ... give hidden states `[B, N, d]`, a token for each patch, row by
    row, none beside them; `blocks.0.attention.query`, `.key`, `.value` `[B, N, d]`;
    `blocks.0.attention.weights` the attention probabilities `[B, h, N, N]`, and with ":input" the
    scaled scores. The logits come from the mean over all tokens. Lesson 04 shows it.

    Sources: Dosovitskiy and 11 others, An image is worth 16×16 words, 2020, arXiv 2010.11929. Mean
    instead of a class token, and fixed places: Beyer, Zhai, Kolesnikov, Better plain ViT baselines
    for ImageNet-1k, 2022, arXiv 2205.01580.

    Args:
        num_classes: C, classes.
        in_channels: c, channels of an image.
        width: d, numbers per token, a multiple of 4.
        depth: number of blocks.
        heads: h, a divisor of the width.
        patch: pixels a side of a patch; divides the image's height and width. The time grows with
            the number of patches and, for many, with its square: 7 on 28×28 gives 16.
        dropout: share of values set to 0 in training.

    Raises:
        ValueError: a size that does not fit, or (in forward) images that the patches do not cover.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        patch: int = 4,
        dropout: float = 0.0,
    ) -> None:
        check_sizes(dropout, width=width, depth=depth, heads=heads, patch=patch)
        if width % 4:
            raise ValueError(
                f"width: expected a multiple of 4 (sine and cosine, down and right), got {width!r}."
            )
        embed = PatchEmbedding(in_channels, width, patch)
        super().__init__(num_classes, embed, width, depth, heads, dropout)
        self.in_channels, self.patch = in_channels, patch
        start_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, C]` of images `[B, c, H, W]`."""
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(
                f"images: expected shape [B, {self.in_channels}, h, w], got {list(images.shape)}; "
                "build the model with the data's in_channels (build_for does so)."
            )
        height, width = images.shape[2:]
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"images: {height}x{width} pixels cannot be cut into patches of {self.patch}x"
                f"{self.patch}; build the model with a patch that divides both sides."
            )
        return self.classify(self.embed(images))


def waves(rows: int, columns: int, width: int) -> Tensor:
    """Places `[rows · columns, width]` as sines and cosines of the row and of the column.

    The frequencies fall from 1 to 1/10,000 in equal ratios, as in Vaswani and others, 2017,
    arXiv 1706.03762, here for two axes.
    """
    quarter = width // 4
    frequencies = 10_000 ** -(torch.arange(quarter) / max(1, quarter - 1))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [axis.flatten()[:, None] * frequencies for axis in (row, column)]
    return torch.cat([part for a in angles for part in (a.sin(), a.cos())], dim=1)
