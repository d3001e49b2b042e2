"""What a simulated device is: an entry of the device table, the operators that were measured on it, or both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..config import ExecutorConfig
from .calibration import Calibration
from .operators import CostFunction


@dataclass(frozen=True)
class SimulatedDevice:
    """A device.

    arch          as in the device table; "" of a device that is not in there
    memory_bytes  None if it is not known
    copy_bytes_s, flops_s, link_bytes_s   ceilings; infinite where they are not known
    calibration   operator times of this device, perhaps those of another one, transferred; None under roofline and free
    """

    name: str
    arch: str
    memory_bytes: int | None
    copy_bytes_s: float
    flops_s: Mapping[str, float]
    link_bytes_s: float
    calibration: Calibration | None = None


def simulated_device(config: ExecutorConfig, costs: Mapping[str, CostFunction]) -> SimulatedDevice:
    """``config.device`` with what ``config.calibration`` names. Raises ValueError for a device that neither the table nor the
    calibration knows."""
    from ..plan import device_model

    calibration = None
    if config.calibration not in ("auto", "free", "roofline"):
        calibration = Calibration.load(config.calibration, costs)
        if calibration.device == config.device and calibration.ceilings is None:
            formats = dict.fromkeys(("fp32", "bf16", "fp8", "int8"), math.inf)
            return SimulatedDevice(config.device, "", None, calibration.copy_bytes_s, formats, math.inf, calibration)
    found = device_model(config.device)
    if config.calibration == "auto":
        calibration = _nearest(found.name, found.copy_bytes_s, costs)
    if calibration is not None:
        calibration = calibration.on(found)
    ceilings = found.copy_bytes_s, found.flops_s, found.link_bytes_s
    return SimulatedDevice(found.name, found.arch, found.memory_bytes, *ceilings, calibration)


def _nearest(device: str, copy_bytes_s: float, costs: Mapping[str, CostFunction]) -> Calibration | None:
    """That of the device itself, else of the one whose memory is nearest in speed."""
    names = Calibration.names()
    found = [Calibration.load(name, costs) for name in ([device] if device in names else names)]
    return min(found, key=lambda one: abs(math.log(one.copy_bytes_s / copy_bytes_s)), default=None)
