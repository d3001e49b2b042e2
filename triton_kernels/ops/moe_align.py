"""``moe_align``: (token, choice) pairs in the order of their experts, and the row tiles of a grouped GEMM over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from ..cases.moe_align import CASES
from ..op import Cost, Op, Tolerance


class Groups(NamedTuple):
    """pairs int32 [T * k], starts int32 [E + 1], tile_expert int32 [num_tiles]; see :func:`reference`."""

    pairs: torch.Tensor
    starts: torch.Tensor
    tile_expert: torch.Tensor

    @property
    def num_tiles(self) -> int:
        return self.tile_expert.shape[0]


def num_row_tiles(num_pairs: int, num_experts: int, block_m: int) -> int:
    """A bound on the number of row tiles that needs only host integers: every expert may leave one tile unfilled."""
    return num_pairs // block_m + num_experts


def reference(ids: torch.Tensor, num_experts: int, expert_start: int = 0, block_m: int = 64) -> Groups:
    """ids int32 [T, k], contiguous, any value -> how the pairs t * k + choice are grouped by the experts expert_start ..
    expert_start + num_experts - 1.

    pairs [T * k]: every pair once, by expert, those of one expert in rising order; pairs of other experts come last.
    starts [E + 1]: expert e's pairs are pairs[starts[e] : starts[e + 1]].
    tile_expert [T * k // block_m + E]: whose a row tile of block_m pairs is, -1 for none. Expert e's tiles are numbered from
    starts[e] // block_m + e, so that they can be placed without knowing the other experts' counts; tile i of e has the pairs
    from starts[e] + (i - starts[e] // block_m - e) * block_m on.
    """
    local = [i - expert_start if 0 <= i - expert_start < num_experts else num_experts for i in ids.flatten().tolist()]
    pairs = sorted(range(len(local)), key=lambda pair: (local[pair], pair))
    starts = [sum(e < bound for e in local) for bound in range(num_experts + 1)]
    tile_expert = [-1] * num_row_tiles(len(local), num_experts, block_m)
    for e in range(num_experts):
        first = starts[e] // block_m + e
        for tile in range(first, first - (starts[e] - starts[e + 1]) // block_m):
            tile_expert[tile] = e
    return Groups(*(torch.tensor(values, dtype=torch.int32, device=ids.device) for values in (pairs, starts, tile_expert)))


def fake(ids, num_experts, expert_start=0, block_m=64):  # type: ignore[no-untyped-def]
    sizes = ids.numel(), num_experts + 1, num_row_tiles(ids.numel(), num_experts, block_m)
    return Groups(*(ids.new_empty(size) for size in sizes))


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: num_experts, top_k, block_m. Integers only."""
    pairs = sum(q_lens) * dims["top_k"]
    return Cost(0, 4 * (2 * pairs + 2 * dims["num_experts"] + 1 + pairs // dims.get("block_m", 64)))


moe_align = Op(
    "moe_align",
    reference,
    fake,
    cost,
    cases=CASES,
    bind_args=("num_experts", "expert_start", "block_m"),
    tolerance=Tolerance(exact=True),
)
