"""Kernels over the memory of several ranks: addresses, a barrier between programs of the same number, a sum in a fixed order.

Symmetric memory begins with signals, int32 [MAX_PROGRAMS, ranks], and then holds data. Program p of every rank meets program p of
the others: it adds 1 to its signal with each of them (release) and waits until all of its own have come as far (acquire). Signals
only grow, so that nothing is reset between launches. All programs of a launch must be on the device at once.

In the interpreter, where ranks are threads and kernels run one at a time, every phase between two barriers is a launch and the
group's barrier stands between them; on a device all phases are one launch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl

from ...group import Group
from ...spec import Spec
from .rank_sums import backend_reasons

MAX_RANKS, MAX_PROGRAMS = 8, 64
ALL, COPY, REDUCE, COLLECT = tl.constexpr(7), tl.constexpr(1), tl.constexpr(2), tl.constexpr(4)
"""PHASE of a launch: what it does."""
SIGNAL_BYTES = tl.constexpr(MAX_RANKS * MAX_PROGRAMS * 4)


@triton.jit
def rank_data(addresses_ptr, rank, like_ptr):
    """Where the data of a rank begin, as a pointer of the type of ``like_ptr``."""
    begin = tl.multiple_of(tl.load(addresses_ptr + rank).to(like_ptr.dtype), 16)
    return begin + SIGNAL_BYTES // (like_ptr.dtype.element_ty.primitive_bitwidth // 8)


@triton.jit
def _pair(addresses_ptr, like_ptr, offsets, inside, FIRST: tl.constexpr, RANKS: tl.constexpr):
    total = tl.load(rank_data(addresses_ptr, FIRST, like_ptr) + offsets, mask=inside, other=0.0).to(tl.float32)
    if FIRST + 1 < RANKS:
        total += tl.load(rank_data(addresses_ptr, FIRST + 1, like_ptr) + offsets, mask=inside, other=0.0).to(tl.float32)
    return total


@triton.jit
def _four(addresses_ptr, like_ptr, offsets, inside, FIRST: tl.constexpr, RANKS: tl.constexpr):
    total = _pair(addresses_ptr, like_ptr, offsets, inside, FIRST, RANKS)
    if FIRST + 2 < RANKS:
        total += _pair(addresses_ptr, like_ptr, offsets, inside, FIRST + 2, RANKS)
    return total


@triton.jit
def rank_sum(addresses_ptr, like_ptr, offsets, inside, RANKS: tl.constexpr):
    """The data of up to eight ranks at ``offsets``, added in f32 as ``rank_sums.tree_sum`` does."""
    total = _four(addresses_ptr, like_ptr, offsets, inside, 0, RANKS)
    if RANKS > 4:
        total += _four(addresses_ptr, like_ptr, offsets, inside, 4, RANKS)
    return total


@triton.jit
def rank_barrier(addresses_ptr, rank, RANKS: tl.constexpr, MAX_RANKS: tl.constexpr):
    """Returns once program p of every rank is here, and what they wrote before can be read."""
    peers = tl.arange(0, MAX_RANKS)
    exists = peers < RANKS
    first = tl.program_id(0) * MAX_RANKS
    mine = tl.load(addresses_ptr + rank).to(tl.pointer_type(tl.int32)) + first
    turn = tl.atomic_add(mine + rank, 0, sem="acquire", scope="sys") + 1  # its own signal: at how many barriers it was
    tl.debug_barrier()  # all threads have written, and none signals before that was read
    theirs = tl.load(addresses_ptr + peers, mask=exists, other=0).to(tl.pointer_type(tl.int32)) + first + rank
    tl.atomic_add(theirs, 1, mask=exists, sem="release", scope="sys")
    missing = 1
    while missing > 0:
        seen = tl.atomic_add(mine + peers, 0, mask=exists, sem="acquire", scope="sys")
        missing = tl.sum(tl.where(exists & (seen - turn < 0), 1, 0), axis=0)
    tl.debug_barrier()


def rank_reasons(spec: Spec) -> list[str]:
    """What speaks against such kernels on a group."""
    reasons = backend_reasons(spec, "nccl", "solo", *(("threads",) if spec.interpret else ()))
    if spec.fact("ranks", 1) > MAX_RANKS:
        reasons.append(f"adds up to {MAX_RANKS} ranks, not {spec.fact('ranks')}")
    return reasons


class RankMemory:
    """The symmetric memory of a group, for one layer."""

    def __init__(self, group: Group, interpret: bool) -> None:
        self.group, self.interpret = group, interpret

    def addresses(self, num_bytes: int, device: torch.device) -> torch.Tensor:
        """int64 [ranks]: of memory for as many bytes of data."""
        return self.group.symmetric(SIGNAL_BYTES.value + num_bytes, device).addresses

    def run(self, launch: Callable[[int], None], phases: Sequence[tl.constexpr]) -> None:
        """``launch(PHASE)`` for the whole, or in the interpreter for each phase in turn."""
        if not self.interpret:
            launch(ALL.value)
            return
        for phase in phases:
            with self.group.alone():
                launch(phase.value)
            self.group.barrier()
