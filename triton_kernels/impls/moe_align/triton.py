"""Groups pairs by expert without host reads and without atomics, so that the order is the same every time. One program per
expert, and one for the pairs of experts held elsewhere: it counts the ids below its own, which is where its pairs start, then
goes through the ids again and writes its pairs at the running count. Blocks of ids and their prefix sums live in registers;
the ids, a few hundred kilobytes at most, are read by every program and come from L2. The work grows with experts x pairs,
which one launch of short programs pays for by having no second phase that waits for the first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...impl import impl
from ...lora_meta import LoraMeta
from ...ops.moe_align import Groups, num_row_tiles
from .._shared.launch import Launch


@triton.jit
def _local_ids(ids, index, num_pairs, expert_start, NUM_EXPERTS: tl.constexpr):
    """Local expert of each pair; NUM_EXPERTS for experts held elsewhere, one more past the last pair."""
    local = tl.load(ids + index, mask=index < num_pairs, other=0) - expert_start
    local = tl.where((local >= 0) & (local < NUM_EXPERTS), local, NUM_EXPERTS)
    return tl.where(index < num_pairs, local, NUM_EXPERTS + 1)


@triton.jit(do_not_specialize=["num_pairs", "num_tiles"])
def _group_kernel(
    ids,
    pairs,
    starts,
    tile_expert,
    num_pairs,
    num_tiles,
    expert_start,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Program e writes the pairs and tiles of expert e; the last one, e = NUM_EXPERTS, the pairs and tiles left over."""
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
    if count > 0:
        position = start
        for base in range(0, num_pairs, BLOCK_P):
            index = base + tl.arange(0, BLOCK_P)
            mine = (_local_ids(ids, index, num_pairs, expert_start, NUM_EXPERTS) == expert).to(tl.int32)
            tl.store(pairs + position + tl.cumsum(mine, 0) - 1, index, mask=mine == 1)
            position += tl.sum(mine, 0)


@triton.jit
def tile_rows(starts, tile_expert, tile, BLOCK_M: tl.constexpr):
    """For kernels that follow: a row tile's expert (-1: none), its rows in sorted order, and which of them are real."""
    expert = tl.load(tile_expert + tile)
    start = tl.load(starts + tl.maximum(expert, 0))
    end = tl.load(starts + tl.maximum(expert, 0) + 1)
    rows = start + (tile - start // BLOCK_M - expert) * BLOCK_M + tl.arange(0, BLOCK_M)
    return expert, rows, rows < end


_LAUNCH = Launch(_group_kernel, BLOCK_T=64, num_warps=4, enable_fp_fusion=True)


def group_by_expert(ids: torch.Tensor, num_experts: int, expert_start: int = 0, block_m: int = 64, block_p: int = 1024) -> Groups:
    """``moe_align`` as a plain function, for the impls of grouped GEMMs."""
    assert ids.is_contiguous(), "ids must be contiguous"
    num_pairs = ids.numel()
    num_tiles = num_row_tiles(num_pairs, num_experts, block_m)
    groups = Groups(*(ids.new_empty(size, dtype=torch.int32) for size in (num_pairs, num_experts + 1, num_tiles)))
    _LAUNCH(
        (num_experts + 1,),
        ids,
        *groups,
        num_pairs,
        num_tiles,
        expert_start,
        NUM_EXPERTS=num_experts,
        BLOCK_M=block_m,
        BLOCK_P=block_p,
    )
    return groups


def group_by_adapter(meta: LoraMeta, num_adapters: int, block_m: int) -> Groups:
    """The same of rows by their adapters, for all layers of a step: made by the first who asks."""
    key = "groups", num_adapters, block_m
    if key not in meta.workspace:
        meta.workspace[key] = group_by_expert(meta.index[:, None], num_adapters, 0, block_m)
    return meta.workspace[key]


moe_align_triton = impl("moe_align", "triton", priority=20, requires=("triton",), options={"block_p": 1024})(group_by_expert)
