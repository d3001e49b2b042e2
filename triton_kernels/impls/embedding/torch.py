"""``embedding`` by indexing; a shard looks up a clamped id and zeroes the rows of others."""

from __future__ import annotations

import torch

from ...impl import Flags, impl


@impl("embedding", "torch", priority=10, flags=Flags(batch_invariant=True, cpu_graph=True))
def embedding_torch(token_ids: torch.Tensor, weight: torch.Tensor, vocab_start: int = 0) -> torch.Tensor:
    local = token_ids - vocab_start
    if weight.dim() == 4:
        num_panels, panel = weight.shape[:2]
        inside = local.clamp(0, num_panels * panel - 1)
        rows = weight[inside // panel, inside % panel].flatten(1)
    else:
        inside = local.clamp(0, weight.shape[0] - 1)
        rows = weight.index_select(0, inside)
    return rows.masked_fill_((inside != local)[:, None], 0)
