"""Who teaches and who learns: models by name, and taps that read their inner layers."""

from kdlab.models.mlp import MLP
from kdlab.models.registry import available, build, build_for, count_parameters
from kdlab.models.taps import TapPath, Taps, paths

__all__ = ["MLP", "TapPath", "Taps", "available", "build", "build_for", "count_parameters", "paths"]
