"""Grouped GEMMs with weights of the activations' dtype.

A tile of BLOCK_M of one expert's tokens, read through their indices, is multiplied with matching rows of gate and up, and leaves
silu(gate) * up; the second GEMM multiplies by the router's weight. Registers hold the float32 accumulators, shared memory the
pipelined tiles of activations and weights. Few rows per expert leave most of a tile idle, while the weights are still read once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...spec import Spec
from ._tiles import Routing, Tile, gathered_rows, place, store_hidden, store_result


@triton.jit
def _load(pointers, inside, k, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """A tile whose rows are real where ``inside`` [rows, 1] says so, and columns below K."""
    if K % BLOCK_K == 0:
        tile = tl.load(pointers, mask=inside, other=0.0)
    else:
        tile = tl.load(pointers, mask=inside & (k < K)[None, :], other=0.0)
    return tile


@triton.jit
def _multiply(rows, weights, acc, INTERPRET: tl.constexpr):
    """acc + rows . weights^T. The interpreter calculates with bfloat16's bit patterns, and rounds a row's GEMMs by its
    place in the tile; float64 hides both."""
    if INTERPRET:
        result = tl.dot(rows.to(tl.float64), tl.trans(weights).to(tl.float64), acc, out_dtype=tl.float64)
    else:
        result = tl.dot(rows, tl.trans(weights), acc, input_precision="ieee")
    return result


@triton.jit(do_not_specialize=["num_tiles"])
def grouped_kernel(
    x,
    w,
    out,
    weights,
    pairs,
    starts,
    tile_expert,
    num_tiles,
    stride_xt,
    stride_we,
    stride_wn,
    TOP_K: tl.constexpr,
    K: tl.constexpr,
    COLUMNS: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    expert, rows, inside, column_block = place(starts, tile_expert, num_tiles, COLUMNS, BLOCK_M, BLOCK_N)
    if expert < 0:
        return
    source = gathered_rows(pairs, rows, inside, TOP_K, GATED)
    columns = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
    within = columns < COLUMNS
    ks = tl.arange(0, BLOCK_K)
    x_rows = x + source.to(tl.int64)[:, None] * stride_xt
    weight_rows = w + expert.to(tl.int64) * stride_we + columns.to(tl.int64)[:, None] * stride_wn
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float64 if INTERPRET else tl.float32)
    if GATED:
        up = tl.zeros((BLOCK_M, BLOCK_N), tl.float64 if INTERPRET else tl.float32)
    for start in tl.range(0, K, BLOCK_K):
        k = start + ks
        x_tile = _load(x_rows + k[None, :], inside[:, None], k, K, BLOCK_K)
        acc = _multiply(x_tile, _load(weight_rows + k[None, :], within[:, None], k, K, BLOCK_K), acc, INTERPRET)
        if GATED:
            up_rows = weight_rows + COLUMNS * stride_wn
            up = _multiply(x_tile, _load(up_rows + k[None, :], within[:, None], k, K, BLOCK_K), up, INTERPRET)
    if GATED:
        store_hidden(acc.to(tl.float32), up.to(tl.float32), out, rows, inside, column_block, COLUMNS, BLOCK_N)
    else:
        store_result(acc.to(tl.float32), out, weights, pairs, rows, inside, column_block, COLUMNS, BLOCK_N)


class FloatGemm:
    """w13 (``gated``): x [T, H] -> silu(gate) * up [pairs, I], by expert; or w2: that -> router weight * result [pairs, H]."""

    def __init__(
        self, spec: Spec, weight: torch.Tensor, scales: torch.Tensor | None, zeros: torch.Tensor | None, gated: bool, tile: Tile
    ) -> None:
        self.weight, self.gated, self.tile, self.interpret = weight, gated, tile, spec.interpret

    def __call__(self, x: torch.Tensor, routing: Routing) -> torch.Tensor:
        columns = self.weight.shape[1] // (1 + self.gated)
        out = x.new_empty(routing.num_pairs, columns)
        grouped_kernel[self.tile.grid(routing.groups, columns, self.gated)](
            x,
            self.weight,
            out,
            routing.weights,
            *routing.groups,
            routing.groups.num_tiles,
            x.stride(0),
            self.weight.stride(0),
            self.weight.stride(1),
            TOP_K=routing.top_k,
            K=x.shape[1],
            COLUMNS=columns,
            BLOCK_K=self.tile.block_k,
            **self.tile.launch(self.gated, self.interpret),
        )
        return out
