"""``moe_route`` by a stable sort of the few router scores (``topk`` leaves the order of ties open)."""

from __future__ import annotations

import torch

from ...impl import impl


@impl("moe_route", "torch", priority=10)
def moe_route_torch(
    logits: torch.Tensor, bias: torch.Tensor | None = None, top_k: int = 2, renormalize: bool = True, scoring: str = "softmax"
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = logits.float()
    scores = wide.softmax(-1) if scoring == "softmax" else wide.sigmoid()
    ranking = wide if bias is None else scores + bias  # without a bias the logits rank finer than their rounded scores
    ids = ranking.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = scores.gather(1, ids)
    if renormalize:
        weights /= weights.sum(-1, keepdim=True)
    return weights, ids.int()
