"""Rooflines: the least time that a call can take on a device of the table, which its arithmetic sets, or its bytes; and what others
measured there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..cases.serving import serving_cases
from ..devices import DeviceModel
from ..op import Cost, Op
from .ceilings import compute_format
from .measured import measurements, same_shape


@dataclass(frozen=True)
class Roofline:
    """Of one case. format: of its GEMMs, see :func:`compute_format`; arithmetic_s: None if the device has no units for it;
    measured_us: of other projects' kernels, by kernel."""

    case: str
    format: str
    cost: Cost
    arithmetic_s: float | None
    memory_s: float
    measured_us: Mapping[str, float]

    @property
    def least_s(self) -> float:
        """The arithmetic counts nothing where the device has no units for it."""
        return max(self.arithmetic_s or 0.0, self.memory_s)


def rooflines(op: Op, device: DeviceModel) -> list[Roofline]:
    """Of the calls that a served model makes, then of the op's cases for benchmarks, with activations in bfloat16."""
    calls = {case.name: (case.dims, case.batch.q_lens, case.batch.ctx_lens) for case in serving_cases(op.name)}
    calls |= {case.name: (case.dims, case.q_lens, case.ctx_lens) for case in op.cases if "bench" in case.tags}
    return [_roofline(op, device, name, *call, measured_us=same_shape(device.name, op.name, *call)) for name, call in calls.items()]


def measured_rooflines(op: Op, device: DeviceModel) -> list[Roofline]:
    """Of the shapes that other projects measured on the device."""
    return [
        _roofline(op, device, row.name, row.dims, (row.q_len,) * row.num_reqs, (row.ctx_len,) * row.num_reqs, {row.kernel: row.us})
        for row in measurements(device.name)
        if row.op == op.name
    ]


def measured_rows(op: Op, device: DeviceModel) -> list[dict[str, Any]]:
    """What other projects measured on the device, as flat rows like those of a kernel benchmark; under the ceilings of the device
    table, not measured ones."""
    rows = []
    for found in measured_rooflines(op, device):
        peak = device.flops_s.get(found.format, math.nan)
        for kernel, us in found.measured_us.items():
            row = {"op": op.name, "impl": kernel, "dtype": found.format, "case": found.case, "median_us": us}
            ceilings = {"ceiling_tb_s": device.copy_bytes_s / 1e12, "ceiling_tflops_s": peak / 1e12}
            work = {"flops": found.cost.flops, "bytes": found.cost.bytes, "tflops_s": found.cost.flops / us / 1e6}
            rows.append({**row, **ceilings, **work})
    return rows


def _roofline(
    op: Op,
    device: DeviceModel,
    name: str,
    dims: Mapping[str, float],
    q_lens: Sequence[int],
    ctx_lens: Sequence[int],
    measured_us: Mapping[str, float],
) -> Roofline:
    cost, format = op.cost(dims, q_lens, ctx_lens), compute_format(op.name, dims, torch.bfloat16)
    arithmetic_s = cost.flops / device.flops_s[format] if format in device.flops_s else None
    return Roofline(name, format, cost, arithmetic_s, cost.bytes / device.copy_bytes_s, measured_us)
