"""Linear layers, however their weights are stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...plan import BoundKernel, KernelPlan
from ..quantization.scheme import LoadedPart

Linear = Callable[[torch.Tensor], torch.Tensor]
"""x [T, in] -> [T, out] in x's dtype."""


@dataclass(slots=True)
class QuantizedInput:
    """A GEMM of quantized values with quantized weights.

    quantize  None: what comes before (a norm, an activation) gives quantized values and their scales
    rest      what the GEMM takes beyond those: of int8 a zero point, int32 [1, 1] or None
    """

    quantize: BoundKernel | None
    gemm: BoundKernel
    rest: tuple[torch.Tensor | None, ...]

    def __call__(self, x: Any) -> torch.Tensor:
        """x [T, in], or (values [T, in], scales) where there is no ``quantize`` -> [T, out]."""
        return self.gemm(*(x if self.quantize is None else self.quantize(x)), *self.rest)


@dataclass(slots=True)
class SplitLinear:
    """Linears of one input, whose outputs stand side by side: shards of a projection that no single GEMM can compute."""

    linears: list[Linear]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, in] -> [T, out]."""
        return torch.cat([linear(x) for linear in self.linears], dim=-1)


def bind_linear(plan: KernelPlan, parts: Sequence[LoadedPart], *, quantized_input: bool = False) -> Linear:
    """Binds the op of each part, and, unless what comes before does its work, the one that the input goes through."""
    linears = [_bind_part(plan, part, quantized_input) for part in parts]
    return linears[0] if len(linears) == 1 else SplitLinear(linears)


def _bind_part(plan: KernelPlan, part: LoadedPart, quantized_input: bool) -> Linear:
    gemm = plan.bind(part.op, part.tensors, part.params, note=part.note)
    if part.input is None:
        return gemm
    quantize = None if quantized_input else plan.bind(part.input.op, part.input.tensors, part.input.params)
    takes_zero = len(plan.registry.ops[part.op].call_args) > 2
    return QuantizedInput(quantize, gemm, (part.zero,) if takes_zero else ())
