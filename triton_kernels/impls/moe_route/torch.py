"""``moe_route`` by a stable sort of the few router scores (``topk`` leaves the order of ties open)."""

from __future__ import annotations

import torch

from ...impl import impl
from ...ops.moe import NO_WEIGHT


@impl("moe_route", "torch", priority=10)
def moe_route_torch(
    logits: torch.Tensor,
    bias: torch.Tensor | None = None,
    top_k: int = 2,
    renormalize: bool = True,
    scoring: str = "softmax",
    num_groups: int = 1,
    top_groups: int = 1,
    group_score: str = "max",
    scaling: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = logits.float()
    scores = wide.softmax(-1) if scoring == "softmax" else wide.sigmoid()
    ranking = wide if bias is None else scores + bias  # without a bias the logits rank finer than their rounded scores
    if num_groups > 1:
        worth = ranking if group_score == "max" or bias is not None else scores
        best = worth.unflatten(1, (num_groups, -1)).topk(1 if group_score == "max" else 2).values.sum(-1)
        chosen = best.sort(dim=-1, descending=True, stable=True).indices[:, :top_groups]
        hidden = torch.ones_like(best, dtype=torch.bool).scatter_(1, chosen, False)
        ranking = ranking.masked_fill(hidden.repeat_interleave(ranking.shape[1] // num_groups, 1), -torch.inf)
    ids = ranking.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = scores.gather(1, ids)
    if renormalize:
        weights /= weights.sum(-1, keepdim=True) + NO_WEIGHT
    return weights if scaling == 1 else weights.mul_(scaling), ids.int()
