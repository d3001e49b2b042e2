"""What the norms share: rows of [..., H] with the residual added as they are read, and how many rows a program takes.

A program holds [ROWS, BLOCK] numbers: several rows where they are short, such as the heads of a query, else one. A row that is
longer than BLOCK is read in steps, and read again by every further pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .rows import rows


@triton.jit
def row_pointers(ptr, row, inner, stride_outer, stride_inner):
    return (ptr + row // inner * stride_outer + row % inner * stride_inner)[:, None]


@triton.jit
def load_rows(x_ptrs, residual_ptrs, columns, mask, HAS_RESIDUAL: tl.constexpr):
    """f32 rows of x; with a residual, of the sum, which is rounded to the residual's dtype, stored, and used as stored."""
    x = tl.load(x_ptrs + columns, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptrs + columns, mask=mask, other=0.0)
        total = (x + residual.to(tl.float32)).to(residual.dtype)
        tl.store(residual_ptrs + columns, total, mask=mask)
        x = total.to(tl.float32)
    return x


_STEP = 4096


class Launch(NamedTuple):
    """``args``: x, residual, num_rows, inner, and the outer and inner strides of both; ``constants``: HAS_RESIDUAL, ROWS, BLOCK,
    ONE_BLOCK and the number of warps."""

    grid: tuple[int]
    args: tuple[Any, ...]
    constants: dict[str, Any]


def launch(x: torch.Tensor, residual: torch.Tensor | None, block: int) -> Launch:
    """``block``: columns that a program holds at once, a power of two; of a longer row, which no registers keep between passes,
    at most 4096."""
    source = rows(x)
    added = source if residual is None else rows(residual, in_place=True)
    assert added.inner == source.inner, "x and residual must have the same shape"
    one_block = block >= x.shape[-1]
    block = block if one_block else min(block, _STEP)
    per_program = max(1, min(16, 2048 // block)) if one_block else 1
    strides = (source.stride_outer, source.stride_inner, added.stride_outer, added.stride_inner)
    constants = {"HAS_RESIDUAL": residual is not None, "ROWS": per_program, "BLOCK": block, "ONE_BLOCK": one_block}
    return Launch(
        (triton.cdiv(source.num_rows, per_program),),
        (source.tensor, added.tensor, source.num_rows, source.inner, *strides),
        {**constants, "num_warps": 8 if block * per_program >= 4096 else 4},
    )
