"""``apply_penalties``: everything that changes logits before the random choice, in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..cases.sampling import APPLY_PENALTIES_CASES
from ..op import Cost, Op


def reference(
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
    """Changes logits f32 [R, V] in place; row r belongs to the request in seat row_to_seat[r] (int32 [R]; -1: leave the row).

    Order: bitmask, bias, repetition, frequency and presence.
    bitmask        int32 [R, ceil(V/32)] or None: bit t%32 of word t//32 set = token t allowed, else its logit is -inf
    prompt_mask    int32 [S, ceil(V/32)]: tokens of the prompt
    output_counts  int32 [S, V]: how often each token was generated
    repetition     f32 [S]: logits of tokens seen in prompt or output are divided by it if positive, else multiplied
    frequency, presence  f32 [S]: subtracted times the count, and once if the count is not 0
    bias_ids       int32 [S, B], bias_values f32 [S, B]: added; id -1 marks an unused entry
    drafts         int32 [R, D] or None: tokens before a row that output_counts has not counted; -1 marks an unused entry
    """
    num_tokens = logits.shape[1]
    rows = (row_to_seat >= 0).nonzero()[:, 0]
    seats = row_to_seat[rows].long()
    values = logits[rows].double()
    if bitmask is not None:
        values = values.masked_fill(~unpack_bits(bitmask[rows], num_tokens), -torch.inf)
    ids = bias_ids[seats].long()
    values.scatter_add_(1, ids.clamp_min(0), torch.where(ids >= 0, bias_values[seats].double(), 0.0))
    counts = output_counts[seats]
    if drafts is not None:
        before = drafts[rows].long()
        counts.scatter_add_(1, before.clamp_min(0), (before >= 0).int())
    seen = unpack_bits(prompt_mask[seats], num_tokens) | (counts > 0)
    factor = repetition[seats].double()[:, None]
    values = torch.where(seen, torch.where(values > 0, values / factor, values * factor), values)
    values -= frequency[seats].double()[:, None] * counts + presence[seats].double()[:, None] * (counts > 0)
    logits[rows] = values.to(logits.dtype)


def unpack_bits(words: torch.Tensor, num_bits: int) -> torch.Tensor:
    """int32 [R, ceil(num_bits/32)] -> bool [R, num_bits], bit i of word w is element 32 w + i."""
    bits = (words[..., None] >> torch.arange(32, device=words.device, dtype=torch.int32)) & 1
    return bits.flatten(-2)[..., :num_bits].bool()


def pack_bits(flags: torch.Tensor) -> torch.Tensor:
    """bool [..., n] -> int32 [..., ceil(n/32)], the inverse of :func:`unpack_bits`."""
    padded = torch.nn.functional.pad(flags.long(), (0, -flags.shape[-1] % 32)).unflatten(-1, (-1, 32))
    return (padded << torch.arange(32, device=flags.device)).sum(-1).to(torch.int32)


def fake(logits, row_to_seat, bitmask, prompt_mask, output_counts, repetition, frequency, presence, bias_ids, bias_values, drafts):  # type: ignore[no-untyped-def]
    return None


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: vocab_size. One row per request."""
    elements = len(q_lens) * dims["vocab_size"]
    return Cost(8 * elements, elements * (4 + 4 + 4 + 2 / 8))


apply_penalties = Op(
    "apply_penalties",
    reference,
    fake,
    cost,
    cases=APPLY_PENALTIES_CASES,
    mutates=("logits",),
    row_args=("logits", "row_to_seat", "bitmask", "drafts"),
)
