"""``moe_experts`` as one product per expert that has tokens, over the tokens sorted by expert.

On a GPU the sizes of the groups have to reach the host, so this impl is not fit for graphs.
"""

from __future__ import annotations

import torch

from ...impl import Flags, impl


@impl("moe_experts", "torch", priority=10, flags=Flags(cuda_graph=False))
def moe_experts_torch(
    x: torch.Tensor,
    weights: torch.Tensor,
    ids: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    expert_start: int = 0,
) -> torch.Tensor:
    num_experts, top_k = w13.shape[0], ids.shape[1]
    local = ids.flatten().long() - expert_start
    local = torch.where((local >= 0) & (local < num_experts), local, num_experts)
    order = local.argsort(stable=True)
    counts = torch.bincount(local, minlength=num_experts + 1).tolist()
    rows = x.index_select(0, order // top_k)
    results = torch.empty(rows.shape, dtype=torch.float32, device=x.device)
    start = 0
    for expert, count in enumerate(counts[:num_experts]):
        if count:
            part = slice(start, start + count)
            gate, up = torch.nn.functional.linear(rows[part], w13[expert]).chunk(2, dim=-1)
            results[part] = torch.nn.functional.linear(torch.nn.functional.silu(gate).mul_(up), w2[expert])
            start += count
    results[start:] = 0  # choices whose experts are elsewhere
    unsorted = torch.empty_like(results).index_copy_(0, order, results).unflatten(0, (x.shape[0], top_k))
    return (unsorted * weights[:, :, None]).sum(1).to(x.dtype)
