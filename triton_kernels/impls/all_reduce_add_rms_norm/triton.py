"""``all_reduce_add_rms_norm`` over symmetric memory: a one-shot all-reduce (``all_reduce:triton`` has the algorithm) whose programs
take whole rows, so that the sum, the residual and the norm stay in f32 registers: x crosses the links once, the residual is read
and written once. Made for decode steps, where each of the kernels that it replaces is all latency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from ...group import Group
from ...impl import NEVER_RAN_ACROSS_DEVICES, Flags, impl
from ...spec import Spec
from .._shared.launch import Launch, next_power_of_2
from .._shared.rank_memory import (
    ALL,
    COPY,
    MAX_PROGRAMS,
    MAX_RANKS,
    REDUCE,
    RankMemory,
    rank_barrier,
    rank_data,
    rank_reasons,
    rank_sum,
)

MAX_WIDTH = 16384


@triton.jit(do_not_specialize=["num_rows", "rank"])
def reduce_norm_kernel(
    x_ptr,
    residual_ptr,
    out_ptr,
    addresses_ptr,
    num_rows,
    stride_x,
    stride_residual,
    weight_ptr,
    bias_ptr,
    width,
    eps,
    offset,
    rank,
    RANKS: tl.constexpr,
    MAX_RANKS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
    PHASE: tl.constexpr,
):
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    wide = tl.full((), 0, tl.int64)  # rows may lie far apart
    if COPY & PHASE:
        own = rank_data(addresses_ptr, rank, x_ptr)
        for row in range(tl.program_id(0), num_rows, tl.num_programs(0)):
            at = wide + row
            tl.store(own + at * width + columns, tl.load(x_ptr + at * stride_x + columns, mask=inside), mask=inside)
    if PHASE == ALL:
        rank_barrier(addresses_ptr, rank, RANKS, MAX_RANKS)
    if REDUCE & PHASE:
        for row in range(tl.program_id(0), num_rows, tl.num_programs(0)):
            at = wide + row
            total = rank_sum(addresses_ptr, x_ptr, at * width + columns, inside, RANKS)
            if HAS_BIAS:
                total += tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
            total = total.to(residual_ptr.dtype.element_ty).to(tl.float32)  # as all_reduce gives it
            residual_ptrs = residual_ptr + at * stride_residual + columns
            summed = (tl.load(residual_ptrs, mask=inside, other=0.0).to(tl.float32) + total).to(residual_ptr.dtype.element_ty)
            tl.store(residual_ptrs, summed, mask=inside)
            summed = summed.to(tl.float32)
            inverse = tl.rsqrt(tl.sum(summed * summed, axis=0) / width + eps)
            weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32) + offset
            tl.store(out_ptr + at * width + columns, (summed * inverse * weight).to(out_ptr.dtype.element_ty), mask=inside)
    if PHASE == ALL:
        rank_barrier(addresses_ptr, rank, RANKS, MAX_RANKS)


@impl(
    "all_reduce_add_rms_norm",
    "triton",
    priority=15,  # below the ops that it replaces until measured against them
    requires=("triton",),
    flags=Flags(batch_invariant=True, rank_invariant=True),
    unproven=NEVER_RAN_ACROSS_DEVICES,
)
class TritonAllReduceAddRmsNorm:
    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any]) -> None:
        group: Group = params["group"]
        weight, bias = weights["weight"], weights.get("bias")
        self.memory, block = RankMemory(group, spec.interpret), next_power_of_2(weight.shape[0])
        self.launch = Launch(
            reduce_norm_kernel,
            weight_ptr=weight,
            bias_ptr=bias,
            width=weight.shape[0],
            eps=params["eps"],
            offset=params.get("offset", 0.0),
            rank=group.rank,
            RANKS=group.size,
            MAX_RANKS=MAX_RANKS,
            HAS_BIAS=bias is not None,
            BLOCK=block,
            num_warps=max(4, min(16, block // 512)),
            enable_fp_fusion=True,
        )

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        width = spec.fact("hidden_size", MAX_WIDTH)
        wide = [f"holds rows of up to {MAX_WIDTH} columns, not {width}"] if width > MAX_WIDTH else []
        return wide + rank_reasons(spec)

    def __call__(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        x = x.float() if x.dtype == torch.float64 else x
        x = x if x.stride(1) == 1 else x.contiguous()
        out = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
        if x.numel() == 0:
            return out
        addresses = self.memory.addresses(x.numel() * x.itemsize, x.device)
        grid, strides = (min(MAX_PROGRAMS, x.shape[0]),), (x.stride(0), residual.stride(0))
        self.memory.run(
            lambda phase: self.launch(grid, x, residual, out, addresses, x.shape[0], *strides, PHASE=phase), (COPY, REDUCE)
        )
        return out
