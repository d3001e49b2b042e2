"""What the grouped GEMMs of experts have in common: where a program's tile lies, and what becomes of its sums."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ...ops.moe_align import Groups
from .._shared.launch import cdiv
from ..moe_align.triton import tile_rows

GROUP_TILES = tl.constexpr(8)


class Routing(NamedTuple):
    """The choices of one call: grouped by expert, their router weights f32 [T, k], and k."""

    groups: Groups
    weights: torch.Tensor
    top_k: int

    @property
    def num_pairs(self) -> int:
        return self.weights.numel()


class Variant(NamedTuple):
    """What of the contract is not as usual."""

    limit: float | None = None
    alpha: float = 1.702
    weighs_input: bool = False


PLAIN = Variant()


class Tile(NamedTuple):
    """block_n counts columns of the output: a gated GEMM multiplies as many rows of gate, and of up."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int

    def constants(self, gated: bool, interpret: bool) -> dict[str, Any]:
        """Of a launch. The second GEMM takes twice as many columns, so that both have as many sums per program."""
        return {
            "GATED": gated,
            "INTERPRET": interpret,
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.columns(gated),
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": True,
        }

    def columns(self, gated: bool) -> int:
        return self.block_n if gated else 2 * self.block_n

    def grid(self, groups: Groups, columns: int, gated: bool) -> tuple[int]:
        return (groups.num_tiles * cdiv(columns, self.columns(gated)),)


@triton.jit
def place(starts, tile_expert, num_tiles, COLUMNS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(expert or -1, its rows in sorted order, which of them are real, column block) of this program; eight row tiles share a
    column block of weights in L2."""
    pid = tl.program_id(0)
    per_group = GROUP_TILES * tl.cdiv(COLUMNS, BLOCK_N)
    first = pid // per_group * GROUP_TILES
    size = tl.minimum(num_tiles - first, GROUP_TILES)
    tile = first + pid % per_group % size
    expert, rows, inside = tile_rows(starts, tile_expert, tile, BLOCK_M)
    return expert, rows, inside, pid % per_group // size


@triton.jit
def gathered_rows(pairs, rows, inside, TOP_K: tl.constexpr, GATED: tl.constexpr):
    """The rows of x to read: the tokens of a gated GEMM's choices, else the sorted rows themselves. What is not ``inside``
    reads an existing row, or none."""
    if GATED:
        source = tl.load(pairs + rows, mask=inside, other=0) // TOP_K
    else:
        source = tl.where(inside, rows, 0)
    return source


@triton.jit
def weight_rows(column_block, COLUMNS: tl.constexpr, BLOCK_N: tl.constexpr, GATED: tl.constexpr):
    """(matrix, row in it) of the rows of a tile's weights: BLOCK_N of gate (matrix 0) above as many of up (1), or BLOCK_N of the
    only one. Rows past the end are the last one again."""
    row = tl.arange(0, 2 * BLOCK_N if GATED else BLOCK_N)
    return row // BLOCK_N, tl.minimum(column_block * BLOCK_N + row % BLOCK_N, COLUMNS - 1)


@triton.jit
def store_sums(
    sums,
    out,
    weights,
    pairs,
    rows,
    inside,
    column_block,
    COLUMNS: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    bias=None,
    LIMIT: tl.constexpr = None,
    ALPHA: tl.constexpr = 1.0,
    WEIGHS_INPUT: tl.constexpr = False,
):
    """Of ``sums`` [rows of the tile's weights, BLOCK_M], f32: see :func:`store_hidden` and :func:`store_result`. bias: of the
    tile's expert, or None."""
    if GATED:
        # Both halves of a column lie in the same thread, where a warp group has all 64 rows of gate and of up.
        gate, up = tl.split(tl.permute(tl.reshape(sums, (2, BLOCK_N, BLOCK_M)), (1, 2, 0)))
        gate, up = tl.trans(gate), tl.trans(up)
        if WEIGHS_INPUT:  # which is the same as weights on the products with it
            pair = tl.load(pairs + rows, mask=inside, other=0)
            weight = tl.load(weights + pair, mask=inside, other=0.0)[:, None]
            gate, up = gate * weight, up * weight
        store_hidden(gate, up, out, rows, inside, column_block, bias, LIMIT, ALPHA, COLUMNS, BLOCK_N)
    else:
        store_result(tl.trans(sums), out, weights, pairs, rows, inside, column_block, bias, WEIGHS_INPUT, COLUMNS, BLOCK_N)


@triton.jit
def store_hidden(
    gate,
    up,
    hidden,
    rows,
    inside,
    column_block,
    bias,
    LIMIT: tl.constexpr,
    ALPHA: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """hidden[sorted row, n] = silu(gate) * up, biases added; with a limit gate * sigmoid(ALPHA * gate) * (up + 1), both clamped."""
    columns = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
    if bias is not None:
        gate += tl.load(bias + columns, mask=columns < COLUMNS, other=0.0).to(tl.float32)[None, :]
        up += tl.load(bias + COLUMNS + columns, mask=columns < COLUMNS, other=0.0).to(tl.float32)[None, :]
    if LIMIT is None:
        result = gate / (1.0 + tl.exp(-gate)) * up
    else:
        gate, up = tl.minimum(gate, LIMIT), tl.minimum(tl.maximum(up, -LIMIT), LIMIT)
        result = gate / (1.0 + tl.exp(-ALPHA * gate)) * (up + 1.0)
    pointers = hidden + rows.to(tl.int64)[:, None] * COLUMNS + columns[None, :]
    tl.store(pointers, result.to(hidden.dtype.element_ty), mask=inside[:, None] & (columns < COLUMNS)[None, :])


@triton.jit
def store_result(
    acc,
    results,
    weights,
    pairs,
    rows,
    inside,
    column_block,
    bias,
    WEIGHS_INPUT: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """results[pair, n] = router weight of the pair, unless it weighed the input, * (acc + bias)."""
    columns = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
    pair = tl.load(pairs + rows, mask=inside, other=0)
    if bias is not None:
        acc += tl.load(bias + columns, mask=columns < COLUMNS, other=0.0).to(tl.float32)[None, :]
    if not WEIGHS_INPUT:
        acc *= tl.load(weights + pair, mask=inside, other=0.0)[:, None]
    pointers = results + pair.to(tl.int64)[:, None] * COLUMNS + columns[None, :]
    tl.store(pointers, acc.to(results.dtype.element_ty), mask=inside[:, None] & (columns < COLUMNS)[None, :])
