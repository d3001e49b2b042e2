"""``slot_mapping`` by one binary search of all tokens among the ends of the requests, and one gather from the table."""

from __future__ import annotations

import torch

from ...impl import Flags, impl


@impl("slot_mapping", "torch", priority=10, flags=Flags(cpu_graph=True))
def slot_mapping_torch(
    positions: torch.Tensor, cu_q: torch.Tensor, seq_lens: torch.Tensor, block_table: torch.Tensor, page_size: int
) -> torch.Tensor:
    num_reqs = seq_lens.shape[0]
    if num_reqs == 0:
        return torch.full_like(positions, -1)
    token = torch.arange(positions.shape[0], dtype=torch.int32, device=positions.device)
    request = torch.searchsorted(cu_q[1:], token, right=True)
    owner = request.clamp_max(num_reqs - 1)
    owned = (request < num_reqs) & (seq_lens[owner] > 0)
    page = block_table[owner, torch.where(owned, positions // page_size, 0)].long()
    return torch.where(owned, page * page_size + positions % page_size, -1)
