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
    quantize,
    quantize_aware,
    quantize_file,
    round_weights,
)
from kdlab.compression.quantized import Quantized
from kdlab.compression.trials import compressed_accuracy, prune_and_round
from kdlab.compression.verification import Report, report

__all__ = [
    "Deployed",
    "Nested",
    "Quantized",
    "Report",
    "Sandwich",
    "compare_widths",
    "compress",
    "compressed_accuracy",
    "export",
    "factorize",
    "load",
    "measure_file",
    "pick",
    "prune_and_round",
    "prune_channels",
    "prune_gradually",
    "prune_weights",
    "quantize",
    "quantize_aware",
    "quantize_file",
    "recover",
    "report",
    "round_weights",
    "sparsity",
]
