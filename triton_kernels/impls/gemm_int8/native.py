"""``gemm_int8`` on a CPU in C, with weights packed once; see ``native_quantized.c``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import Flags, impl
from ...spec import Spec
from .._shared.native_call import NativeKernel
from .._shared.native_code import library_reasons
from .._shared.native_quantized import EXACT, SOURCE, constant, pack

_BLOCK = 8192
"""Inputs of which a sum is exact; sums of several blocks are added in float32."""


@impl("gemm_int8", "native", priority=20, flags=Flags(batch_invariant=True, cpu_graph=True), devices=("cpu",))
class GemmInt8Native:
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        weight, bias = weights["weight"].detach(), weights.get("bias")
        self.num_outputs, self.num_inputs = weight.shape
        self.out_dtype = params.get("out_dtype", torch.bfloat16)
        self.num_blocks = -(-self.num_inputs // _BLOCK)
        self.block = -(-self.num_inputs // (4 * self.num_blocks)) * 4
        self.padding = (0, self.num_blocks * self.block - self.num_inputs)
        blocks = torch.nn.functional.pad(weight, self.padding).unflatten(1, (self.num_blocks, self.block))
        scales = weights["scales"].detach().expand(self.num_outputs, self.num_blocks)
        headers = (scales.float(), blocks.sum(2, dtype=torch.int32))
        self.packed = pack(blocks.contiguous().view(torch.int32), headers, constant("panel", self.out_dtype))
        self.bias = None if bias is None else bias.detach().float().contiguous()
        self.run = NativeKernel(SOURCE, self.out_dtype, "gemm_int8", "pppppp iiiiii", EXACT)

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        block = ["scales channels or the whole tensor, not blocks"] if spec.fact("recipe") == "block" else []
        return block + library_reasons(SOURCE, spec.fact("out_dtype", spec.dtype), EXACT)

    def __call__(self, x: torch.Tensor, x_scale: torch.Tensor, x_zero: torch.Tensor | None) -> torch.Tensor:
        if any(self.padding):
            x = torch.nn.functional.pad(x, self.padding)
        source = x if x.stride(1) == 1 else x.contiguous()
        out = torch.empty(x.shape[0], self.num_outputs, dtype=self.out_dtype)
        self.run(
            self.num_outputs * self.num_inputs if x.shape[0] else 0,
            *(source, self.packed, x_scale.contiguous(), None if x_zero is None else x_zero.contiguous(), self.bias, out),
            *(x.shape[0], self.num_outputs, self.num_blocks, self.block, source.stride(0), x_scale.shape[0] > 1),
        )
        return out
