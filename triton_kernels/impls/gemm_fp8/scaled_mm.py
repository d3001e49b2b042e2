"""``gemm_fp8`` by torch's scaled GEMM (``_scaled_mm``: cuBLASLt, CUTLASS or oneDNN), per tensor or per token x channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import impl
from ...spec import Spec

_HALVES = (torch.float16, torch.bfloat16)


@impl("gemm_fp8", "scaled_mm", priority=15)
class ScaledMM:
    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        self.weight, self.bias = weights["weight"].contiguous().T, weights.get("bias")
        self.scales = weights["scales"].T.contiguous()
        self.out_dtype = params.get("out_dtype", torch.bfloat16)

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        reasons = []
        recipe, out_dtype = spec.fact("recipe", "tensor"), spec.fact("out_dtype", torch.bfloat16)
        if not hasattr(torch, "_scaled_mm"):
            reasons.append(f"torch {torch.__version__} has no _scaled_mm")
        if recipe == "block":
            reasons.append("scales tensors, tokens and channels, not blocks")
        if spec.device != "cuda":
            return reasons
        if spec.arch.startswith("gfx"):
            reasons.append("takes another float8 format on this device than the contract's")
        elif int(spec.arch.removeprefix("sm_")) < 89:
            reasons.append(f"needs float8 matrix instructions (sm_89 and later), not {spec.arch}")
        if spec.fact("weight_dtype") == torch.float8_e5m2:
            reasons.append("has no GEMM of two float8_e5m2 on this device")
        if recipe == "channel" and out_dtype != torch.bfloat16:
            reasons.append(f"gives bfloat16 when it scales channels, not {out_dtype}")
        for name in ("in_features", "out_features"):
            if spec.fact(name, 16) % 16:
                reasons.append(f"needs a multiple of 16 {name.replace('_', ' ')}, not {spec.fact(name)}")
        return reasons

    def __call__(self, x: torch.Tensor, x_scale: torch.Tensor) -> torch.Tensor:
        num_tokens, num_out = x.shape[0], self.weight.shape[1]
        if num_tokens == 0:
            return x.new_empty(0, num_out, dtype=self.out_dtype)
        scales = self.scales
        if x_scale.numel() != scales.numel() or x_scale.numel() > 1:  # both must be as fine as the finer one
            x_scale, scales = x_scale.expand(num_tokens, 1).contiguous(), scales.expand(1, num_out).contiguous()
        fused_bias = self.bias if self.bias is not None and self.bias.dtype == self.out_dtype in _HALVES else None
        out = torch._scaled_mm(x.contiguous(), self.weight, x_scale, scales, fused_bias, out_dtype=self.out_dtype)
        return out if self.bias is None or fused_bias is not None else out + self.bias
