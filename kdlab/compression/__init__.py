"""Making the student smaller still, and shipping it."""

from kdlab.compression.export import export
from kdlab.compression.factorization import factorize
from kdlab.compression.loading import Deployed, load
from kdlab.compression.nested import Nested, Sandwich, compare_widths, pick
from kdlab.compression.pipeline import compress, measure_file
from kdlab.compression.pruning import (
    prune_channels,
    prune_gradually,
    prune_weights,
    recover,
    sparsity,
)
from kdlab.compression.quantization import (
    Quantized,
    quantize,
    quantize_aware,
    quantize_file,
    round_weights,
)

__all__ = [
    "Deployed",
    "Nested",
    "Quantized",
    "Sandwich",
    "compare_widths",
    "compress",
    "export",
    "factorize",
    "load",
    "measure_file",
    "pick",
    "prune_channels",
    "prune_gradually",
    "prune_weights",
    "quantize",
    "quantize_aware",
    "quantize_file",
    "recover",
    "round_weights",
    "sparsity",
]
