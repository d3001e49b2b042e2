"""``verify_draft`` for all rows at once: every draft is tested, and a request keeps those before its first failure. Then one
row per request, the rejected draft's or the bonus row, is drawn from. Shapes do not depend on the data, so nothing waits for
the device; on a CPU only the rows that need noise get it.
"""

from __future__ import annotations

import torch

from ...impl import impl
from ...rng import STREAM_ACCEPT, STREAM_RECOVERED, STREAM_TARGET, quad_noise, row_uniform


@impl("verify_draft", "torch", priority=10)
def verify_draft_torch(
    logits: torch.Tensor,
    draft_ids: torch.Tensor,
    draft_probs: torch.Tensor | None,
    cu_rows: torch.Tensor,
    row_to_seat: torch.Tensor,
    temperature: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    num_rows, num_reqs = logits.shape[0], row_to_seat.shape[0]
    tokens = torch.full_like(draft_ids, -1)
    if num_reqs == 0 or num_rows == 0:
        return tokens, row_to_seat.new_zeros(num_reqs)
    rows = torch.arange(num_rows, dtype=cu_rows.dtype, device=logits.device)
    owner = torch.searchsorted(cu_rows[1:], rows, right=True)  # of rows after the last request's: num_reqs
    request = owner.clamp_max(num_reqs - 1)
    seat = row_to_seat[request].clamp_min(0).long()
    greedy = temperature[seat] == 0
    best = logits.argmax(dim=-1)  # a NaN, if there is one
    scores = logits.float() / torch.where(greedy, 1.0, temperature[seat])[:, None]
    alive = scores.gather(1, best[:, None])[:, 0].isfinite() & (row_to_seat[request] >= 0) & (owner < num_reqs)

    draft = draft_ids.clamp_min(0).long()[:, None]
    p_draft = torch.softmax(scores, dim=-1).gather(1, draft)[:, 0]
    q_draft = 1.0 if draft_probs is None else draft_probs.gather(1, draft)[:, 0]
    u = row_uniform(seed[seat], position, STREAM_ACCEPT, draft[:, 0])
    passes = torch.where(greedy, best == draft[:, 0], u * q_draft < p_draft)
    fails = ~(passes & alive & (draft_ids >= 0))
    failures = torch.nn.functional.pad(fails.cumsum(0), (1, 0))  # [row]: among the rows before it
    first = cu_rows[:-1].long()
    accepts = ~fails & (failures[:-1] == failures[first[request].clamp_max(num_rows)])
    tokens = torch.where(accepts, draft_ids, tokens)
    accepted = row_to_seat.new_zeros(num_reqs + 1).index_add_(0, owner, accepts.to(row_to_seat.dtype))[:-1]

    last = (first + accepted).clamp_max(num_rows - 1)  # the row that decides what follows the accepted drafts
    decides = (first + accepted < cu_rows[1:]) & alive[last]
    compact = logits.device.type == "cpu"
    drawn = _draw(scores, draft_ids, draft_probs, last, decides & ~greedy[last], seed[seat], position, compact)
    chosen = torch.where(greedy[last], best[last], drawn).int()
    # Requests that decide nothing write into a row of their own.
    padded = torch.nn.functional.pad(tokens, (0, 1))
    padded[torch.where(decides, last, num_rows)] = torch.where(decides, chosen, 0)
    return padded[:-1].contiguous(), accepted


def _draw(
    scores: torch.Tensor,
    draft_ids: torch.Tensor,
    draft_probs: torch.Tensor | None,
    rows: torch.Tensor,
    wanted: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
    compact: bool,
) -> torch.Tensor:
    """One token int64 [R] from each of the rows [R] that is wanted: from p in a bonus row, else from what p has more than the
    draft's q. ``compact``: look at the data, and work on the rows that are wanted only."""
    out = torch.zeros_like(rows)
    for stream in (STREAM_TARGET, STREAM_RECOVERED):
        mine = wanted & ((draft_ids[rows] < 0) == (stream == STREAM_TARGET))
        picked = rows[mine] if compact else rows
        if len(picked) == 0:
            continue
        values = scores[picked]
        if stream == STREAM_RECOVERED:
            values = _residual(values, draft_ids[picked].clamp_min(0).long(), None if draft_probs is None else draft_probs[picked])
        quads = torch.arange(-(-values.shape[1] // 4), device=rows.device)
        noise = quad_noise(seed[picked][:, None], position[picked][:, None], stream, quads).flatten(1)
        drawn = (values + noise[:, : values.shape[1]]).argmax(dim=-1)
        if compact:
            out[mine] = drawn
        else:
            out = torch.where(mine, drawn, out)
    return out


def _residual(scores: torch.Tensor, draft: torch.Tensor, draft_probs: torch.Tensor | None) -> torch.Tensor:
    """Logarithms, up to a constant, of max(p - q, 0); those of p where rounding leaves nothing."""
    if draft_probs is None:
        left = scores.scatter(1, draft[:, None], -torch.inf)
    else:
        left = (torch.softmax(scores, dim=-1) - draft_probs).clamp_min(0).log()
    return torch.where((left == -torch.inf).all(dim=-1, keepdim=True), scores, left)
