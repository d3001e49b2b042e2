"""Times of operators as measured: a calibration loaded by name or file, and timers bound to an op's dims.

(The numbers are a roofline for now; the interface stands.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

Lengths = Sequence[int] | np.ndarray
FOLDER = Path(__file__).parent / "calibrations"


class Cost(Protocol):
    """Work of a kernel call."""

    flops: float
    bytes: float


class Device(Protocol):
    """Ceilings of a device."""

    name: str
    copy_bytes_s: float
    flops_s: dict[str, float]


CostFunction = Callable[[Mapping[str, float], Sequence[int], Sequence[int]], Cost]


@dataclass
class OperatorTimer:
    """Seconds of a call of one op with fixed dims. extrapolated: how many calls lay outside what was measured, of ``calls``."""

    cost: CostFunction
    dims: Mapping[str, float]
    peak: float
    bandwidth: float
    calls: int = 0
    extrapolated: int = 0

    def __call__(self, q_lens: Lengths, ctx_lens: Lengths) -> float:
        self.calls += 1
        cost = self.cost(self.dims, list(q_lens), list(ctx_lens))
        return max(cost.flops / self.peak, cost.bytes / self.bandwidth) + 3e-6


@dataclass(frozen=True)
class Calibration:
    """Operator times of one device.

    device          its name, as in the device table
    source          where the rows came from
    transferred     the rows are another device's, scaled by the device table
    launch_floor_s  of the cheapest kernel, and
    copy_bytes_s    the bandwidth that bound-by-memory ops reach: for ops without rows
    """

    device: str
    source: str
    costs: Mapping[str, CostFunction] = field(repr=False)
    transferred: bool = False
    launch_floor_s: float = 3e-6
    copy_bytes_s: float = 3.4e12

    @classmethod
    def load(cls, name_or_path: str, costs: Mapping[str, CostFunction]) -> Calibration:
        """A packaged calibration by name (``names()``), or one that ``kernelswap calibrate`` wrote. Raises ValueError."""
        return cls(name_or_path, "none yet", costs)

    @staticmethod
    def names() -> list[str]:
        """The packaged calibrations."""
        return ["a100", "h200"]

    def on(self, device: Device) -> Calibration:
        """Transferred to another device of the table."""
        return self if device.name == self.device else replace(self, device=device.name, transferred=True)

    def timer(self, op: str, dtype: str, dims: Mapping[str, float]) -> OperatorTimer | None:
        """``dtype``: of the activations (bfloat16); dims: as the op's cost function takes them, and for collectives ``num_ranks``
        and ``graph`` (1: inside a CUDA graph), with q_lens = [elements]. None where nothing was measured for op and format."""
        measured = ("linear", "gemm_fp8", "paged_attention_decode", "paged_attention_prefill", "moe_experts", "all_reduce")
        if op not in measured:
            return None
        cost = self.costs.get(op, _collective_cost)
        return OperatorTimer(cost, {"weight_bytes": 2, "act_bytes": 2, "kv_bytes": 2, **dims}, 7e14, 3.4e12)


@dataclass(frozen=True)
class _Work:
    flops: float
    bytes: float


def _collective_cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> _Work:
    return _Work(0.0, 20 * dims.get("act_bytes", 2) * sum(q_lens))
