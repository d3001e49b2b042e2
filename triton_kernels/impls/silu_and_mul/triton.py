"""silu(gate) * up. The grid is tokens x column blocks; a program reads its block of both halves of a row, computes in
f32 registers and writes once, so that the activation and the product are one pass over memory. Made for the
elementwise step between the two products of an MLP, which is bound by memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl


@triton.jit
def _silu_and_mul_kernel(x_ptr, out_ptr, width, stride_x, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    gate = tl.load(x_ptr + token * stride_x + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + token * stride_x + width + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + token * width + columns, (gate * tl.sigmoid(gate) * up).to(out_ptr.dtype.element_ty), mask=mask)


@impl(
    "silu_and_mul",
    "triton",
    priority=20,
    requires=("triton",),
    flags=Flags(batch_invariant=True),
    options={"block": 1024},
    tune_space={"block": (512, 1024, 2048, 4096)},
)
def silu_and_mul(x: torch.Tensor, *, block: int) -> torch.Tensor:
    width = x.shape[-1] // 2
    out = x.new_empty(*x.shape[:-1], width)
    if out.numel():
        x = x.reshape(-1, 2 * width)
        x = x if x.stride(1) == 1 else x.contiguous()
        block = min(block, triton.next_power_of_2(width))
        _silu_and_mul_kernel[(x.shape[0], triton.cdiv(width, block))](
            x, out, width, x.stride(0), BLOCK=block, num_warps=4, enable_fp_fusion=True
        )
    return out
