"""The multilayer perceptron: small enough that many are trained at once."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from kdlab.models.activations import make_activation


class MLP(nn.Module):
    """Flatten, Linear, activation, Linear, ..., Linear.

    `forward(x)` takes `[B, ...]` with `in_features` values per sample and gives logits `[B, C]`.
    `layers` holds the Linear layers, so that many such models can be stacked into one; `activation`
    is the function between them. Paths for taps: `layers.0`, `layers.1`, ... (before activation;
    the last one gives the logits).

    Args:
        num_classes: C, classes.
        in_features: values per sample, such as c · h · w.
        hidden: units of each hidden layer; empty for a linear classifier.
        activation: a name in `kdlab.models.activations.ACTIVATIONS`: relu, gelu, silu, ...

    Raises:
        ValueError: a size below 1, an unknown activation, or (in forward) samples of another size.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_features: int = 64,
        hidden: Sequence[int] = (32,),
        activation: str = "relu",
    ) -> None:
        super().__init__()
        sizes = (in_features, *hidden, num_classes)
        if min(sizes) < 1:
            raise ValueError(
                "in_features and hidden: expected positive integers, got "
                f"{in_features!r} and {hidden!r}."
            )
        self.in_features = in_features
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.activation = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, C]` of samples `[B, ...]`."""
        x = x.flatten(1)
        if x.shape[1] != self.in_features:
            raise ValueError(
                f"x: expected {self.in_features} values per sample, got {x.shape[1]}; "
                "build the model with in_features=c*h*w (build_for does so)."
            )
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x))
        return last(x)
