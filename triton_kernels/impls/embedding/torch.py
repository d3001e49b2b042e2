"""``embedding`` by ``index_select``; a shard looks up a clamped id and zeroes the rows of others."""

from __future__ import annotations

import torch

from ...impl import Flags, impl


@impl("embedding", "torch", priority=10, flags=Flags(batch_invariant=True, cpu_graph=True))
def embedding_torch(token_ids: torch.Tensor, weight: torch.Tensor, vocab_start: int = 0) -> torch.Tensor:
    local = token_ids - vocab_start
    inside = local.clamp(0, weight.shape[0] - 1)
    return weight.index_select(0, inside).masked_fill_((inside != local)[:, None], 0)
