"""Pairs (token, choice) grouped by expert, on the device: no host reads, no atomics, the same order every time.

Expert e's pairs are ``pairs[starts[e]:starts[e + 1]]``, in the order of the tokens. Row tiles of BLOCK_M pairs of one expert are
numbered from starts[e] // BLOCK_M + e, which leaves room for every expert's tiles whatever the counts, so that their number has
a bound that needs only host integers; ``tile_expert`` says whose a tile is, -1 for none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True)
class Groups:
    """pairs int32 [T * k], starts int32 [E + 1], tile_expert int32 [num_tiles]."""

    pairs: torch.Tensor
    starts: torch.Tensor
    tile_expert: torch.Tensor

    @property
    def num_tiles(self) -> int:
        return self.tile_expert.shape[0]


@triton.jit
def _local_ids(ids, index, num_pairs, expert_start, NUM_EXPERTS: tl.constexpr):
    """Local expert of each pair; NUM_EXPERTS for experts held elsewhere, one more past the last pair."""
    local = tl.load(ids + index, mask=index < num_pairs, other=0) - expert_start
    local = tl.where((local >= 0) & (local < NUM_EXPERTS), local, NUM_EXPERTS)
    return tl.where(index < num_pairs, local, NUM_EXPERTS + 1)


@triton.jit(do_not_specialize=["num_pairs", "num_tiles"])
def _group_kernel(
    ids, pairs, starts, tile_expert, num_pairs, num_tiles, expert_start,
    NUM_EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Program e writes the pairs and tiles of expert e; the last one, e = NUM_EXPERTS, the tiles that are left over."""
    expert = tl.program_id(0)
    start = 0
    count = 0
    for base in range(0, num_pairs, BLOCK_P):
        local = _local_ids(ids, base + tl.arange(0, BLOCK_P), num_pairs, expert_start, NUM_EXPERTS)
        start += tl.sum((local < expert).to(tl.int32), 0)
        count += tl.sum((local == expert).to(tl.int32), 0)
    tl.store(starts + expert, start)
    first_tile = start // BLOCK_M + expert
    end_tile = (start + count) // BLOCK_M + expert + 1
    used = tl.cdiv(count, BLOCK_M)
    if expert == NUM_EXPERTS:
        end_tile = num_tiles
        used = 0
    for base in range(first_tile, end_tile, BLOCK_T):
        tiles = base + tl.arange(0, BLOCK_T)
        tl.store(tile_expert + tiles, tl.where(tiles < first_tile + used, expert, -1), mask=tiles < end_tile)
    if used > 0:
        position = start
        for base in range(0, num_pairs, BLOCK_P):
            index = base + tl.arange(0, BLOCK_P)
            mine = (_local_ids(ids, index, num_pairs, expert_start, NUM_EXPERTS) == expert).to(tl.int32)
            tl.store(pairs + position + tl.cumsum(mine, 0) - 1, index, mask=mine == 1)
            position += tl.sum(mine, 0)


def group_by_expert(ids: torch.Tensor, num_experts: int, expert_start: int, block_m: int, block_p: int = 1024) -> Groups:
    """Groups the choices ids int32 [T, k] by the experts expert_start .. expert_start + num_experts - 1."""
    num_pairs = ids.numel()
    num_tiles = num_pairs // block_m + num_experts
    pairs, starts, tile_expert = (
        torch.empty(size, dtype=torch.int32, device=ids.device) for size in (num_pairs, num_experts + 1, num_tiles)
    )
    _group_kernel[(num_experts + 1,)](
        ids, pairs, starts, tile_expert, num_pairs, num_tiles, expert_start,
        NUM_EXPERTS=num_experts, BLOCK_M=block_m, BLOCK_P=block_p, BLOCK_T=64, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return Groups(pairs, starts, tile_expert)
