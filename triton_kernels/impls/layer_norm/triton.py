"""Layer norm, with the residual added in the same pass. One program per row (several when they are short); up to ``block``
elements stay in registers for mean, variance and scaling, longer rows are read once for each of the three. Sums are f32, the
variance is that of the centred values; the residual sum is rounded once, stored, and the rounded value is normalized. Made
for rows that fit in registers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl
from ...spec import Spec
from .._shared.launch import next_power_of_2
from .._shared.norm_rows import NormLaunch, load_rows, row_pointers


@triton.jit
def _scale_store(centred, inverse, weight_ptr, bias_ptr, out_ptrs, columns, width, valid, HAS_BIAS: tl.constexpr):
    inside = columns < width
    out = centred * inverse[:, None] * tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        out += tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptrs + columns, out.to(out_ptrs.dtype.element_ty), mask=valid & inside)


@triton.jit(do_not_specialize=["num_rows", "inner"])
def _layer_norm_kernel(
    x_ptr,
    residual_ptr,
    num_rows,
    inner,
    x_outer,
    x_inner,
    residual_outer,
    residual_inner,
    out_ptr,
    weight_ptr,
    bias_ptr,
    width,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    valid = (row < num_rows)[:, None]
    x_ptrs = row_pointers(x_ptr, row, inner, x_outer, x_inner)
    residual_ptrs = row_pointers(residual_ptr, row, inner, residual_outer, residual_inner)
    out_ptrs = (out_ptr + row * width)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    if ONE_BLOCK:
        inside = columns < width
        x = load_rows(x_ptrs, residual_ptrs, columns, valid & inside, HAS_RESIDUAL)
        centred = tl.where(inside, x - (tl.sum(x, axis=1) / width)[:, None], 0.0)
        inverse = tl.rsqrt(tl.sum(centred * centred, axis=1) / width + eps)
        _scale_store(centred, inverse, weight_ptr, bias_ptr, out_ptrs, columns, width, valid, HAS_BIAS)
    else:
        sums = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
        for start in range(0, width, BLOCK):
            at = start + columns
            sums += load_rows(x_ptrs, residual_ptrs, at, valid & (at < width), HAS_RESIDUAL)
        if HAS_RESIDUAL:
            tl.debug_barrier()  # sums are read by other threads than stored them, where the dtypes have loads of other widths
        mean = (tl.sum(sums, axis=1) / width)[:, None]
        source = residual_ptrs if HAS_RESIDUAL else x_ptrs
        squares = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
        for start in range(0, width, BLOCK):
            at = start + columns
            x = tl.load(source + at, mask=valid & (at < width), other=0.0).to(tl.float32)
            centred = tl.where(at < width, x - mean, 0.0)
            squares += centred * centred
        inverse = tl.rsqrt(tl.sum(squares, axis=1) / width + eps)
        for start in range(0, width, BLOCK):
            at = start + columns
            x = tl.load(source + at, mask=valid & (at < width), other=0.0).to(tl.float32)
            _scale_store(x - mean, inverse, weight_ptr, bias_ptr, out_ptrs, at, width, valid, HAS_BIAS)


@impl("layer_norm", "triton", priority=20, requires=("triton",), flags=Flags(batch_invariant=True), options={"block": 8192})
class LayerNormTriton:
    """``block``: columns that a program holds at once."""

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any], block: int) -> None:
        weight, bias = weights["weight"], weights.get("bias")
        self.launch = NormLaunch(
            _layer_norm_kernel,
            weight.shape[0],
            min(block, next_power_of_2(weight.shape[0])),
            weight_ptr=weight,
            bias_ptr=bias,
            eps=params["eps"],
            HAS_BIAS=bias is not None,
            enable_fp_fusion=True,
        )

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        out = x.new_empty(*x.shape)
        if out.numel():
            self.launch(x, residual, out)
        return out
