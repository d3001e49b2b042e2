"""``moe_align`` by a stable sort. Shapes depend on host integers only, so nothing waits for the device."""

from __future__ import annotations

import torch

from ...impl import impl
from ...ops.moe_align import Groups, num_row_tiles


@impl("moe_align", "torch", priority=10)
def moe_align_torch(ids: torch.Tensor, num_experts: int, expert_start: int = 0, block_m: int = 64) -> Groups:
    local = ids.flatten() - expert_start
    local = torch.where((local >= 0) & (local < num_experts), local, num_experts)
    ranked, pairs = torch.sort(local, stable=True)
    experts = torch.arange(num_experts + 1, dtype=ranked.dtype, device=ids.device)
    starts = torch.searchsorted(ranked, experts, out_int32=True)
    first = torch.div(starts, block_m, rounding_mode="floor") + experts
    end = first[:-1] + torch.div(starts.diff() + block_m - 1, block_m, rounding_mode="floor")
    tiles = torch.arange(num_row_tiles(len(local), num_experts, block_m), dtype=torch.int32, device=ids.device)
    owner = torch.searchsorted(first[:-1].contiguous(), tiles, right=True, out_int32=True) - 1
    owned = (owner >= 0) & (tiles < end[owner.clamp_min(0).long()])
    return Groups(pairs.int(), starts, torch.where(owned, owner, -1))
