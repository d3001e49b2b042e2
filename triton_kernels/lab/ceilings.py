"""What the device at hand reaches at best, measured in the run that is judged by it: a large copy and large GEMMs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from .timing import time_call

_FORMATS = {"gemm_fp8": "fp8", "gemm_int8": "int8"}
"""Ops whose GEMMs are never in the dtype of the activations."""
_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def compute_format(op: str, dims: Mapping[str, float], dtype: torch.dtype) -> str:
    """What the GEMMs of a case are made in: "fp32", "fp16", "bf16", "int8" or "fp8". ``dims`` are the case's, ``dtype`` is that
    of the activations."""
    return _FORMATS.get(op) or ("fp8" if dims.get("fp8_gemms") else _NAMES.get(dtype, "fp32"))


@dataclass
class Ceilings:
    """Measured limits of a device. ``flops_s`` is filled format by format, when first asked for."""

    device: torch.device
    copy_bytes_s: float
    flops_s: dict[str, float] = field(default_factory=dict)

    @classmethod
    def measure(cls, device: torch.device) -> Ceilings:
        """Bytes per second of a copy (reads plus writes), 1 GiB on a GPU, 64 MiB on a CPU."""
        size = (1 << 30) if device.type == "cuda" else (1 << 26)
        source = torch.empty(size // 4, device=device).normal_()
        target = torch.empty_like(source)
        return cls(device, 2 * size / time_call(lambda: target.copy_(source), device))

    def flops(self, name: str) -> float:
        """Operations per second of a large GEMM in a format (:func:`compute_format`)."""
        if name not in self.flops_s:
            self.flops_s[name] = self._measure_gemm(name)
        return self.flops_s[name]

    def _measure_gemm(self, name: str) -> float:
        """Random data, because the clock of a device depends on the bits that it multiplies."""
        size = 8192 if self.device.type == "cuda" else 1024
        dtype = next((dtype for dtype, known in _NAMES.items() if known == name), torch.float32)
        a, b = torch.randn(2, size, size, dtype=dtype, device=self.device)
        if name == "fp8" and self.device.type == "cuda":
            a, b, one = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn), torch.ones((), device=self.device)
            seconds = time_call(lambda: torch._scaled_mm(a, b.T, one, one, out_dtype=torch.bfloat16), self.device)
        elif name == "int8":
            a, b = (x.mul(40).round().clamp(-127, 127).to(torch.int8) for x in (a, b))
            seconds = time_call(lambda: torch._int_mm(a, b.T), self.device)
        else:
            seconds = time_call(lambda: a @ b.T, self.device)
        return 2 * size**3 / seconds
