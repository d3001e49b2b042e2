"""The second thin GEMM of LoRA, added in place. Tokens are grouped by adapter on the device, once per step for all layers
(``moe_align`` with one choice per token). The grid is row tiles x blocks of columns, of which none crosses from one slice (q, k,
v) to the next; a program multiplies a tile of one adapter's tokens with columns of its B, the slice's whole rank in steps of
BLOCK_K, adds the rows of y in float32 and rounds once. The accumulator lives in registers, tiles of the shrunk activations,
rounded to the dtype of B, and of B in shared memory. Each element of y belongs to one program, so nothing is atomic, a token's
result keeps its bits in any batch, and rows without an adapter are not touched. Bound by the bytes of y and B.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl
from ...lora_meta import LoraMeta
from ...spec import Spec
from .._shared.launch import Launch, next_power_of_2
from .._shared.lora import dtypes_differ
from ..moe_align.triton import group_by_adapter, tile_rows


@triton.jit
def _expand_kernel(
    y_ptr,
    shrunk_ptr,
    tokens_ptr,
    starts_ptr,
    tile_adapter_ptr,
    stride_y,
    stride_shrunk,
    b_ptr,
    b_adapter,
    b_rank,
    blocks_ptr,
    ALIGNED: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    adapter, rows, inside = tile_rows(starts_ptr, tile_adapter_ptr, tl.program_id(0), BLOCK_M)
    if adapter < 0:
        return
    tokens = tl.load(tokens_ptr + rows, mask=inside, other=0).to(tl.int64)
    first = tl.multiple_of(tl.load(blocks_ptr + 3 * tl.program_id(1)), ALIGNED)
    end = tl.multiple_of(tl.load(blocks_ptr + 3 * tl.program_id(1) + 1), ALIGNED)
    shrunk_ptr += tl.load(blocks_ptr + 3 * tl.program_id(1) + 2) * RANK
    columns = first + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    b_ptr += adapter.to(tl.int64) * b_adapter
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float64 if INTERPRET else tl.float32)
    for step in tl.range(0, RANK, BLOCK_K):
        k = step + ks
        shrunk = tl.load(
            shrunk_ptr + tokens[:, None] * stride_shrunk + k[None, :], mask=inside[:, None] & (k < RANK)[None, :], other=0.0
        ).to(b_ptr.dtype.element_ty)
        b_rows = b_ptr + k.to(tl.int64)[:, None] * b_rank
        b = tl.load(b_rows + columns[None, :], mask=(k < RANK)[:, None] & (columns < end)[None, :], other=0.0)
        if INTERPRET:  # its GEMMs round by their place in the tile, which float64 hides
            acc = tl.dot(shrunk.to(tl.float64), b.to(tl.float64), acc, out_dtype=tl.float64)
        else:
            acc = tl.dot(shrunk, b, acc, input_precision="ieee")
    target = y_ptr + tokens[:, None] * stride_y + columns[None, :]
    mask = inside[:, None] & (columns < end)[None, :]
    total = tl.load(target, mask=mask, other=0.0).to(tl.float32) + acc.to(tl.float32)
    tl.store(target, total.to(y_ptr.dtype.element_ty), mask=mask)


@impl(
    "lora_expand",
    "triton",
    priority=20,
    requires=("triton",),
    flags=Flags(batch_invariant=True),
    options={"block_m": 16, "block_n": 0, "block_k": 0},
    tune_space={"block_m": (16, 32, 64), "block_n": (64, 128, 256)},
)
class TritonExpand:
    """``block_n``, ``block_k``: columns, and ranks per step; 0 means 128 and 64, for float32 64 and 16."""

    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any], **options: int) -> None:
        lora_b, slices = weights["lora_b"], params["slices"]
        default = (64, 16) if spec.dtype == torch.float32 else (128, 64)
        self.block_m = options["block_m"]
        block_n, block_k = options["block_n"] or default[0], options["block_k"] or default[1]
        self.num_adapters, rank, num_columns = lora_b.shape
        assert sum(slices) == num_columns, f"slices of {slices} columns, but B has {num_columns}"
        b_adapter, b_rank, b_element = lora_b.stride()
        assert b_element == 1, "columns of B must be contiguous"
        blocks = _blocks(slices, block_n)
        self.num_blocks = len(blocks)
        self.launch = Launch(
            _expand_kernel,
            b_ptr=lora_b,
            b_adapter=b_adapter,
            b_rank=b_rank,
            blocks_ptr=torch.tensor(blocks, dtype=torch.int32, device=lora_b.device),
            ALIGNED=math.gcd(16, *slices),
            RANK=rank,
            BLOCK_M=self.block_m,
            BLOCK_N=block_n,
            BLOCK_K=min(block_k, max(16, next_power_of_2(rank))),
            INTERPRET=spec.interpret,
            num_warps=4,
            num_stages=2,
            enable_fp_fusion=True,
        )

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return dtypes_differ(spec)

    def begin_step(self, meta: LoraMeta) -> None:
        group_by_adapter(meta, self.num_adapters, self.block_m)

    def __call__(self, y: torch.Tensor, shrunk: torch.Tensor, meta: LoraMeta) -> None:
        assert y.stride(1) == shrunk.stride(1) == 1, "columns must be contiguous"
        if y.shape[0] == 0:
            return
        groups = group_by_adapter(meta, self.num_adapters, self.block_m)
        self.launch((groups.num_tiles, self.num_blocks), y, shrunk, *groups, y.stride(0), shrunk.stride(0))


def _blocks(slices: tuple[int, ...], size: int) -> list[tuple[int, int, int]]:
    """(first column, end of the slice's columns, slice) of blocks of ``size`` columns."""
    found, start = [], 0
    for nth, width in enumerate(slices):
        found += [(first, start + width, nth) for first in range(start, start + width, size)]
        start += width
    return found
