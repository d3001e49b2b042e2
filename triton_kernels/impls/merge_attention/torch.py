"""``merge_attention`` as a sigmoid: with two parts, the share of the first is sigmoid(lse_a - lse_b)."""

from __future__ import annotations

import torch

from ...impl import impl


@impl("merge_attention", "torch", priority=10)
def merge_attention_torch(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    gap = lse_a - lse_b  # NaN where both are empty
    empty_a, empty_b = (torch.isneginf(lse)[..., None] for lse in (lse_a, lse_b))
    a = torch.where(empty_a, 0.0, out_a.float() * torch.sigmoid(gap)[..., None])
    b = torch.where(empty_b, 0.0, out_b.float() * torch.sigmoid(-gap)[..., None])
    return (a + b).to(out_a.dtype), torch.logaddexp(lse_a, lse_b)
