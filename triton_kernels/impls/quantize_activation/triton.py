"""Activations to 8-bit quantized values, by rows or by groups of 128 of a row.

One program takes a row (or 16 groups of one): the largest absolute value first, in f32, then the quantized values, from registers
when the row fits into one block, else by reading it again. Bound by memory: each element is read once and its quantized value
written once. Made for the input of a quantized GEMM where no norm or activation before it can write the quantized values itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl
from ...ops.quantize import GROUP
from ...spec import Spec
from .._shared.launch import Launch, cdiv, next_power_of_2
from .._shared.quantized_values import LIMITS, quantized_constants, scale_of, to_quantized

GROUPS_PER_PROGRAM = 16
MAX_BLOCK = 8192


@triton.jit
def _quantized(values, scale, zero_ptr, KIND: tl.constexpr, LIMIT: tl.constexpr):
    """uint8 bits; with a zero point (of int8, else None) it is added after rounding, before saturation."""
    if zero_ptr is None:
        quantized = to_quantized(values, scale, KIND, LIMIT)
    else:
        quotient = tl.minimum(tl.maximum(tl.div_rn(values, scale), -1024.0), 1024.0)
        shifted = quotient + 12582912.0 - 12582912.0 + tl.load(zero_ptr).to(tl.float32)  # adding 1.5 * 2^23 rounds to an integer
        quantized = tl.minimum(tl.maximum(shifted, -128.0), 127.0).to(tl.int32).to(tl.uint8)
    return quantized


@triton.jit
def quantize_rows_kernel(
    x_ptr,
    static_ptr,
    zero_ptr,
    quantized_ptr,
    scales_ptr,
    width,
    stride_x,
    KIND: tl.constexpr,
    LIMIT: tl.constexpr,
    STATIC: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    values = tl.load(x_ptr + row * stride_x + columns, mask=columns < width, other=0.0).to(tl.float32)
    if STATIC:
        scale = tl.load(static_ptr)
    else:
        largest = tl.abs(values)
        for start in range(BLOCK, width, BLOCK):
            more = tl.load(x_ptr + row * stride_x + start + columns, mask=start + columns < width, other=0.0)
            largest = tl.maximum(largest, tl.abs(more.to(tl.float32)))
        scale = scale_of(tl.max(largest, axis=0), LIMIT)
        tl.store(scales_ptr + row, scale)
    tl.store(quantized_ptr + row * width + columns, _quantized(values, scale, zero_ptr, KIND, LIMIT), mask=columns < width)
    if not ONE_BLOCK:
        for start in range(BLOCK, width, BLOCK):
            at = start + columns
            values = tl.load(x_ptr + row * stride_x + at, mask=at < width, other=0.0).to(tl.float32)
            tl.store(quantized_ptr + row * width + at, _quantized(values, scale, zero_ptr, KIND, LIMIT), mask=at < width)


@triton.jit
def quantize_groups_kernel(
    x_ptr, quantized_ptr, scales_ptr, width, num_groups, stride_x, KIND: tl.constexpr, LIMIT: tl.constexpr, GROUPS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    columns = group[:, None] * 128 + tl.arange(0, 128)[None, :]
    values = tl.load(x_ptr + row * stride_x + columns, mask=columns < width, other=0.0).to(tl.float32)
    scales = scale_of(tl.max(tl.abs(values), axis=1), LIMIT)
    tl.store(scales_ptr + row * num_groups + group, scales, mask=group < num_groups)
    tl.store(quantized_ptr + row * width + columns, to_quantized(values, scales[:, None], KIND, LIMIT), mask=columns < width)


@impl("quantize_activation", "triton", priority=30, requires=("triton",), flags=Flags(batch_invariant=True), options={"block": 0})
class TritonQuantize:
    """``block``: columns of a row held at once (0: a whole row up to 8192); for groups, groups of one program."""

    takes = ("static_zero",)

    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any], block: int) -> None:
        self.out_dtype = params.get("out_dtype", torch.float8_e4m3fn)
        self.static_scale, self.static_zero = weights.get("static_scale"), weights.get("static_zero")
        self.by_group = params.get("granularity", "token") == "group" and self.static_scale is None
        self.block = block
        kernel, options = (quantize_groups_kernel, {"num_warps": 4}) if self.by_group else (quantize_rows_kernel, {})
        self.kernel = Launch(kernel, **quantized_constants(self.out_dtype), **options, enable_fp_fusion=False)

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        asked = spec.fact("out_dtype", torch.int8)
        return [] if asked in LIMITS else [f"makes quantized values of {', '.join(map(str, LIMITS))}, not {asked}"]

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        num_rows, width = x.shape
        x = x if x.stride(1) == 1 else x.contiguous()
        quantized = x.new_empty(num_rows, width, dtype=self.out_dtype)
        bits = quantized.view(torch.uint8)
        if self.by_group:
            num_groups = cdiv(width, GROUP)
            scales = x.new_empty(num_rows, num_groups, dtype=torch.float32)
            groups = self.block or GROUPS_PER_PROGRAM
            if quantized.numel():
                grid = (num_rows, cdiv(num_groups, groups))
                self.kernel(grid, x, bits, scales, width, num_groups, x.stride(0), GROUPS=groups)
            return quantized, scales
        static = self.static_scale
        scales = x.new_empty(num_rows, 1, dtype=torch.float32) if static is None else static.clone()
        block = self.block or min(MAX_BLOCK, next_power_of_2(width))
        if quantized.numel():
            self.kernel(
                (num_rows,),
                x,
                static,
                self.static_zero,
                bits,
                scales,
                width,
                x.stride(0),
                STATIC=static is not None,
                ONE_BLOCK=block >= width,
                BLOCK=block,
                num_warps=8 if block >= 4096 else 4,
            )
        return quantized, scales
