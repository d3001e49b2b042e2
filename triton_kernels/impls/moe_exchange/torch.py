"""``moe_exchange`` as all-gathers and a sum in the order of ``reduce_scatter:ordered``."""

from __future__ import annotations

import torch

from ...group import Group
from ...impl import Flags, impl
from ...ops.moe_exchange import Experts
from .._shared.rank_sums import tree_sum


@impl("moe_exchange", "torch", priority=5, flags=Flags(cuda_graph=False, batch_invariant=True, rank_invariant=True))
def moe_exchange_torch(
    x: torch.Tensor,
    weights: torch.Tensor,
    ids: torch.Tensor,
    experts: Experts,
    group: Group,
    num_slots: int,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    out = experts(*(torch.cat(group.all_gather(rows)) for rows in (x, weights, ids)))
    return tree_sum(part.chunk(group.size)[group.rank] for part in group.all_gather(out)).to(out_dtype or out.dtype)
