"""What a lesson says to the package: ``start``, ``check``, ``claim``, ``record``.

A lesson begins with a parameters cell (tag ``parameters``, one ``name: type = default  # help`` a
line) and then ``lab = kdlab.lab.start(globals(), lesson="01_soft_targets", ...)``. All that is
printed here is the same on every machine, because notebook tests compare it.
"""

from kdlab.lab.records import MIME, plain
from kdlab.lab.session import ClaimError, Lab, start

__all__ = ["MIME", "ClaimError", "Lab", "plain", "start"]
