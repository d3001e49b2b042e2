"""``rms_norm`` and ``silu_and_mul`` by Liger-Kernel's Triton kernels (one program per row), without what it keeps for training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from triton_kernels.impl import NEVER_MET_ITS_LIBRARY, impl
from triton_kernels.spec import Spec


@impl("rms_norm", "liger", requires=("liger_kernel", "triton"), devices=("cuda",), unproven=NEVER_MET_ITS_LIBRARY)
class RmsNorm:
    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        from liger_kernel.ops.fused_add_rms_norm import fused_add_rms_norm_forward
        from liger_kernel.ops.rms_norm import rms_norm_forward

        self._norm, self._add_and_norm = rms_norm_forward, fused_add_rms_norm_forward
        self._weight, self._eps, self._offset = weights["weight"], params["eps"], params.get("offset", 0.0)

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return ["gives no quantized values"] if spec.fact("out_dtype") else []

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if residual is None:
            out = self._norm(rows, self._weight, self._eps, self._offset, "llama", None)[0]
        else:
            out, summed, *_ = self._add_and_norm(rows, residual.reshape(rows.shape), self._weight, self._eps, self._offset, "llama")
            residual.copy_(summed.view(residual.shape))
        return out.view(x.shape)


@impl("silu_and_mul", "liger", requires=("liger_kernel", "triton"), devices=("cuda",), unproven=NEVER_MET_ITS_LIBRARY)
class SiluAndMul:
    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        from liger_kernel.ops.swiglu import swiglu_forward

        self._multiply = swiglu_forward

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return ["gives no quantized values"] if spec.fact("out_dtype") else []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = (half.contiguous() for half in x.chunk(2, dim=-1))
        out: torch.Tensor = self._multiply(gate, up)[2]
        return out
