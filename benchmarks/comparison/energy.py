"""Joules, where something counts them: RAPL for the packages of the processor, NVML for one GPU.

A counter counts everything that its part does, other programs and idling included.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
#: Joules so far, from any beginning; only differences mean something.
Meter = Callable[[], float]


class NoCounter(Exception):
    """Nothing here counts energy, and why."""


def open_meter(device: str, powercap: Path = POWERCAP) -> Meter:
    """The counter of what computes.

    Args:
        device: cpu, or cuda with or without a number.
        powercap: where the kernel shows RAPL.

    Raises:
        NoCounter: if there is none that may be read.
    """
    if device == "cpu":
        return Rapl(powercap)
    import torch

    return Nvml(str(torch.cuda.get_device_properties(device).uuid))


class Rapl:
    """The packages of the processor together (Intel, and AMD under the same name). Memory and the rest of the machine
    are not counted.

    Args:
        powercap: folder of the kernel's zones.

    Raises:
        NoCounter: if there is no package, or it may not be read.
    """

    def __init__(self, powercap: Path) -> None:
        # intel-rapl:0 is a package; intel-rapl:0:0 is a part of it; psys is the whole board, packages included
        zones = [z for z in sorted(powercap.glob("intel-rapl:*")) if z.name.count(":") == 1]
        try:
            self.zones = [z for z in zones if not (z / "name").read_text().startswith("psys")]
            self.ranges = [int((z / "max_energy_range_uj").read_text()) for z in self.zones]
            self.last = self._read()
        except PermissionError as error:
            raise NoCounter("RAPL may be read by the superuser alone") from error
        except (OSError, ValueError) as error:
            raise NoCounter(f"RAPL cannot be read: {error}") from error
        if not self.zones:
            raise NoCounter(f"the kernel shows no RAPL counter in {POWERCAP}")
        self.total = 0  # microjoules

    def _read(self) -> list[int]:
        return [int((z / "energy_uj").read_text()) for z in self.zones]

    def __call__(self) -> float:
        """Joules since the beginning. A counter that has passed its end begins at 0: ask before it can do so twice."""
        now = self._read()
        for before, after, most in zip(self.last, now, self.ranges, strict=True):
            self.total += after - before if after >= before else after - before + most
        self.last = now
        return self.total / 1e6


class Nvml:
    """One GPU.

    Args:
        uuid: of the GPU, as torch says it, since NVML numbers all of the machine and CUDA those that it may see.

    Raises:
        NoCounter: without the package pynvml, or for a GPU that does not count (before Volta).
    """

    def __init__(self, uuid: str) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise NoCounter("energy of a GPU needs the package nvidia-ml-py, which is not installed") from error
        self.nvml = pynvml
        try:
            pynvml.nvmlInit()
            self.handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            self()
        except pynvml.NVMLError as error:
            raise NoCounter(f"NVML does not count the energy of this GPU: {error}") from error

    def __call__(self) -> float:
        """Joules since the driver was loaded."""
        return self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle) / 1e3
