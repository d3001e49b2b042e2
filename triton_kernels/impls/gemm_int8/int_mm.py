"""``gemm_int8`` by torch's integer GEMM (``_int_mm``: cuBLASLt or oneDNN); scales and zero points are applied after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...spec import Spec

_MIN_ROWS = 32


@impl("gemm_int8", "int_mm", priority=15, flags=Flags(batch_invariant=True))
class IntMM:
    """On CUDA the GEMM takes more than 16 rows: fewer are filled up to 32."""

    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        self.weight = weights["weight"].contiguous().T
        self.scales, self.bias = weights["scales"].T, weights.get("bias")
        self.out_dtype = params.get("out_dtype", torch.bfloat16)
        self.column_sums = weights["weight"].sum(1, dtype=torch.int32)
        self.min_rows = 1 if spec.device == "cpu" else _MIN_ROWS

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        reasons = []
        if not hasattr(torch, "_int_mm"):
            reasons.append(f"torch {torch.__version__} has no _int_mm")
        for name in ("in_features", "out_features"):
            if spec.device == "cuda" and spec.fact(name, 8) % 8:
                reasons.append(f"needs a multiple of 8 {name.replace('_', ' ')}, not {spec.fact(name)}")
        return reasons

    def __call__(self, x: torch.Tensor, x_scale: torch.Tensor, x_zero: torch.Tensor | None) -> torch.Tensor:
        num_rows = x.shape[0]
        if num_rows == 0:
            return x.new_empty(0, self.weight.shape[1], dtype=self.out_dtype)
        missing = max(0, self.min_rows - num_rows)
        rows = torch.nn.functional.pad(x, (0, 0, 0, missing)) if missing else x.contiguous()
        sums = torch._int_mm(rows, self.weight)[:num_rows]
        if x_zero is not None:
            sums = sums - x_zero * self.column_sums
        out = sums.float() * x_scale * self.scales
        return (out if self.bias is None else out + self.bias).to(self.out_dtype)
