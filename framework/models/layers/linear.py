"""Linear layers, however their weights are stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...plan import BoundKernel, KernelPlan
from ..quantization.scheme import LoadedPart

Linear = Callable[[torch.Tensor], torch.Tensor]
"""x [T, in] -> [T, out] in x's dtype."""


@dataclass(slots=True)
class QuantizedInput:
    """A GEMM of quantized values with quantized weights. rest: what it takes beyond values and scales, all None."""

    quantize: BoundKernel
    gemm: BoundKernel
    rest: tuple[None, ...]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, in] -> [T, out]."""
        return self.gemm(*self.quantize(x), *self.rest)


def bind_linear(plan: KernelPlan, part: LoadedPart) -> Linear:
    """Binds the part's op, and the one that its input goes through."""
    gemm = plan.bind(part.op, part.tensors, part.params)
    if part.input is None:
        return gemm
    quantize = plan.bind(part.input.op, part.input.tensors, part.input.params)
    num_more = len(plan.registry.ops[part.op].call_args) - 2  # a zero point of the values, which no op makes
    return QuantizedInput(quantize, gemm, (None,) * num_more)
