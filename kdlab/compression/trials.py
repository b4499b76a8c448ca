"""Try a setting of pruning and rounding, without training: what accuracy is left?"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from kdlab.compression.kinds import check_kinds
from kdlab.compression.pruning import prune_channels, prune_weights
from kdlab.compression.quantization import round_weights
from kdlab.datasets import Data
from kdlab.metrics import evaluate
from kdlab.training import predict
from kdlab.words import check_known

FLOAT = 32  # bits of a weight that is not rounded
KINDS: dict[str, Callable[[nn.Module, Data, float], nn.Module]] = {
    "weights": lambda model, data, share: prune_weights(model, share, example=data.train.x[:2]),
    "channels": lambda model, data, share: prune_channels(model, data.train.x[:2], share),
}


def prune_and_round(
    model: nn.Module, data: Data, *, kind: str, share: float, bits: int
) -> nn.Module:
    """A copy that is pruned first, and whose weights are then rounded; nothing is trained.

    Args:
        model: stays as it was.
        data: its images have the shape that the model takes.
        kind: "weights" (`prune_weights`) or "channels" (`prune_channels`).
        share: of what is pruned, from 0 up to below 1.
        bits: of a weight, 2 to 16 (`round_weights`); 32 leaves them as they are.

    Raises:
        ValueError: an unknown kind, a share or bits out of range, what the two functions raise.
    """
    check_kinds(data=data)
    check_known("kind", kind, KINDS)
    pruned = KINDS[kind](model, data, share)
    return pruned if bits == FLOAT else round_weights(pruned, bits, example=data.train.x[:2])


def compressed_accuracy(
    model: nn.Module, data: Data, *, kind: str, share: float, bits: int, images: int = 500
) -> float:
    """Test accuracy, in [0, 1], that `prune_and_round` leaves; quick enough for an explorer.

    Args:
        model, kind, share, bits: as in `prune_and_round`.
        data: its first ``images`` test images are asked.
        images: how many; all of them if there are fewer.

    Raises:
        ValueError: as `prune_and_round`; fewer than one image.
    """
    if images < 1:
        raise ValueError(f"images: {images!r} came, expected at least 1")
    small = prune_and_round(model, data, kind=kind, share=share, bits=bits)
    x, y = data.test.x[:images], data.test.y[:images]
    return evaluate(predict(small, x, device="cpu"), y)["accuracy"]
