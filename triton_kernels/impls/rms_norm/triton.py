"""Root-mean-square norm, with the residual added in the same pass. One program per row (several rows when they are
short, such as the heads of a query); up to ``block`` elements stay in registers between the sum of squares and the
scaling, longer rows are read a second time. The sum is f32; the residual sum is rounded once, stored, and the rounded
value is normalized. Made for activations that lie strided inside a fused projection, and for the residual add, which
otherwise is a kernel of its own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl
from ...rows import rows


@triton.jit
def _load_row(x_ptrs, residual_ptrs, columns, mask, HAS_RESIDUAL: tl.constexpr):
    x = tl.load(x_ptrs + columns, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptrs + columns, mask=mask, other=0.0)
        total = (x + residual.to(tl.float32)).to(residual.dtype)
        tl.store(residual_ptrs + columns, total, mask=mask)
        x = total.to(tl.float32)
    return x


@triton.jit
def _scale(x, inverse, weight_ptr, columns, width, offset):
    weight = tl.load(weight_ptr + columns, mask=columns < width, other=0.0).to(tl.float32)
    return x * inverse[:, None] * (weight + offset)


@triton.jit(do_not_specialize=["num_rows"])
def _rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, out_ptr, num_rows, inner, x_outer, x_inner, residual_outer, residual_inner,
    width, eps, offset, HAS_RESIDUAL: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, ONE_BLOCK: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    valid = (row < num_rows)[:, None]
    x_ptrs = (x_ptr + row // inner * x_outer + row % inner * x_inner)[:, None]
    residual_ptrs = (residual_ptr + row // inner * residual_outer + row % inner * residual_inner)[:, None]
    out_ptrs = (out_ptr + row * width)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    if ONE_BLOCK:
        mask = valid & (columns < width)
        x = _load_row(x_ptrs, residual_ptrs, columns, mask, HAS_RESIDUAL)
        inverse = tl.rsqrt(tl.sum(x * x, axis=1) / width + eps)
        tl.store(
            out_ptrs + columns,
            _scale(x, inverse, weight_ptr, columns, width, offset).to(out_ptr.dtype.element_ty),
            mask=mask,
        )
    else:
        squares = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
        for start in range(0, width, BLOCK):
            at = start + columns
            x = _load_row(x_ptrs, residual_ptrs, at, valid & (at < width), HAS_RESIDUAL)
            squares += x * x
        inverse = tl.rsqrt(tl.sum(squares, axis=1) / width + eps)
        source = residual_ptrs if HAS_RESIDUAL else x_ptrs
        for start in range(0, width, BLOCK):
            at = start + columns
            mask = valid & (at < width)
            x = tl.load(source + at, mask=mask, other=0.0).to(tl.float32)
            tl.store(out_ptrs + at, _scale(x, inverse, weight_ptr, at, width, offset).to(out_ptr.dtype.element_ty), mask=mask)


@impl("rms_norm", "triton", priority=20, requires=("triton",), flags=Flags(batch_invariant=True), options={"block": 8192})
def rms_norm(
    x: torch.Tensor, residual: torch.Tensor | None, *, weight: torch.Tensor, eps: float, offset: float = 0.0, block: int
) -> torch.Tensor:
    out = x.new_empty(x.shape)
    if out.numel() == 0:
        return out
    width = x.shape[-1]
    source = rows(x)
    added = source if residual is None else rows(residual, in_place=True)
    assert residual is None or added.inner == source.inner, "x and residual must have the same shape"
    one_block = triton.next_power_of_2(width) <= block
    block = min(block, triton.next_power_of_2(width))
    per_program = max(1, min(16, 2048 // block)) if one_block else 1
    _rms_norm_kernel[(triton.cdiv(source.num_rows, per_program),)](
        source.tensor, added.tensor, weight, out, source.num_rows, source.inner, source.stride_outer,
        source.stride_inner, added.stride_outer, added.stride_inner, width, eps, offset,
        HAS_RESIDUAL=residual is not None, ROWS=per_program, BLOCK=block, ONE_BLOCK=one_block,
        num_warps=8 if block * per_program >= 4096 else 4, enable_fp_fusion=True,
    )  # fmt: skip
    return out
