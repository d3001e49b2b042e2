"""What the norms share: rows of [..., H] with the residual added as they are read, and how many rows a program takes.

A program holds [ROWS, BLOCK] numbers: several rows where they are short, such as the heads of a query, else one. A row that is
longer than BLOCK is read in steps, and read again by every further pass.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from .launch import Launch, cdiv
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


class NormLaunch:
    """A norm's kernel for rows of one width. It takes x, residual, num_rows, inner, the outer and inner strides of both, its
    outputs, and what is ``fixed``, ``width`` among it; HAS_RESIDUAL, ROWS, BLOCK and ONE_BLOCK are constexprs. Without a residual
    it is given x twice.

    block   columns that a program holds at once, a power of 2; of a longer row, which no registers keep between passes, at most
            4096
    """

    def __init__(self, kernel: Any, width: int, block: int, **fixed: Any) -> None:
        one_block = block >= width
        block = block if one_block else min(block, _STEP)
        self._per_program = max(1, min(16, 2048 // block)) if one_block else 1
        num_warps = 8 if block * self._per_program >= 4096 else 4
        constants = {"ROWS": self._per_program, "BLOCK": block, "ONE_BLOCK": one_block, "num_warps": num_warps}
        self._alone, self._with_residual = (
            Launch(kernel, width=width, HAS_RESIDUAL=has_residual, **fixed, **constants) for has_residual in (False, True)
        )

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None, *outputs: torch.Tensor) -> None:
        x, num_rows, inner, x_outer, x_inner = rows(x)
        launch, added_outer, added_inner = self._alone, x_outer, x_inner
        if residual is not None:
            launch = self._with_residual
            residual, _, same, added_outer, added_inner = rows(residual, in_place=True)
            assert inner == same, "x and residual must have the same shape"
        launch(
            (cdiv(num_rows, self._per_program),),
            x,
            x if residual is None else residual,
            num_rows,
            inner,
            x_outer,
            x_inner,
            added_outer,
            added_inner,
            *outputs,
        )
