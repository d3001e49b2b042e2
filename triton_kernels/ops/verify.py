"""``verify_draft``: how many drafted tokens the target model accepts, and which token follows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..cases.verify import CASES
from ..op import Cost, Op
from ..rng import STREAM_ACCEPT, STREAM_RECOVERED, STREAM_TARGET, gumbel_noise, token_uniform


def reference(
    logits: torch.Tensor,
    draft_ids: torch.Tensor,
    draft_probs: torch.Tensor | None,
    cu_rows: torch.Tensor,
    row_to_seat: torch.Tensor,
    temperature: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Verifies the drafts of R requests -> token ids int32 [rows], number of accepted drafts int32 [R].

    logits float [rows, V]: request r has the rows cu_rows[r]:cu_rows[r+1] (int32 [R+1]), one per draft and a last one, the
    bonus; they are final scores before the temperature: penalties applied, filtered tokens at -inf.
    draft_ids int32 [rows]: the draft that row i is to verify, -1 in the bonus row. draft_probs f32 [rows, V]: the
    distribution that each draft was sampled from; None: drafts are certain (n-gram, greedy).
    Per seat (row_to_seat int32 [R], -1: a request that gets no tokens): temperature f32 (0 = greedy), seed int64.
    position int64 [rows]: absolute index of the token that the row decides.

    Greedy: a draft is accepted if it is the argmax. Else with p the target's and q the draft's distribution a draft x is
    accepted if u * q(x) < p(x), u uniform of stream 2 at token x; the first rejected one is replaced by the Gumbel-argmax
    (stream 3) of log max(p - q, 0), the bonus row samples p with stream 0. Accepted tokens and the one that follows stand
    first in the request's rows, -1 in the rest. A draft of -1 before the last row ends a request like the bonus row. A row
    whose largest score is not finite (it holds NaN or +inf, or nothing but -inf) ends its request's tokens there.
    Source: Leviathan et al., arXiv 2211.17192.
    """
    tokens = torch.full_like(draft_ids, -1)
    accepted = torch.zeros(cu_rows.shape[0] - 1, dtype=torch.int32, device=logits.device)
    everything = torch.arange(logits.shape[1], device=logits.device)
    bounds = cu_rows.tolist()
    for r, seat in enumerate(row_to_seat.tolist()):
        for row in range(bounds[r], bounds[r + 1] if seat >= 0 else bounds[r]):
            greedy = float(temperature[seat]) == 0.0
            scores = logits[row].float() if greedy else logits[row].float() / temperature[seat]
            if not bool(scores.max().isfinite()):
                break
            draft = int(draft_ids[row])
            if greedy:
                best = int(torch.sort(scores, descending=True, stable=True).indices[0])
                tokens[row] = best
                if best != draft:
                    break
                accepted[r] += 1
                continue
            where = (seed[seat].view(1), position[row].view(1))
            if draft < 0:
                tokens[row] = int(torch.argmax(scores + gumbel_noise(*where, STREAM_TARGET, everything)[0]))
                break
            p = torch.softmax(scores.double(), dim=0)
            q = (everything == draft).double() if draft_probs is None else draft_probs[row].double()
            u = token_uniform(*where, STREAM_ACCEPT, everything[draft : draft + 1])[0, 0]
            if float(u.double() * q[draft]) < float(p[draft]):
                tokens[row] = draft
                accepted[r] += 1
                continue
            rest = torch.log((p - q).clamp_min(0)).float()
            # Where rounding leaves nothing of p - q, the two distributions are equal and p itself is the right one.
            rest = scores if bool((rest == -torch.inf).all()) else rest
            tokens[row] = int(torch.argmax(rest + gumbel_noise(*where, STREAM_RECOVERED, everything)[0]))
            break
    return tokens, accepted


def fake(logits, draft_ids, draft_probs, cu_rows, row_to_seat, temperature, seed, position):  # type: ignore[no-untyped-def]
    return draft_ids.new_empty(draft_ids.shape), row_to_seat.new_empty(cu_rows.shape[0] - 1)


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: vocab_size, logit_bytes, draft_probs (1 if given). q_lens: rows per request."""
    elements = sum(q_lens) * dims["vocab_size"]
    return Cost(10 * elements, elements * (dims.get("logit_bytes", 4) + (4 if dims.get("draft_probs") else 0)))


verify_draft = Op("verify_draft", reference, fake, cost, cases=CASES)
