"""``apply_penalties`` in torch calls, one feature after the other. On a CPU each touches only the rows that use it; on a
GPU, where looking would synchronize with the host, all rows.
"""

from __future__ import annotations

import functools

import torch

from ...impl import Flags, impl

_NEGATIVE_INFINITY = -0x800000
"""As the bits of a float32."""


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
) -> None:
    used = row_to_seat >= 0
    seats = row_to_seat.clamp_min(0).long()
    width = logits.shape[1]
    if bitmask is not None:
        rows = _rows(used & (bitmask != -1).any(-1))
        keep = _spread(bitmask[rows], width) | (used[rows, None].int() - 1)
        chosen = logits[rows].view(torch.int32) & keep  # several times as quick on a CPU as to choose by flags
        logits[rows] = (chosen | (~keep & _NEGATIVE_INFINITY)).view(torch.float32)

    ids = bias_ids[seats]
    rows = _rows(used & (ids >= 0).any(-1))
    if len(rows):
        ids, values = ids[rows].long(), bias_values[seats[rows]]
        values = values.masked_fill((ids < 0) | ~used[rows, None], 0.0)
        logits.index_put_((rows[:, None], ids.clamp_min(0)), values, accumulate=True)

    rows = _rows(used & (repetition[seats] != 1))
    if len(rows):
        row_seats = seats[rows]
        scores, factor = logits[rows], repetition[row_seats][:, None]
        seen = (_bits(prompt_mask[row_seats], width) | (output_counts[row_seats] > 0)) & used[rows, None]
        logits[rows] = torch.where(seen, torch.where(scores > 0, scores / factor, scores * factor), scores)

    rows = _rows(used & ((frequency[seats] != 0) | (presence[seats] != 0)))
    if len(rows):
        row_seats = seats[rows]
        counts = output_counts[row_seats]
        penalty = frequency[row_seats][:, None] * counts + presence[row_seats][:, None] * (counts > 0)
        logits[rows] -= penalty.masked_fill_(~used[rows, None], 0.0)


def _rows(needed: torch.Tensor) -> torch.Tensor:
    return needed.nonzero()[:, 0] if needed.device.type == "cpu" else torch.arange(len(needed), device=needed.device)


def _bits(words: torch.Tensor, num_bits: int) -> torch.Tensor:
    """int32 [R, W] -> bool [R, num_bits]: bit t % 32 of word t // 32."""
    return _spread(words, num_bits) != 0


def _spread(words: torch.Tensor, num_bits: int) -> torch.Tensor:
    """int32 [R, W] -> int32 [R, num_bits]: all bits of number t are as bit t % 32 of word t // 32; eight numbers per look-up."""
    octets = words.contiguous().view(torch.uint8)
    return torch.embedding(_spread_octets(words.device), octets.int()).flatten(-2)[..., :num_bits]


@functools.cache
def _spread_octets(device: torch.device) -> torch.Tensor:
    """int32 [256, 8]: the bits of each number, the lowest first, as -1 and 0."""
    return -(torch.arange(256, dtype=torch.int32, device=device)[:, None] >> torch.arange(8, device=device) & 1).int()
