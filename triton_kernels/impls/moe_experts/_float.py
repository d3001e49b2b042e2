"""Grouped GEMMs with weights of the activations' dtype.

A program multiplies rows of one expert's weights - for the first GEMM rows of gate above as many of up - with a tile of its tokens,
which are read through their indices. Registers hold the float32 sums, shared memory the tiles of the next iterations. Few tokens
are the narrow side of the matrix instruction and weight rows the long one, which reaches warp-group instructions (sm_90) and the
tensor memory (sm_100) from 16 tokens up; many tokens are the long side, so that sums leave row by row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...spec import Spec
from .._shared.launch import Launch
from ._tiles import PLAIN, Routing, Tile, Variant, gathered_rows, place, store_sums, weight_rows


@triton.jit(do_not_specialize=["num_tiles"])
def grouped_kernel(
    x,
    w,
    bias,
    out,
    weights,
    pairs,
    starts,
    tile_expert,
    num_tiles,
    num_in,
    stride_xt,
    stride_we,
    stride_wn,
    TOP_K: tl.constexpr,
    COLUMNS: tl.constexpr,
    GATED: tl.constexpr,
    LIMIT: tl.constexpr,
    ALPHA: tl.constexpr,
    WEIGHS_INPUT: tl.constexpr,
    SWAP: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    expert, rows, inside, column_block = place(starts, tile_expert, num_tiles, COLUMNS, BLOCK_M, BLOCK_N)
    if expert < 0:
        return
    WEIGHT_ROWS: tl.constexpr = 2 * BLOCK_N if GATED else BLOCK_N
    k = tl.arange(0, BLOCK_K)
    matrix, row = weight_rows(column_block, COLUMNS, BLOCK_N, GATED)
    w_ptrs = w + expert.to(tl.int64) * stride_we + ((matrix * COLUMNS + row) * stride_wn)[:, None] + k[None, :]
    source = gathered_rows(pairs, rows, inside, TOP_K, GATED)
    x_ptrs = x + source.to(tl.int64)[:, None] * stride_xt + k[None, :]

    # The interpreter multiplies bf16 bit patterns, and its GEMMs round by a row's place in the tile: wider numbers there.
    acc_dtype: tl.constexpr = tl.float64 if INTERPRET else tl.float32
    acc = tl.zeros((WEIGHT_ROWS, BLOCK_M) if SWAP else (BLOCK_M, WEIGHT_ROWS), dtype=acc_dtype)
    for start in range(0, num_in, BLOCK_K):
        if EVEN_K:
            w_tile, x_tile = tl.load(w_ptrs), tl.load(x_ptrs, mask=inside[:, None], other=0.0)
        else:
            left = k[None, :] < num_in - start
            w_tile, x_tile = tl.load(w_ptrs, mask=left, other=0.0), tl.load(x_ptrs, mask=left & inside[:, None], other=0.0)
        if INTERPRET:
            w_tile, x_tile = w_tile.to(tl.float64), x_tile.to(tl.float64)
        if SWAP:
            acc = tl.dot(w_tile, tl.trans(x_tile), acc, input_precision="ieee", out_dtype=acc_dtype)
        else:
            acc = tl.dot(x_tile, tl.trans(w_tile), acc, input_precision="ieee", out_dtype=acc_dtype)
        w_ptrs += BLOCK_K
        x_ptrs += BLOCK_K
    acc = acc.to(tl.float32)
    if bias is not None:
        bias += expert.to(tl.int64) * (2 * COLUMNS if GATED else COLUMNS)
    store_sums(
        acc if SWAP else tl.trans(acc),
        out,
        weights,
        pairs,
        rows,
        inside,
        column_block,
        COLUMNS,
        GATED,
        BLOCK_M,
        BLOCK_N,
        bias,
        LIMIT,
        ALPHA,
        WEIGHS_INPUT,
    )


class FloatGemm:
    """w13 (``gated``): x [T, H] -> silu(gate) * up [pairs, I], by expert; or w2: that -> router weight * result [pairs, H]."""

    def __init__(
        self,
        spec: Spec,
        weight: torch.Tensor,
        scales: torch.Tensor | None,
        zeros: torch.Tensor | None,
        gated: bool,
        bias: torch.Tensor | None = None,
        variant: Variant = PLAIN,
    ) -> None:
        self.weight = weight if weight.stride(2) == 1 else weight.contiguous()
        self.bias = None if bias is None else bias.contiguous()
        self.gated, self.interpret = gated, spec.interpret
        self.kernel = Launch(grouped_kernel, LIMIT=variant.limit, ALPHA=variant.alpha, WEIGHS_INPUT=variant.weighs_input)

    def __call__(self, x: torch.Tensor, routing: Routing, tile: Tile) -> torch.Tensor:
        columns, num_in = self.weight.shape[1] // (1 + self.gated), x.shape[1]
        out = x.new_empty(routing.num_pairs, columns)
        self.kernel(
            tile.grid(routing.groups, columns, self.gated),
            x,
            self.weight,
            self.bias,
            out,
            routing.weights,
            *routing.groups,
            routing.groups.num_tiles,
            num_in,
            x.stride(0),
            self.weight.stride(0),
            self.weight.stride(1),
            TOP_K=routing.top_k,
            COLUMNS=columns,
            SWAP=tile.block_m < 64,
            EVEN_K=num_in % tile.block_k == 0,
            BLOCK_K=tile.block_k,
            **tile.constants(self.gated, self.interpret),
        )
        return out
