"""``gemm_fp8`` with block scales by vLLM's Triton kernel (``_w8a8_triton_block_scaled_mm``), in the tiles that vLLM ships."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from experiments.peers.kernels._vllm_python import FP8_BLOCKS, import_error, load
from triton_kernels.impl import NEVER_MET_ITS_LIBRARY, impl
from triton_kernels.spec import Spec

BLOCK = 128


@impl("gemm_fp8", "vllm_triton", requires=("triton",), devices=("cuda",), unproven=NEVER_MET_ITS_LIBRARY)
class BlockScaled:
    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        self._multiply = load(FP8_BLOCKS).w8a8_triton_block_scaled_mm
        self._weight, self._scales, self._bias = weights["weight"], weights["scales"], weights.get("bias")
        self._out_dtype = params.get("out_dtype", torch.bfloat16)

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        reasons = []
        if spec.arch != "sm_90":
            reasons.append(f"was adapted for sm_90, not for {spec.arch}")
        if spec.fact("recipe", "block") != "block":
            reasons.append(f"scales blocks, not {spec.fact('recipe')}")
        return reasons or import_error(FP8_BLOCKS)

    def __call__(self, x: torch.Tensor, x_scale: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self._multiply(x.contiguous(), self._weight, x_scale, self._scales, [BLOCK, BLOCK], self._out_dtype)
        return out if self._bias is None else out + self._bias
