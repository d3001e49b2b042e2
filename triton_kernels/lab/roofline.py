"""Rooflines: the least time that a call can take on a device of the table, which its arithmetic sets, or its bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..cases.serving import serving_cases
from ..devices import DeviceModel
from ..op import Cost, Op
from .ceilings import compute_format


@dataclass(frozen=True)
class Roofline:
    """Of one case. format: of its GEMMs, see :func:`compute_format`; arithmetic_s: None if the device has no units for it."""

    case: str
    format: str
    cost: Cost
    arithmetic_s: float | None
    memory_s: float

    @property
    def least_s(self) -> float:
        """The arithmetic counts nothing where the device has no units for it."""
        return max(self.arithmetic_s or 0.0, self.memory_s)


def rooflines(op: Op, device: DeviceModel) -> list[Roofline]:
    """Of the calls that a served model makes, then of the op's cases for benchmarks, with activations in bfloat16."""
    calls = {case.name: (case.dims, case.batch.q_lens, case.batch.ctx_lens) for case in serving_cases(op.name)}
    calls |= {case.name: (case.dims, case.q_lens, case.ctx_lens) for case in op.cases if "bench" in case.tags}
    found = []
    for name, (dims, q_lens, ctx_lens) in calls.items():
        cost, format = op.cost(dims, q_lens, ctx_lens), compute_format(op.name, dims, torch.bfloat16)
        arithmetic_s = cost.flops / device.flops_s[format] if format in device.flops_s else None
        found.append(Roofline(name, format, cost, arithmetic_s, cost.bytes / device.copy_bytes_s))
    return found
