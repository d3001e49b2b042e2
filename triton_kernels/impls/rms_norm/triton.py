"""Root-mean-square norm, with the residual added in the same pass, and quantized values instead of numbers where they are asked
for. One program per row (several rows when they are short, such as the heads of a query); up to ``block`` elements stay in
registers between the sum of squares and the scaling, and between the largest magnitude and the quantized values; longer rows are
read a second time, and a third time where a scale per token needs the whole row before its first quantized value. The sum is f32;
the residual sum is rounded once, stored, and the rounded value is normalized. Made for activations that lie strided inside a fused
projection, for the residual add, and for the quantization of a GEMM's input, which otherwise are kernels of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl
from ...ops.quantize import OUTPUT_ARGS
from ...spec import Spec
from .._shared.norm_rows import NormLaunch, load_rows, row_pointers
from .._shared.output import Output, store_rows
from .._shared.quantized_values import scale_of


@triton.jit
def _scaled(x, inverse, weight_ptr, columns, width, offset):
    weight = tl.load(weight_ptr + columns, mask=columns < width, other=0.0).to(tl.float32)
    return x * inverse[:, None] * (weight + offset)


@triton.jit(do_not_specialize=["num_rows", "inner"])
def _rms_norm_kernel(
    x_ptr,
    residual_ptr,
    num_rows,
    inner,
    x_outer,
    x_inner,
    residual_outer,
    residual_inner,
    out_ptr,
    scales_ptr,
    weight_ptr,
    width,
    eps,
    offset,
    HAS_RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    MODE: tl.constexpr,
    KIND: tl.constexpr,
    LIMIT: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    valid = (row < num_rows)[:, None]
    x_ptrs = row_pointers(x_ptr, row, inner, x_outer, x_inner)
    residual_ptrs = row_pointers(residual_ptr, row, inner, residual_outer, residual_inner)
    columns = tl.arange(0, BLOCK)[None, :]
    scale = 1.0
    if MODE == "static":
        scale = tl.load(scales_ptr)
    if ONE_BLOCK:
        x = load_rows(x_ptrs, residual_ptrs, columns, valid & (columns < width), HAS_RESIDUAL)
        inverse = tl.rsqrt(tl.sum(x * x, axis=1) / width + eps)
        values = _scaled(x, inverse, weight_ptr, columns, width, offset)
        if MODE == "token":
            scale = scale_of(tl.max(tl.abs(values), axis=1), LIMIT)[:, None]
            tl.store(scales_ptr + row[:, None], scale, mask=valid)
        store_rows(values, scale, row, valid, 0, width, out_ptr, scales_ptr, MODE, KIND, LIMIT)
    else:
        squares = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
        for start in range(0, width, BLOCK):
            at = start + columns
            x = load_rows(x_ptrs, residual_ptrs, at, valid & (at < width), HAS_RESIDUAL)
            squares += x * x
        if HAS_RESIDUAL:
            tl.debug_barrier()  # sums are read by other threads than stored them, where the dtypes have loads of other widths
        inverse = tl.rsqrt(tl.sum(squares, axis=1) / width + eps)
        source = residual_ptrs if HAS_RESIDUAL else x_ptrs
        if MODE == "token":
            largest = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
            for start in range(0, width, BLOCK):
                at = start + columns
                x = tl.load(source + at, mask=valid & (at < width), other=0.0).to(tl.float32)
                largest = tl.maximum(largest, tl.abs(_scaled(x, inverse, weight_ptr, at, width, offset)))
            scale = scale_of(tl.max(largest, axis=1), LIMIT)[:, None]
            tl.store(scales_ptr + row[:, None], scale, mask=valid)
        for start in range(0, width, BLOCK):
            at = start + columns
            x = tl.load(source + at, mask=valid & (at < width), other=0.0).to(tl.float32)
            values = _scaled(x, inverse, weight_ptr, at, width, offset)
            store_rows(values, scale, row, valid, start, width, out_ptr, scales_ptr, MODE, KIND, LIMIT)


@impl("rms_norm", "triton", priority=20, requires=("triton",), flags=Flags(batch_invariant=True), options={"block": 8192})
class RmsNormTriton:
    """``block``: columns that a program holds at once."""

    takes = OUTPUT_ARGS

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any], block: int) -> None:
        weight, self.output = weights["weight"], Output(weights, params)
        self.launch = NormLaunch(
            _rms_norm_kernel,
            weight.shape[0],
            self.output.block(block, weight.shape[0]),
            weight_ptr=weight,
            eps=params["eps"],
            offset=params.get("offset", 0.0),
            **self.output.constants,
            enable_fp_fusion=self.output.mode == "plain",
        )

    unsupported = staticmethod(Output.unsupported)

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        new = self.output.new(x, x.shape)
        if new.out.numel():
            self.launch(x, residual, new.out, new.scales)
        return new.result
