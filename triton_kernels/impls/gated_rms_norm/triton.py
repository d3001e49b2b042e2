"""Gated root-mean-square norm in one pass. A program holds [ROWS, BLOCK] numbers: several norms where they are short, such as
those of heads, else one; x and gate are read once, where a norm is at most ``block`` wide, else a second time for the scaling. The
sum is f32. Made for x and gate that lie strided inside fused projections, and in place of three kernels (gate, norm, product).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl
from ...spec import Spec
from .._shared.launch import Launch, cdiv, next_power_of_2
from .._shared.norm_rows import row_pointers
from .._shared.rows import rows


@triton.jit
def _load(x_ptrs, gate_ptrs, columns, mask, NORM_FIRST: tl.constexpr):
    """f32: what is normalized, and what the norm is multiplied by."""
    x = tl.load(x_ptrs + columns, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptrs + columns, mask=mask, other=0.0).to(tl.float32)
    opened = gate * tl.sigmoid(gate)
    return (x, opened) if NORM_FIRST else (x * opened, 1.0)


@triton.jit(do_not_specialize=["num_rows", "num_heads"])
def gated_rms_norm_kernel(
    x_ptr,
    gate_ptr,
    out_ptr,
    num_rows,
    num_heads,
    x_outer,
    x_inner,
    gate_outer,
    gate_inner,
    weight_ptr,
    num_groups,
    width,
    eps,
    NORM_FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
):
    """Row r is group r % num_groups of head r // num_groups; heads lie as ``rows`` says."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    valid = (row < num_rows)[:, None]
    head, group = row // num_groups, (row % num_groups * width)[:, None]
    x_ptrs = row_pointers(x_ptr, head, num_heads, x_outer, x_inner) + group
    gate_ptrs = row_pointers(gate_ptr, head, num_heads, gate_outer, gate_inner) + group
    columns = tl.arange(0, BLOCK)[None, :]
    if ONE_BLOCK:
        mask = valid & (columns < width)
        source, factor = _load(x_ptrs, gate_ptrs, columns, mask, NORM_FIRST)
        inverse = tl.rsqrt(tl.sum(source * source, axis=1) / width + eps)
        weight = tl.load(weight_ptr + group + columns, mask=mask, other=0.0).to(tl.float32)
        out = source * inverse[:, None] * weight * factor
        tl.store(out_ptr + (row * width)[:, None] + columns, out.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        squares = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
        for start in range(0, width, BLOCK):
            at = start + columns
            source, _ = _load(x_ptrs, gate_ptrs, at, valid & (at < width), NORM_FIRST)
            squares += source * source
        inverse = tl.rsqrt(tl.sum(squares, axis=1) / width + eps)
        for start in range(0, width, BLOCK):
            at = start + columns
            mask = valid & (at < width)
            source, factor = _load(x_ptrs, gate_ptrs, at, mask, NORM_FIRST)
            weight = tl.load(weight_ptr + group + at, mask=mask, other=0.0).to(tl.float32)
            out = source * inverse[:, None] * weight * factor
            tl.store(out_ptr + (row * width)[:, None] + at, out.to(out_ptr.dtype.element_ty), mask=mask)


@impl("gated_rms_norm", "triton", priority=20, requires=("triton",), flags=Flags(batch_invariant=True), options={"block": 8192})
class GatedRmsNormTriton:
    """``block``: columns that a program holds at once."""

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any], block: int) -> None:
        weight = weights["weight"].contiguous()
        width = params.get("group_size") or weight.shape[0]
        self.num_groups = weight.shape[0] // width
        block = min(block, next_power_of_2(width))
        self.per_program = max(1, min(16, 2048 // block))
        self.launch = Launch(
            gated_rms_norm_kernel,
            weight_ptr=weight,
            num_groups=self.num_groups,
            width=width,
            eps=params["eps"],
            NORM_FIRST=params.get("norm_first", True),
            ROWS=self.per_program,
            BLOCK=block,
            ONE_BLOCK=block >= width,
            num_warps=8 if block >= 4096 else 4,
            enable_fp_fusion=True,
        )

    def __call__(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        out = x.new_empty(x.shape)
        x, num_heads, inner, *x_strides = rows(x)
        gate, _, same, *gate_strides = rows(gate)
        assert inner == same, "x and gate must have the same shape"
        num_rows = num_heads * self.num_groups
        if num_rows:
            self.launch((cdiv(num_rows, self.per_program),), x, gate, out, num_rows, inner, *x_strides, *gate_strides)
        return out
