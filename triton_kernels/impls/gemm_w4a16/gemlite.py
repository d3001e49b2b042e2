"""``gemm_w4a16`` by gemlite, a library of Triton kernels that choose among matrix-vector and split GEMMs by shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import NEVER_MET_ITS_LIBRARY, Flags, impl
from ...spec import Spec


@impl(
    "gemm_w4a16",
    "gemlite",
    priority=0,
    requires=("gemlite",),
    unproven=NEVER_MET_ITS_LIBRARY,
    devices=("cuda",),
    flags=Flags(deterministic=False),
)
class Gemlite:
    """Its partial sums are added by atomic operations in any order, so it promises no equal bits."""

    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        from gemlite.core import TORCH_TO_DTYPE, GemLiteLinearTriton

        packed = weights["qweight"].contiguous().view(torch.uint8)
        quantized = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)
        scales, zeros = weights["scales"], weights.get("zeros")
        kind = TORCH_TO_DTYPE[spec.dtype]
        self.linear = GemLiteLinearTriton(
            4,
            group_size=quantized.shape[1] // scales.shape[1],
            in_features=quantized.shape[1],
            out_features=quantized.shape[0],
            input_dtype=kind,
            output_dtype=kind,
        )
        zeros = torch.full_like(scales, 8) if zeros is None else zeros
        self.linear.pack(quantized, scales.reshape(-1, 1).to(spec.dtype), zeros.reshape(-1, 1).to(spec.dtype), weights.get("bias"))
        self.perm = weights["perm"].long() if weights.get("perm") is not None else None

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        reasons = []
        if spec.dtype not in (torch.float16, torch.bfloat16):
            reasons.append(f"takes float16 and bfloat16, not {spec.dtype}")
        for name in ("in_features", "out_features", "group_size"):
            if spec.fact(name, 32) % 32:
                reasons.append(f"needs {name} to be a multiple of 32, not {spec.fact(name)}")
        return reasons

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(x if self.perm is None else x.index_select(1, self.perm))
        return out
