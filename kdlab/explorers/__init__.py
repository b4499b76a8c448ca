"""Explorers: move a control, see the effect. One file per explorer, all on one base class."""

from kdlab.explorers.attention import AttentionExplorer
from kdlab.explorers.base import Explorer
from kdlab.explorers.budget import BudgetExplorer
from kdlab.explorers.compression import CompressionExplorer
from kdlab.explorers.gates import Choosing, GatesExplorer
from kdlab.explorers.landscape import LandscapeExplorer
from kdlab.explorers.live_curve import LiveCurve
from kdlab.explorers.maps import MapsExplorer
from kdlab.explorers.pareto import ParetoExplorer
from kdlab.explorers.retraining import RetrainingExplorer
from kdlab.explorers.similarity import CKAExplorer
from kdlab.explorers.slopes import SlopesExplorer
from kdlab.explorers.temperature import TemperatureExplorer

__all__ = [
    "AttentionExplorer",
    "BudgetExplorer",
    "CKAExplorer",
    "Choosing",
    "CompressionExplorer",
    "Explorer",
    "GatesExplorer",
    "LandscapeExplorer",
    "LiveCurve",
    "MapsExplorer",
    "ParetoExplorer",
    "RetrainingExplorer",
    "SlopesExplorer",
    "TemperatureExplorer",
]
