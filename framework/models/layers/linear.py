"""Linear layers, however their weights are stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...plan import BoundKernel, KernelPlan
from ..quantization.scheme import LoadedPart, one_input

Linear = Callable[[torch.Tensor], torch.Tensor]
"""x [T, in] -> [T, out] in x's dtype."""


@dataclass(slots=True)
class QuantizedInput:
    """GEMMs of quantized values with quantized weights, whose outputs stand side by side.

    quantize  None: what comes before (a norm, an activation) gives quantized values and their scales
    rest      what a GEMM takes beyond those: of int8 a zero point, int32 [1, 1] or None
    """

    quantize: BoundKernel | None
    gemms: list[BoundKernel]
    rest: tuple[torch.Tensor | None, ...]

    def __call__(self, x: Any) -> torch.Tensor:
        """x [T, in], or (values [T, in], scales) where there is no ``quantize`` -> [T, out]."""
        quantized = x if self.quantize is None else self.quantize(x)
        outputs = [gemm(*quantized, *self.rest) for gemm in self.gemms]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


@dataclass(slots=True)
class Float32Linear:
    """In float32, whatever its input."""

    linear: Linear

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, in] -> float32 [T, out]."""
        return self.linear(x.float())


@dataclass(slots=True)
class SplitLinear:
    """Linears of one input, whose outputs stand side by side: shards of a projection that no single GEMM can compute."""

    linears: list[Linear]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, in] -> [T, out]."""
        return torch.cat([linear(x) for linear in self.linears], dim=-1)


@dataclass(slots=True)
class ReducedLinear:
    """Of ranks that share its inputs: what each computes of its own is not rounded before all is summed. reduce: with the bias;
    None: left to the norm that follows."""

    linear: Linear
    bias: torch.Tensor | None
    reduce: BoundKernel | None

    def __call__(self, x: Any) -> torch.Tensor:
        """x as of ``linear``, [T, in of this rank] -> [T, out], without ``reduce`` the part of this rank."""
        part = self.linear(x)
        return part if self.reduce is None else self.reduce(part)


@dataclass(slots=True)
class GatheredLinear:
    """Of ranks that share its outputs, all of which are wanted: ``num_rows``; ranks may have more, so that each has as many."""

    linear: Linear
    gather: BoundKernel
    num_rows: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, in] -> [T, out]."""
        return self.gather(self.linear(x))[:, : self.num_rows].contiguous()


@dataclass(slots=True)
class ReducedEmbedding:
    """Of ranks that share the vocabulary: zeros for the tokens of others."""

    table: Callable[[torch.Tensor], torch.Tensor]
    reduce: BoundKernel

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """token_ids [T] -> [T, H]."""
        return self.reduce(self.table(token_ids))


def bind_linear(plan: KernelPlan, parts: Sequence[LoadedPart], *, quantized_input: bool = False) -> Linear:
    """Binds the op of each part, and, unless what comes before does its work, the one that the input goes through."""
    first = parts[0].input
    if first is None or not one_input(parts):
        linears: list[Linear] = [_bind_part(plan, [part]) if part.input else _bind_gemm(plan, part) for part in parts]
        return linears[0] if len(linears) == 1 else SplitLinear(linears)
    return _bind_part(plan, parts, quantized_input)


def bind_reduced(plan: KernelPlan, parts: Sequence[LoadedPart], group: Any, dtype: torch.dtype, **given: bool) -> ReducedLinear:
    """Of parts with the inputs of this rank, of ``group``. dtype: of the result. given: as ``bind_linear``."""
    biases = [part.tensors["bias"] for part in parts]
    bias = None if biases[0] is None else torch.cat([found for found in biases if found is not None])
    partial = [replace(part, tensors={**part.tensors, "bias": None}, params={**part.params, "partial": True}) for part in parts]
    return ReducedLinear(bind_linear(plan, partial, **given), bias, bind_reduce(plan, group, dtype, bias))


def bind_reduce(plan: KernelPlan, group: Any, dtype: torch.dtype, bias: torch.Tensor | None = None) -> BoundKernel:
    """The sum over the ranks of ``group``."""
    return plan.bind("all_reduce", {"bias": bias}, {"group": group, "out_dtype": dtype})


def _bind_part(plan: KernelPlan, parts: Sequence[LoadedPart], quantized_input: bool = False) -> QuantizedInput:
    """Parts with one input."""
    part = parts[0]
    assert part.input is not None
    quantize = None if quantized_input else plan.bind(part.input.op, part.input.tensors, part.input.params)
    takes_zero = len(plan.registry.ops[part.op].call_args) > 2
    rest = (part.input.tensors.get("static_zero"),) if takes_zero else ()
    return QuantizedInput(quantize, [_bind_gemm(plan, part) for part in parts], rest)


def _bind_gemm(plan: KernelPlan, part: LoadedPart) -> BoundKernel:
    return plan.bind(part.op, part.tensors, part.params, note=part.note)
