"""Making the student smaller still, and shipping it."""

from kdlab.compression.export import export
from kdlab.compression.loading import Deployed, load

__all__ = ["Deployed", "export", "load"]
