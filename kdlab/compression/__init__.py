"""Making the student smaller still, and shipping it."""

from kdlab.compression.export import export
from kdlab.compression.loading import Deployed, load
from kdlab.compression.pruning import (
    prune_channels,
    prune_gradually,
    prune_weights,
    recover,
    sparsity,
)

__all__ = [
    "Deployed",
    "export",
    "load",
    "prune_channels",
    "prune_gradually",
    "prune_weights",
    "recover",
    "sparsity",
]
