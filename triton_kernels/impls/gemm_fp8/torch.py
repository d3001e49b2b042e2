"""``gemm_fp8`` in plain PyTorch: both sides are dequantized to f32 in each call, the weights optionally once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import impl
from ...ops.gemm import FP8_BLOCK
from ...spec import Spec


def dequantized(quantized: torch.Tensor, scales: torch.Tensor, row_block: int) -> torch.Tensor:
    """f32 quantized values times their scales, which hold for ``row_block`` rows and, if there are several columns, 128 columns."""
    values = quantized.float()
    if scales.shape[1] == 1:
        return values.mul_(scales)
    for block, column in enumerate(values.split(FP8_BLOCK, dim=1)):
        column *= scales[:, block : block + 1].repeat_interleave(row_block, 0)[: values.shape[0]]
    return values


@impl("gemm_fp8", "torch", priority=10, options={"dequantize": False})
class TorchFP8:
    takes = ("partial",)

    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any], dequantize: bool) -> None:
        self.weight, self.scales, self.bias = weights["weight"], weights["scales"], weights.get("bias")
        self.out_dtype = torch.float32 if params.get("partial") else params.get("out_dtype", torch.bfloat16)
        if dequantize:
            self.weight = dequantized(self.weight, self.scales, FP8_BLOCK)
        self.is_dequantized = dequantize

    def __call__(self, x: torch.Tensor, x_scale: torch.Tensor) -> torch.Tensor:
        weight = self.weight if self.is_dequantized else dequantized(self.weight, self.scales, FP8_BLOCK)
        out = torch.nn.functional.linear(dequantized(x, x_scale, 1), weight)
        return (out if self.bias is None else out + self.bias).to(self.out_dtype)
