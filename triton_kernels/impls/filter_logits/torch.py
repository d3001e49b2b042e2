"""``filter_logits`` in torch calls: rows are sorted, some at a time, without a look at the data."""

from __future__ import annotations

import torch

from ...impl import Flags, impl
from ..sample.torch import num_kept

_CHUNK_SCORES = 1 << 22
"""Scores that are worked on at once, to bound memory."""


@impl("filter_logits", "torch", priority=10, flags=Flags(batch_invariant=True))
def filter_logits(
    logits: torch.Tensor,
    row_to_seat: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
) -> torch.Tensor:
    out = logits.new_empty(logits.shape)
    num_rows = max(1, _CHUNK_SCORES // logits.shape[1])
    for start in range(0, len(logits), num_rows):
        part, row_seats = logits[start : start + num_rows], row_to_seat[start : start + num_rows]
        seats = row_seats.clamp_min(0).long()
        heat = temperature[seats]
        scores = part.float() / torch.where(heat == 0, 1.0, heat)[:, None]
        ranked, order = torch.sort(scores, dim=-1, descending=True, stable=True)
        count = num_kept(ranked, None, top_k[seats], top_p[seats], min_p[seats])
        kept = torch.arange(part.shape[1], device=part.device) < count[:, None]
        # A NaN sorts first, so that the first of a row tells whether it is usable.
        kept |= ((row_seats < 0) | (heat == 0) | ~ranked[:, 0].isfinite())[:, None]
        out[start : start + num_rows] = torch.where(torch.empty_like(kept).scatter_(1, order, kept), part, -torch.inf)
    return out
