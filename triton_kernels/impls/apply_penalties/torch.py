"""``apply_penalties`` in torch calls, one feature after the other. On a CPU each touches only the rows that use it; on a
GPU, where looking would synchronize with the host, all rows.
"""

from __future__ import annotations

import torch

from ...impl import Flags, impl


@impl("apply_penalties", "torch", priority=10, flags=Flags(batch_invariant=True))
def apply_penalties(
    logits: torch.Tensor,
    row_to_seat: torch.Tensor,
    bitmask: torch.Tensor | None,
    prompt_mask: torch.Tensor,
    output_counts: torch.Tensor,
    repetition: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
    bias_ids: torch.Tensor,
    bias_values: torch.Tensor,
    drafts: torch.Tensor | None,
) -> None:
    used = row_to_seat >= 0
    seats = row_to_seat.clamp_min(0).long()
    width = logits.shape[1]
    if bitmask is not None:
        rows = _rows(used & (bitmask != -1).any(-1))
        allowed = _bits(bitmask[rows], width) | ~used[rows, None]
        logits[rows] = logits[rows].masked_fill_(~allowed, -torch.inf)

    ids = bias_ids[seats]
    rows = _rows(used & (ids >= 0).any(-1))
    row_seats = seats[rows]
    ids, values = ids[rows].long(), bias_values[row_seats]
    values = values.masked_fill((ids < 0) | ~used[rows, None], 0.0)
    logits.index_put_((rows[:, None], ids.clamp_min(0)), values, accumulate=True)

    rows = _rows(used & (repetition[seats] != 1))
    row_seats = seats[rows]
    scores, factor = logits[rows], repetition[row_seats][:, None]
    seen = (_bits(prompt_mask[row_seats], width) | (_counts(output_counts, row_seats, drafts, rows) > 0)) & used[rows, None]
    logits[rows] = torch.where(seen, torch.where(scores > 0, scores / factor, scores * factor), scores)

    rows = _rows(used & ((frequency[seats] != 0) | (presence[seats] != 0)))
    row_seats = seats[rows]
    counts = _counts(output_counts, row_seats, drafts, rows)
    penalty = frequency[row_seats][:, None] * counts + presence[row_seats][:, None] * (counts > 0)
    logits[rows] -= penalty.masked_fill_(~used[rows, None], 0.0)


def _rows(needed: torch.Tensor) -> torch.Tensor:
    return needed.nonzero()[:, 0] if needed.device.type == "cpu" else torch.arange(len(needed), device=needed.device)


def _counts(output_counts: torch.Tensor, row_seats: torch.Tensor, drafts: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor:
    counts = output_counts[row_seats]
    if drafts is not None:
        before = drafts[rows].long()
        counts.scatter_add_(1, before.clamp_min(0), (before >= 0).int())
    return counts


def _bits(words: torch.Tensor, num_bits: int) -> torch.Tensor:
    """int32 [R, W] -> bool [R, num_bits]: bit t % 32 of word t // 32."""
    octets = words.contiguous().view(torch.uint8)
    flags = octets[..., None] & (1 << torch.arange(8, device=words.device, dtype=torch.uint8))
    return flags.flatten(-2)[..., :num_bits] != 0
