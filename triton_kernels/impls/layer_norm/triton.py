"""Layer norm, with the residual added in the same pass. One program per row; up to ``block`` elements stay in
registers for mean, variance and scaling, longer rows are read once for each of the three. Sums are f32, the variance
is that of the centred values; the residual sum is rounded once, stored, and the rounded value is normalized. Made for
rows that fit in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl
from ...rows import rows


@triton.jit
def _load_row(x_ptr, residual_ptr, columns, mask, HAS_RESIDUAL: tl.constexpr):
    x = tl.load(x_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + columns, mask=mask, other=0.0)
        total = (x + residual.to(tl.float32)).to(residual.dtype)
        tl.store(residual_ptr + columns, total, mask=mask)
        x = total.to(tl.float32)
    return x


@triton.jit
def _scale_store(centred, inverse, weight_ptr, bias_ptr, out_ptr, columns, mask, HAS_BIAS: tl.constexpr):
    out = centred * inverse * tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        out += tl.load(bias_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + columns, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _layer_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, out_ptr, inner, x_outer, x_inner, residual_outer, residual_inner,
    width, eps,
    HAS_RESIDUAL: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr, ONE_BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row // inner * x_outer + row % inner * x_inner
    residual_ptr += row // inner * residual_outer + row % inner * residual_inner
    out_ptr += row * width
    columns = tl.arange(0, BLOCK)
    if ONE_BLOCK:
        mask = columns < width
        x = _load_row(x_ptr, residual_ptr, columns, mask, HAS_RESIDUAL)
        centred = tl.where(mask, x - tl.sum(x, axis=0) / width, 0.0)
        inverse = tl.rsqrt(tl.sum(centred * centred, axis=0) / width + eps)
        _scale_store(centred, inverse, weight_ptr, bias_ptr, out_ptr, columns, mask, HAS_BIAS)
    else:
        sums = tl.zeros((BLOCK,), dtype=tl.float32)
        for start in range(0, width, BLOCK):
            sums += _load_row(x_ptr, residual_ptr, start + columns, start + columns < width, HAS_RESIDUAL)
        mean = tl.sum(sums, axis=0) / width
        source = residual_ptr if HAS_RESIDUAL else x_ptr
        squares = tl.zeros((BLOCK,), dtype=tl.float32)
        for start in range(0, width, BLOCK):
            mask = start + columns < width
            x = tl.load(source + start + columns, mask=mask, other=0.0).to(tl.float32)
            centred = tl.where(mask, x - mean, 0.0)
            squares += centred * centred
        inverse = tl.rsqrt(tl.sum(squares, axis=0) / width + eps)
        for start in range(0, width, BLOCK):
            mask = start + columns < width
            x = tl.load(source + start + columns, mask=mask, other=0.0).to(tl.float32)
            _scale_store(x - mean, inverse, weight_ptr, bias_ptr, out_ptr, start + columns, mask, HAS_BIAS)


@impl(
    "layer_norm",
    "triton",
    priority=20,
    requires=("triton",),
    flags=Flags(batch_invariant=True),
    options={"block": 8192},
)
def layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    *,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    block: int,
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
    _layer_norm_kernel[(source.num_rows,)](
        source.tensor, added.tensor, weight, bias, out, source.inner, source.stride_outer, source.stride_inner,
        added.stride_outer, added.stride_inner, width, eps, HAS_RESIDUAL=residual is not None,
        HAS_BIAS=bias is not None, BLOCK=block, ONE_BLOCK=one_block,
        num_warps=max(4, min(16, block // 512)), enable_fp_fusion=True,
    )  # fmt: skip
    return out
