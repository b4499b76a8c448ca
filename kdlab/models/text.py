"""Models that read texts: a transformer encoder, and LSTM and GRU beside it.

All take token numbers int64 `[B, L]`, of which 0 is padding, and give logits `[B, C]`. Padding
never changes what is said of the other tokens, nor the logits, however much of it there is.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdlab.models.attention import Encoder, check_sizes, mean_of_tokens, start_weights

PADDING = 0


class TokenEmbedding(nn.Module):
    """What a token means plus where it stands: `[B, L]` to `[B, L, d]`."""

    def __init__(self, vocabulary: int, width: int, max_length: int, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(max_length, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embedded tokens `[B, L, d]`."""
        places = self.positions.weight[: tokens.shape[1]]
        return self.dropout(self.norm(self.tokens(tokens) + places))


class Transformer(Encoder):
    """A transformer encoder for texts, with learned positions.

    Taps: `embed` and `blocks.0`, ... give hidden states `[B, L, d]`;
    `blocks.0.attention.query`, `.key` and `.value` `[B, L, d]`; `blocks.0.attention.weights` the
    attention probabilities `[B, h, L, L]`, and with ":input" the scaled scores before the softmax.
    The logits come from the mean over all tokens that are not padding. Lesson 04 shows it.

    Args:
        num_classes: C, classes.
        vocabulary: number of tokens there are; `data.tokenizer.vocabulary`.
        width: d, numbers per token.
        depth: number of blocks.
        heads: h, a divisor of the width.
        dropout: share of values set to 0 in training, of all that is added to the stream.
        max_length: the most tokens a text may have; `build_for` takes it from the data.

    Raises:
        ValueError: a size that does not fit, and (in forward) inputs that are no token numbers.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        vocabulary: int = 2000,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.1,
        max_length: int = 64,
    ) -> None:
        check_sizes(
            dropout,
            vocabulary=vocabulary,
            width=width,
            depth=depth,
            heads=heads,
            max_length=max_length,
        )
        embed = TokenEmbedding(vocabulary, width, max_length, dropout)
        super().__init__(num_classes, embed, width, depth, heads, dropout)
        self.vocabulary, self.max_length = vocabulary, max_length
        start_weights(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `[B, C]` of token numbers `[B, L]`."""
        check_tokens(tokens, self.vocabulary)
        if tokens.shape[1] > self.max_length:
            raise ValueError(
                f"tokens: {tokens.shape[1]} a text, but the model knows {self.max_length} places; "
                "build it with a larger max_length (build_for takes the data's)."
            )
        return self.classify(self.embed(tokens), tokens == PADDING)


class Recurrent(nn.Module):
    """An LSTM or a GRU that reads a text once, from its beginning to its end.

    Taps: `embed` and `layers.0`, `layers.1`, ... give hidden states `[B, L, d]`, `head` the logits,
    which come from the mean of the last layer's states over all tokens that are not padding. What
    is read of padding comes after the text, so it changes nothing.

    Args:
        num_classes: C, classes.
        cell: `nn.LSTM` or `nn.GRU`.
        vocabulary: number of tokens there are; `data.tokenizer.vocabulary`.
        width: d, numbers per token.
        depth: number of layers.
        dropout: share of values set to 0 in training, between the layers.

    Raises:
        ValueError: a size that does not fit, and (in forward) inputs that are no token numbers.
    """

    def __init__(
        self,
        num_classes: int,
        cell: Callable[..., nn.Module],
        vocabulary: int,
        width: int,
        depth: int,
        dropout: float,
    ) -> None:
        check_sizes(dropout, vocabulary=vocabulary, width=width, depth=depth)
        super().__init__()
        self.vocabulary = vocabulary
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(cell(width, width, batch_first=True) for _ in range(depth))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `[B, C]` of token numbers `[B, L]`."""
        check_tokens(tokens, self.vocabulary)
        x = self.embed(tokens)
        # In fp32 always: half precision adds up over the steps, and not every processor has it.
        with torch.autocast(tokens.device.type, enabled=False):
            for layer in self.layers:
                x, _ = layer(self.dropout(x))
        return self.head(self.dropout(mean_of_tokens(x, tokens == PADDING)))


def lstm(
    num_classes: int,
    *,
    vocabulary: int = 2000,
    width: int = 64,
    depth: int = 1,
    dropout: float = 0.1,
) -> Recurrent:
    """`Recurrent` with LSTM cells.

    Source: Hochreiter, Schmidhuber, Long short-term memory, 1997; as a student of a transformer:
    Tang, Lu, Liu, Mou, Vechtomova, Lin, Distilling task-specific knowledge from BERT into simple
    neural networks, 2019, arXiv 1903.12136.
    """
    return Recurrent(num_classes, nn.LSTM, vocabulary, width, depth, dropout)


def gru(
    num_classes: int,
    *,
    vocabulary: int = 2000,
    width: int = 64,
    depth: int = 1,
    dropout: float = 0.1,
) -> Recurrent:
    """`Recurrent` with gated recurrent units.

    Source: Cho, van Merriënboer, Gulcehre, Bahdanau, Bougares, Schwenk, Bengio, Learning phrase
    representations using RNN encoder-decoder, 2014, arXiv 1406.1078.
    """
    return Recurrent(num_classes, nn.GRU, vocabulary, width, depth, dropout)


def check_tokens(tokens: Tensor, vocabulary: int) -> None:
    """Raise ValueError unless these are token numbers `[B, L]` below `vocabulary`."""
    if tokens.ndim != 2 or tokens.dtype != torch.int64:
        raise ValueError(
            f"tokens: expected numbers int64 of shape [B, L], got {tokens.dtype} of shape "
            f"{list(tokens.shape)}; this model reads texts."
        )
    # Elsewhere the look would make the device wait, and the embedding refuses such numbers itself.
    if tokens.device.type == "cpu" and not torch.compiler.is_compiling() and tokens.numel():
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= vocabulary:
            raise ValueError(
                f"tokens: expected numbers from 0 to {vocabulary - 1}, got {low} to {high}; build "
                "the model with vocabulary=data.tokenizer.vocabulary."
            )
