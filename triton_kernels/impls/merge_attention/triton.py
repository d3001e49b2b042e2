"""Joins two attention results by their log-sum-exps. One program per tile of (token, head) rows, one dimension of grid; a
tile of ROWS x head size of each part lives in registers, once read and once written. A part without keys is not read, so
that it may hold anything. Rows are addressed by token and head strides: parts may be views. Bound by memory; one launch
instead of the handful of elementwise ones that the formula takes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl
from .._shared.launch import Launch, cdiv, next_power_of_2


@triton.jit(do_not_specialize=["num_rows"])
def _merge_kernel(
    out_a_ptr,
    lse_a_ptr,
    out_b_ptr,
    lse_b_ptr,
    out_ptr,
    lse_ptr,
    num_rows,
    num_heads,
    width,
    a_token,
    a_head,
    lse_a_token,
    lse_a_head,
    b_token,
    b_head,
    lse_b_token,
    lse_b_head,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    valid = row < num_rows
    token, head = row // num_heads, row % num_heads
    lse_a = tl.load(lse_a_ptr + token * lse_a_token + head * lse_a_head, mask=valid, other=float("-inf"))
    lse_b = tl.load(lse_b_ptr + token * lse_b_token + head * lse_b_head, mask=valid, other=float("-inf"))
    best = tl.maximum(lse_a, lse_b)
    base = tl.where(best == float("-inf"), 0.0, best)
    weight_a, weight_b = tl.exp(lse_a - base), tl.exp(lse_b - base)
    total = weight_a + weight_b
    columns = tl.arange(0, BLOCK)[None, :]
    inside = columns < width
    a = tl.load(out_a_ptr + (token * a_token + head * a_head)[:, None] + columns, mask=inside & (weight_a > 0)[:, None], other=0.0)
    b = tl.load(out_b_ptr + (token * b_token + head * b_head)[:, None] + columns, mask=inside & (weight_b > 0)[:, None], other=0.0)
    inverse = 1.0 / tl.where(total > 0, total, 1.0)
    out = a.to(tl.float32) * (weight_a * inverse)[:, None] + b.to(tl.float32) * (weight_b * inverse)[:, None]
    tl.store(out_ptr + row[:, None] * width + columns, out.to(out_ptr.dtype.element_ty), mask=valid[:, None] & inside)
    tl.store(lse_ptr + row, base + tl.log(total), mask=valid)


_LAUNCH = Launch(_merge_kernel, num_warps=4, enable_fp_fusion=True)


@impl("merge_attention", "triton", priority=20, requires=("triton",), flags=Flags(batch_invariant=True), options={"rows": 16})
def merge_attention(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor, *, rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    assert out_a.stride(2) == out_b.stride(2) == 1, "head elements must be contiguous"
    out, lse = out_a.new_empty(out_a.shape), lse_a.new_empty(lse_a.shape)
    num_rows, num_heads, width = lse.numel(), out.shape[1], out.shape[2]
    if num_rows:
        _LAUNCH(
            (cdiv(num_rows, rows),),
            out_a,
            lse_a,
            out_b,
            lse_b,
            out,
            lse,
            num_rows,
            num_heads,
            width,
            *out_a.stride()[:2],
            *lse_a.stride(),
            *out_b.stride()[:2],
            *lse_b.stride(),
            ROWS=rows,
            BLOCK=next_power_of_2(width),
        )
    return out, lse
