"""The transformer block that texts and images share, each step of it a module that can be tapped.

One block is, with pre-normalisation,

    x ← x + Attention(LayerNorm(x))
    x ← x + W₂ · GELU(W₁ · LayerNorm(x))

and attention, in each of h heads of size d/h,

    scores = Q Kᵀ / √(d/h),   weights = softmax(scores),   output = weights · V.

Sources: Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin, Attention is all you
need, 2017, arXiv 1706.03762. Norm before instead of after: Xiong, Yang, He, Zheng, Zheng, Xing,
Zhang, Lan, Wang, Liu, On layer normalization in the transformer architecture, 2020,
arXiv 2002.04745. GELU: Hendrycks, Gimpel, Gaussian error linear units, 2016, arXiv 1606.08415.
Lesson 04 shows it.
"""

import math

import torch
from torch import Tensor, nn


class AttentionWeights(nn.Module):
    """Softmax over the keys, of which padded ones get exactly 0.

    A module of its own, so that a tap reads the probabilities, and with ":input" the scores as
    they were before padding was taken out of them, all finite.
    """

    def forward(self, scores: Tensor, padding: Tensor | None = None) -> Tensor:
        """Probabilities `[B, h, N, N]` of scores `[B, h, N, N]`.

        Args:
            scores: the last axis counts keys, the one before it queries.
            padding: bool `[B, N]`, true where there is no token.
        """
        if padding is not None:
            # Not minus infinity: a row of padding alone would become NaN.
            lowest = torch.finfo(scores.dtype).min
            scores = scores.masked_fill(padding[:, None, None, :], lowest)
        return scores.softmax(dim=-1)


class SelfAttention(nn.Module):
    """Multi-head self-attention. Taps: `query`, `key`, `value` `[B, N, d]`; `weights`; `output`.

    `query`, `key` and `value` are read before the split into heads, so that another model's may be
    cut into any number of relation heads.

    Raises:
        ValueError: heads that do not divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"heads: expected a divisor of the width {width}, so that each head gets an equal "
                f"share, got {heads!r}."
            )
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.weights = AttentionWeights()
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Tokens `[B, N, d]` from tokens `[B, N, d]`; padded ones (bool `[B, N]`) are not read."""
        query, key, value = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        query = query / math.sqrt(query.shape[-1])  # fewer numbers to divide than scores
        weights = self.weights(query @ key.transpose(-2, -1), padding)
        return self.output((weights @ value).transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """`[B, N, d]` as heads `[B, h, N, d / h]`."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Attention, then a small network for each token; both are added to the stream.

    Taps: the block itself gives the hidden states `[B, N, d]`; `attention`, `feed_forward`.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, expansion: int = 4) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, expansion * width),
            nn.GELU(),
            nn.Linear(expansion * width, width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Hidden states `[B, N, d]` from hidden states; padded tokens are read by none."""
        x = x + self.dropout(self.attention(self.attention_norm(x), padding))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class Encoder(nn.Module):
    """What text and vision transformers share: blocks, a last norm, the mean over tokens, a head.

    Taps: `blocks.0`, `blocks.1`, ... and `norm` give hidden states `[B, N, d]`, `head` the logits.
    A model derived from it embeds its inputs and calls `classify`.

    Attributes:
        depth: number of blocks.
        heads: attention heads in each block.

    Raises:
        ValueError: a size that does not fit, a dropout out of [0, 1).
    """

    def __init__(
        self, num_classes: int, embed: nn.Module, width: int, depth: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.depth, self.heads = depth, heads
        self.embed = embed  # first, as it comes first in the forward
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def classify(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Logits `[B, C]` of embedded tokens `[B, N, d]`; padding is bool `[B, N]`."""
        for block in self.blocks:
            x = block(x, padding)
        return self.head(mean_of_tokens(self.norm(x), padding))


def mean_of_tokens(x: Tensor, padding: Tensor | None = None) -> Tensor:
    """Mean `[B, d]` over the tokens `[B, N, d]` that are there."""
    if padding is None:
        return x.mean(dim=1)
    there = (~padding).to(x.dtype).unsqueeze(-1)
    return (x * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)


def start_weights(model: nn.Module, std: float = 0.02) -> None:
    """Start embeddings and linear layers from normal(0, std), biases from 0.

    Source: Devlin, Chang, Lee, Toutanova, BERT, 2018, arXiv 1810.04805, whose code does so.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


def check_sizes(dropout: float, **sizes: int) -> None:
    """Raise ValueError that names the first size below 1, or a dropout out of [0, 1)."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}: expected an integer of at least 1, got {size!r}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: expected a number from 0 to below 1, got {dropout!r}.")
