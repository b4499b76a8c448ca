"""Meters of energy that processors and graphics cards have, where they can be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch

RAPL = Path("/sys/class/powercap")  # Linux; most systems let only root read it


@dataclass(frozen=True)
class Meter:
    """A counter of joules.

    Attributes:
        name: what it is and what it sees.
        joules: reads it now.
        wraps_at: joules at which it begins anew at 0; None where it does not.
    """

    name: str
    joules: Callable[[], float]
    wraps_at: float | None = None

    def since(self, before: float) -> float:
        """Joules that were used since it read `before`."""
        used = self.joules() - before
        return used + self.wraps_at if used < 0 and self.wraps_at else used


def find_meter(device: torch.device) -> Meter | None:
    """The meter of a device, or None where none can be read.

    The processor's is RAPL, of its first package: it counts all that runs there, other programs
    too. The graphics card's is NVML, through the package nvidia-ml-py if it is installed.
    """
    try:
        return METERS[device.type](device) if device.type in METERS else None
    except Exception:  # NVML has errors of its own; for whatever reason, it cannot be read
        return None


def _rapl(device: torch.device) -> Meter:
    folder = RAPL / "intel-rapl:0"  # AMD's processors have it under this name too
    counter = folder / "energy_uj"

    def joules() -> float:
        return int(counter.read_text()) / 1e6

    joules()  # whoever may not read it is told so here
    most = int((folder / "max_energy_range_uj").read_text()) / 1e6
    return Meter("RAPL: the whole processor", joules, most)


def _nvml(device: torch.device) -> Meter:
    nvml = import_module("pynvml")
    nvml.nvmlInit()
    uuid = torch.cuda.get_device_properties(device).uuid
    card = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    return Meter(
        "NVML: the whole card", lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1e3
    )


METERS: dict[str, Callable[[torch.device], Meter]] = {"cpu": _rapl, "cuda": _nvml}
