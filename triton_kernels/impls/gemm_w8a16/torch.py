"""``gemm_w8a16`` in plain PyTorch: weights are dequantized in each call, or once (``dequantize``) at twice the memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...impl import impl
from ...spec import Spec


def dequantized(weights: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """The weights [N, K] in ``dtype``."""
    scales, zeros = weights["scales"], weights.get("zeros")
    quantized = weights["weight"].to(dtype).view(*scales.shape, -1)
    if zeros is not None:
        quantized = quantized - zeros[..., None].to(dtype)
    return (quantized * scales[..., None].to(dtype)).flatten(1)


@impl("gemm_w8a16", "torch", priority=10, options={"dequantize": False})
class TorchW8A16:
    takes = ("partial",)

    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any], dequantize: bool) -> None:
        self.weights, self.bias = weights, weights.get("bias")
        self.perm = weights["perm"].long() if weights.get("perm") is not None else None
        self.partial = params.get("partial", False)
        self.weight = dequantized(weights, torch.float32 if self.partial else spec.dtype) if dequantize else None
        if dequantize:
            self.weights = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float() if self.partial else x
        weight = dequantized(self.weights, x.dtype) if self.weight is None else self.weight
        return torch.nn.functional.linear(x if self.perm is None else x.index_select(1, self.perm), weight, self.bias)
