"""Grouped GEMMs with 4-bit weights (``packed_weights`` has the layout of the words and how they are unpacked).

A program multiplies 64 or 128 rows of one expert's packed weights - for the first GEMM 64 of gate above 64 of up - with a tile
of its tokens: the weight rows are the M side of the matrix instruction, so unpacked weights go from registers into it, and an
expert with few tokens fills a narrow tile. Sums of groups are scaled in f32 registers; shared memory holds the words and the
tokens of the next iterations. A tile's width is the same for any number of tokens. Made for weights that are read once per step.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...spec import Spec
from .._shared.launch import Launch
from .._shared.packed_weights import PART, group_layout, group_reasons, pack_words, packed_sums
from .._shared.unpack import unpacks_pairs
from ._tiles import Routing, Tile, gathered_rows, place, store_sums, weight_rows

BLOCK = 4 * PART


@triton.jit(do_not_specialize=["num_tiles"])
def packed_grouped_kernel(
    x,
    words,
    scales,
    zeros,
    out,
    weights,
    pairs,
    starts,
    tile_expert,
    num_tiles,
    stride_x,
    num_in,
    num_blocks,
    num_groups,
    blocks_per_group,
    TOP_K: tl.constexpr,
    COLUMNS: tl.constexpr,
    GATED: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    WHOLE_ROWS: tl.constexpr,
    GROUPS_PER_BLOCK: tl.constexpr,
    EVEN_K: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    expert, rows, inside, column_block = place(starts, tile_expert, num_tiles, COLUMNS, BLOCK_M, BLOCK_N)
    if expert < 0:
        return
    MATRICES: tl.constexpr = 2 if GATED else 1
    expert = expert.to(tl.int64)
    source = gathered_rows(pairs, rows, inside, TOP_K, GATED)
    matrix, row = weight_rows(column_block, COLUMNS, BLOCK_N, GATED)
    j = tl.arange(0, 32)
    tile = matrix * tl.cdiv(COLUMNS, 64) + row // 64
    word_ptrs = words + expert * MATRICES * tl.cdiv(COLUMNS, 64) * num_blocks * 2048
    word_ptrs += (tile * num_blocks * 2048 + row % 64 * 32)[:, None] + j[None, :]
    first_group = expert * num_groups * (MATRICES * COLUMNS)
    acc = packed_sums(
        x + source.to(tl.int64)[:, None] * stride_x,
        inside[:, None],
        word_ptrs,
        scales + first_group,
        zeros + first_group if HAS_ZEROS else zeros,
        matrix * COLUMNS + row,
        0,
        num_blocks,
        MATRICES * COLUMNS,
        num_in,
        num_groups,
        blocks_per_group,
        "int4",
        8.0,
        HAS_ZEROS,
        WHOLE_ROWS,
        GROUPS_PER_BLOCK,
        EVEN_K,
        PAIRS,
        INTERPRET,
        BLOCK_M,
        MATRICES * BLOCK_N,
    )
    store_sums(acc.to(tl.float32), out, weights, pairs, rows, inside, column_block, COLUMNS, GATED, BLOCK_M, BLOCK_N)


class Int4Gemm:
    """As ``FloatGemm``, of int32 words [E, R, K/8] with scales (and zeros) [E, R, K/G]."""

    def __init__(
        self, spec: Spec, weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, gated: bool, partial: bool
    ) -> None:
        self.spec, self.gated, self.partial = spec, gated, partial
        num_experts, rows, _ = weight.shape
        self.columns, self.num_in = rows // (1 + gated), 8 * weight.shape[2]
        # One matrix at a time, because unpacked quantized values take twice the memory of the words.
        packed = [_pack(matrix) for matrix in weight.reshape(num_experts * (1 + gated), self.columns, -1)]
        self.words = torch.stack(packed)
        self.scales = scales.transpose(1, 2).contiguous()
        self.zeros = None if zeros is None else zeros.transpose(1, 2).contiguous()
        self.num_blocks, self.num_groups = self.words.shape[2], scales.shape[2]
        whole_rows, groups_per_block, self.blocks_per_group = group_layout(self.num_in, self.num_groups, BLOCK)
        self.kernel = Launch(
            packed_grouped_kernel,
            HAS_ZEROS=zeros is not None,
            WHOLE_ROWS=whole_rows,
            GROUPS_PER_BLOCK=groups_per_block,
            EVEN_K=self.num_in % BLOCK == 0,
            PAIRS=unpacks_pairs(spec),
        )

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        sizes = (("hidden_size", "group_size"), ("intermediate_size", "inner_group_size"))
        reasons = [reason for k, group in sizes for reason in group_reasons(spec.fact(k), spec.fact(group), BLOCK)]
        return list(dict.fromkeys(reasons))

    def __call__(self, x: torch.Tensor, routing: Routing, tile: Tile) -> torch.Tensor:
        out = x.new_empty(routing.num_pairs, self.columns, dtype=torch.float32 if self.partial else x.dtype)
        self.kernel(
            tile.grid(routing.groups, self.columns, self.gated),
            x,
            self.words,
            self.scales,
            self.zeros,
            out,
            routing.weights,
            *routing.groups,
            routing.groups.num_tiles,
            x.stride(0),
            self.num_in,
            self.num_blocks,
            self.num_groups,
            self.blocks_per_group,
            TOP_K=routing.top_k,
            COLUMNS=self.columns,
            **tile.constants(self.gated, self.spec.interpret),
        )
        return out


def _pack(words: torch.Tensor) -> torch.Tensor:
    """int32 [R, K/8] -> the words of one matrix, int16 [ceil(R/64), ceil(K/128), 64, 32]."""
    packed = words.contiguous().view(torch.uint8)  # two quantized values per byte, the first in the low half
    return pack_words(torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1), 4)
