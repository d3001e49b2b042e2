"""``gemm_fp8`` by FlashInfer (package ``flashinfer``, 0.6): bmm_fp8 of one batch, which is cuBLASLt with a scale per tensor.

Its GEMMs with scales per block take a layout of the scales that depends on the arch and its version, and are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import NEVER_MET_ITS_LIBRARY, impl
from ...spec import Spec
from .._shared.flashinfer import HALVES, unsupported_arch


@impl("gemm_fp8", "flashinfer", priority=12, requires=("flashinfer",), unproven=NEVER_MET_ITS_LIBRARY, devices=("cuda",))
class FlashInferGemmFp8:
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        import flashinfer

        self.multiply = flashinfer.bmm_fp8
        self.weight, self.bias = weights["weight"].contiguous().T[None], weights.get("bias")
        self.scale, self.out_dtype = weights["scales"].reshape(()), params.get("out_dtype", torch.bfloat16)

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        reasons = unsupported_arch(spec, 89)
        if spec.fact("recipe", "tensor") != "tensor":
            reasons.append(f"scales tensors, not by {spec.fact('recipe')}")
        if spec.fact("out_dtype", torch.bfloat16) not in HALVES:
            reasons.append(f"gives float16 and bfloat16, not {spec.fact('out_dtype')}")
        if spec.fact("weight_dtype", torch.float8_e4m3fn) != torch.float8_e4m3fn:
            reasons.append(f"multiplies float8_e4m3fn here, not {spec.fact('weight_dtype')}")
        for name in ("in_features", "out_features"):
            if spec.fact(name, 16) % 16:
                reasons.append(f"needs a multiple of 16 {name.replace('_', ' ')}, not {spec.fact(name)}")
        return reasons

    def __call__(self, x: torch.Tensor, x_scale: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 0:
            return x.new_empty(0, self.weight.shape[2], dtype=self.out_dtype)
        x, x_scale = x.contiguous()[None], x_scale.reshape(())
        out: torch.Tensor = self.multiply(x, self.weight, x_scale, self.scale, self.out_dtype, backend="cublas")[0]
        return out if self.bias is None else out + self.bias
