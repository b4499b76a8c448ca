"""Who teaches and who learns: models by name, and taps that read their inner layers."""

from kdlab.models.activations import before_activation
from kdlab.models.committee import Committee, multi_scale
from kdlab.models.exits import EarlyExits, ExitHead, exit_heads, with_exits
from kdlab.models.inheritance import Inheritance, inherit
from kdlab.models.mlp import MLP
from kdlab.models.outputs import WithOutput, logits_of
from kdlab.models.positions import TapPath, paths, preactivation
from kdlab.models.published import load_published
from kdlab.models.registry import available, build, build_for, count_parameters
from kdlab.models.taps import Taps

__all__ = [
    "MLP",
    "Committee",
    "EarlyExits",
    "ExitHead",
    "Inheritance",
    "TapPath",
    "Taps",
    "WithOutput",
    "available",
    "before_activation",
    "build",
    "build_for",
    "count_parameters",
    "exit_heads",
    "inherit",
    "load_published",
    "logits_of",
    "multi_scale",
    "paths",
    "preactivation",
    "with_exits",
]
