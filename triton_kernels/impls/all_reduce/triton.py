"""``all_reduce`` over symmetric memory (NVLink, or any link that maps a GPU's memory into another's).

Both algorithms begin with a copy of x into the rank's own symmetric memory. One-shot: after a barrier each rank reads all of
every rank's and adds it up: one round, n times the bytes. Two-shot: each rank adds up every n-th tile only, rounds it and leaves it
in its memory; after a second barrier all collect the tiles from their owners: two rounds, about twice the bytes. A last barrier
keeps what is read from being overwritten by the next call. Both add in the same order, so the size of the message, which says which
one runs, does not change bits. Few programs, each with many tiles in a loop: they wait for those of the other ranks, so all must be
on the device at once. Registers hold one tile of f32 sums. Made for the small messages of decode steps, whose time is latency.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from ...group import Group
from ...impl import NEVER_RAN_ACROSS_DEVICES, Flags, impl
from ...spec import Spec
from .._shared.launch import Launch, cdiv
from .._shared.rank_memory import (
    ALL,
    COLLECT,
    COPY,
    MAX_PROGRAMS,
    MAX_RANKS,
    REDUCE,
    RankMemory,
    rank_barrier,
    rank_data,
    rank_reasons,
    rank_sum,
)


@triton.jit
def _add_bias(total, bias_ptr, offsets, inside, num_columns, HAS_BIAS: tl.constexpr):
    if HAS_BIAS:
        total += tl.load(bias_ptr + offsets % num_columns, mask=inside, other=0.0).to(tl.float32)
    return total


@triton.jit(do_not_specialize=["num_rows", "rank"])
def one_shot_kernel(
    x_ptr,
    out_ptr,
    addresses_ptr,
    num_rows,
    num_columns,
    bias_ptr,
    rank,
    RANKS: tl.constexpr,
    MAX_RANKS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
    PHASE: tl.constexpr,
):
    num_elements = num_rows * num_columns
    num_tiles, lane = tl.cdiv(num_elements, BLOCK), tl.arange(0, BLOCK)
    if COPY & PHASE:
        own = rank_data(addresses_ptr, rank, x_ptr)
        for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
            at = tile * BLOCK + lane
            tl.store(own + at, tl.load(x_ptr + at, mask=at < num_elements), mask=at < num_elements)
    if PHASE == ALL:
        rank_barrier(addresses_ptr, rank, RANKS, MAX_RANKS)
    if REDUCE & PHASE:
        for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
            at = tile * BLOCK + lane
            inside = at < num_elements
            total = rank_sum(addresses_ptr, x_ptr, at, inside, RANKS)
            total = _add_bias(total, bias_ptr, at, inside, num_columns, HAS_BIAS)
            tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=inside)
    if PHASE == ALL:
        rank_barrier(addresses_ptr, rank, RANKS, MAX_RANKS)


@triton.jit(do_not_specialize=["num_rows", "rank"])
def two_shot_kernel(
    x_ptr,
    out_ptr,
    addresses_ptr,
    num_rows,
    num_columns,
    bias_ptr,
    rank,
    RANKS: tl.constexpr,
    MAX_RANKS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
    PHASE: tl.constexpr,
):
    """Tiles in turns of RANKS, of which rank r adds up tile r. The result takes the tile's own place, with the output's type, which
    is no wider: nobody but the owner reads that tile before it is finished."""
    num_elements = num_rows * num_columns
    num_turns, lane = tl.cdiv(num_elements, RANKS * BLOCK), tl.arange(0, BLOCK)
    own = rank_data(addresses_ptr, rank, x_ptr)
    if COPY & PHASE:
        for turn in range(tl.program_id(0), num_turns, tl.num_programs(0)):
            for owner in tl.static_range(RANKS):
                at = (turn * RANKS + owner) * BLOCK + lane
                tl.store(own + at, tl.load(x_ptr + at, mask=at < num_elements), mask=at < num_elements)
    if PHASE == ALL:
        rank_barrier(addresses_ptr, rank, RANKS, MAX_RANKS)
    if REDUCE & PHASE:
        for turn in range(tl.program_id(0), num_turns, tl.num_programs(0)):
            first = (turn * RANKS + rank) * BLOCK
            inside = first + lane < num_elements
            total = rank_sum(addresses_ptr, x_ptr, first + lane, inside, RANKS)
            total = _add_bias(total, bias_ptr, first + lane, inside, num_columns, HAS_BIAS)
            tl.store((own + first).to(out_ptr.dtype) + lane, total.to(out_ptr.dtype.element_ty), mask=inside)
    if PHASE == ALL:
        rank_barrier(addresses_ptr, rank, RANKS, MAX_RANKS)
    if COLLECT & PHASE:
        for turn in range(tl.program_id(0), num_turns, tl.num_programs(0)):
            for owner in tl.static_range(RANKS):
                first = (turn * RANKS + owner) * BLOCK
                inside = first + lane < num_elements
                finished = (rank_data(addresses_ptr, owner, x_ptr) + first).to(out_ptr.dtype)
                tl.store(out_ptr + first + lane, tl.load(finished + lane, mask=inside), mask=inside)
    if PHASE == ALL:
        rank_barrier(addresses_ptr, rank, RANKS, MAX_RANKS)


@impl(
    "all_reduce",
    "triton",
    priority=25,  # below NCCL until measured against it
    requires=("triton",),
    flags=Flags(batch_invariant=True, rank_invariant=True),
    options={"one_shot_kib": 512, "programs": 32, "block": 2048},
    unproven=NEVER_RAN_ACROSS_DEVICES,
)
class TritonAllReduce:
    """``one_shot_kib``: up to which size of x one-shot runs; ``programs``: at most so many; ``block``: elements of a tile."""

    def __init__(
        self,
        spec: Spec,
        weights: Mapping[str, torch.Tensor],
        params: Mapping[str, Any],
        one_shot_kib: int,
        programs: int,
        block: int,
    ) -> None:
        if not 0 < programs <= MAX_PROGRAMS:
            raise ValueError(f"all_reduce=triton@programs:{programs} cannot work: there are signals for 1 to {MAX_PROGRAMS}")
        group: Group = params["group"]
        bias, self.out_dtype = weights.get("bias"), params.get("out_dtype")
        self.ranks, self.memory = group.size, RankMemory(group, spec.interpret)
        self.one_shot_bytes, self.programs, self.block = one_shot_kib << 10, programs, block
        self.one_shot, self.two_shot = (
            Launch(
                kernel,
                bias_ptr=bias,
                rank=group.rank,
                RANKS=group.size,
                MAX_RANKS=MAX_RANKS,
                HAS_BIAS=bias is not None,
                BLOCK=block,
                num_warps=8,
                enable_fp_fusion=False,
            )
            for kernel in (one_shot_kernel, two_shot_kernel)
        )

    unsupported = staticmethod(rank_reasons)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = (x.float() if x.dtype == torch.float64 else x).contiguous()
        out = torch.empty(x.shape, dtype=self.out_dtype or x.dtype, device=x.device)
        if x.numel() == 0:
            return out
        addresses = self.memory.addresses(x.nbytes, x.device)
        is_small = x.nbytes <= self.one_shot_bytes or out.itemsize > x.itemsize
        kernel, tiles_of_turn = (self.one_shot, 1) if is_small else (self.two_shot, self.ranks)
        grid = (min(self.programs, cdiv(x.numel(), tiles_of_turn * self.block)),)
        phases = (COPY, REDUCE) if is_small else (COPY, REDUCE, COLLECT)
        self.memory.run(lambda phase: kernel(grid, x, out, addresses, *x.shape, PHASE=phase), phases)
        return out
