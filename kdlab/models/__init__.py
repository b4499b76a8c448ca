"""Who teaches and who learns: models by name, and taps that read their inner layers."""

from kdlab.models.activations import before_activation
from kdlab.models.inheritance import Inheritance, inherit
from kdlab.models.mlp import MLP
from kdlab.models.registry import available, build, build_for, count_parameters
from kdlab.models.taps import TapPath, Taps, paths

__all__ = [
    "MLP",
    "Inheritance",
    "TapPath",
    "Taps",
    "available",
    "before_activation",
    "build",
    "build_for",
    "count_parameters",
    "inherit",
    "paths",
]
