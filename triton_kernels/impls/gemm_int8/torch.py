"""``gemm_int8`` in plain PyTorch: an f32 GEMM of the quantized values, exact while its sums stay below 2^24, then scaled."""

from __future__ import annotations

import torch

from ...impl import impl


@impl("gemm_int8", "torch", priority=10)
def gemm_int8_torch(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero: torch.Tensor | None,
    weight: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    partial: bool = False,
) -> torch.Tensor:
    quantized = x.float() if x_zero is None else x.float() - x_zero
    out = torch.nn.functional.linear(quantized, weight.float()) * x_scale * scales.T
    return (out if bias is None else out + bias).to(torch.float32 if partial else out_dtype)
