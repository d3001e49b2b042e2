"""The second half of GEMMs whose K is split over programs: partial sums are added in the order of the splits.

One program per token and block of columns; partial sums are read once, with neighbouring threads at neighbouring columns.
The order is fixed, so the result has the same bits on every run. Integer sums are exact.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import Launch, cdiv, next_power_of_2

MAX_SPLITS = 16
MIN_BLOCKS_PER_SPLIT = 4
BLOCK = 1024


def num_splits(num_tiles: int, num_blocks: int, num_programs: int) -> int:
    """Into how many splits to cut K of ``num_blocks`` blocks, so that ``num_tiles`` tiles give about ``num_programs``
    programs and none is left with a short loop."""
    splits = 1
    while splits < MAX_SPLITS and num_tiles * splits < num_programs and num_blocks // (2 * splits) >= MIN_BLOCKS_PER_SPLIT:
        splits *= 2
    return splits


@triton.jit
def scale_sums(
    total,
    x_scale_ptr,
    x_zero_ptr,
    scale_ptr,
    column_sum_ptr,
    bias_ptr,
    token,
    column,
    num_tokens,
    num_out,
    stride_x_scale,
    stride_scale,
    HAS_SCALES: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """(total - x_zero * column_sum) * x_scale * scale + bias in f32. ``total``, ``token`` and ``column`` broadcast."""
    if HAS_ZERO:
        zero = tl.load(x_zero_ptr + token * stride_x_scale, mask=token < num_tokens, other=0)
        total -= zero * tl.load(column_sum_ptr + column, mask=column < num_out, other=0)
    total = total.to(tl.float32)
    if HAS_SCALES:
        total *= tl.load(x_scale_ptr + token * stride_x_scale, mask=token < num_tokens, other=0.0)
        total *= tl.load(scale_ptr + column * stride_scale, mask=column < num_out, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias_ptr + column, mask=column < num_out, other=0.0).to(tl.float32)
    return total


@triton.jit(do_not_specialize=["num_tokens", "stride_x_scale"])
def sum_splits_kernel(
    partial_ptr,
    x_scale_ptr,
    x_zero_ptr,
    scale_ptr,
    column_sum_ptr,
    bias_ptr,
    out_ptr,
    num_tokens,
    num_out,
    stride_x_scale,
    stride_scale,
    SPLIT_K: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token, column = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < num_out
    total = tl.zeros((BLOCK,), dtype=partial_ptr.dtype.element_ty)
    for split in tl.static_range(SPLIT_K):
        row = (split * num_tokens + token).to(tl.int64)
        total += tl.load(partial_ptr + row * num_out + column, mask=inside, other=0)
    total = scale_sums(
        total,
        x_scale_ptr,
        x_zero_ptr,
        scale_ptr,
        column_sum_ptr,
        bias_ptr,
        token,
        column,
        num_tokens,
        num_out,
        stride_x_scale,
        stride_scale,
        HAS_SCALES,
        HAS_ZERO,
        HAS_BIAS,
    )
    tl.store(out_ptr + token.to(tl.int64) * num_out + column, total.to(out_ptr.dtype.element_ty), mask=inside)


_LAUNCH = Launch(sum_splits_kernel, num_warps=4)


def sum_splits(
    partial: torch.Tensor,
    out: torch.Tensor,
    bias: torch.Tensor | None,
    x_scale: torch.Tensor | None = None,
    x_zero: torch.Tensor | None = None,
    scales: torch.Tensor | None = None,
    column_sums: torch.Tensor | None = None,
) -> None:
    """out [M, N] = sum of partial [S, M, N] (int32 or f32), then scaled as :func:`scale_sums` says; scales with one row
    hold for all."""
    split, num_tokens, num_out = partial.shape
    block = min(BLOCK, next_power_of_2(num_out))
    _LAUNCH(
        (num_tokens, cdiv(num_out, block)),
        partial,
        x_scale,
        x_zero,
        scales,
        column_sums,
        bias,
        out,
        num_tokens,
        num_out,
        row_stride(x_scale),
        row_stride(scales),
        SPLIT_K=split,
        HAS_SCALES=scales is not None,
        HAS_ZERO=x_zero is not None,
        HAS_BIAS=bias is not None,
        BLOCK=block,
        enable_fp_fusion=partial.dtype == torch.float32,
    )


def row_stride(scales: torch.Tensor | None) -> int:
    """The distance of the scales of adjacent rows: 0 where one scale holds for all rows."""
    return 0 if scales is None or scales.shape[0] == 1 else scales.stride(0)
