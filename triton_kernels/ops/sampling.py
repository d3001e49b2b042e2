"""``sample`` and ``gather_logprobs``: from logits to a token, and what is told about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..op import Cost, Op, Tolerance
from ..rng import gumbel_noise


def sample_reference(
    logits: torch.Tensor,
    row_to_slot: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
    stream: int = 0,
) -> torch.Tensor:
    """One token per row -> int32 [R].

    logits float [R, V]; row_to_slot int32 [R]; per slot: temperature f32 (0 = greedy, ties to the lowest id), top_k int32
    (0 = off), top_p f32 (1 = off), min_p f32 (0 = off), seed int64; position int64 [R]: absolute index of the sampled token.
    Order: divide by the temperature (f32), keep scores >= max + log(min_p), keep the top_k best (ties: lower id first), keep
    the shortest prefix of the rest, best first, whose probability reaches top_p, add Gumbel noise (``rng.py``), argmax.
    A row that holds NaN or nothing but -inf gives -1 and harms no other row.
    """
    out = torch.full((logits.shape[0],), -1, dtype=torch.int32, device=logits.device)
    tokens = torch.arange(logits.shape[1], device=logits.device)
    for row in range(logits.shape[0]):
        slot = int(row_to_slot[row])
        scores = logits[row].float()
        if slot < 0 or bool(torch.isnan(scores).any()) or bool((scores == -torch.inf).all()):
            continue
        if float(temperature[slot]) == 0.0:
            out[row] = int(torch.sort(scores, descending=True, stable=True).indices[0])
            continue
        wide = (scores / temperature[slot]).double()
        order = torch.sort(wide, descending=True, stable=True).indices
        ranked = wide[order]
        keep = torch.ones_like(order, dtype=torch.bool)
        if float(min_p[slot]) > 0:
            keep &= ranked >= ranked[0] + torch.log(min_p[slot].double())
        if int(top_k[slot]) > 0:
            keep[int(top_k[slot]) :] = False
        if float(top_p[slot]) < 1:
            probability = torch.softmax(ranked.masked_fill(~keep, -torch.inf), dim=0)
            keep &= probability.cumsum(0) - probability < top_p[slot].double()
        kept = order[keep].sort().values
        noise = gumbel_noise(seed[slot].view(1), position[row].view(1), stream, tokens[kept])[0]
        out[row] = int(kept[torch.argmax(wide[kept].float() + noise)])
    return out


def gather_logprobs_reference(
    logits: torch.Tensor, token_ids: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-softmax of logits float [R, V] at token_ids int64 [R], and of the num_top best tokens.

    Returns logprob f32 [R]; rank int32 [R] (1 + number of tokens with a larger logit); top logprobs f32 [R, num_top] and
    their ids int32 [R, num_top], best first, ties to the lower id.
    """
    wide = logits.double()
    logprobs = wide - torch.logsumexp(wide, dim=-1, keepdim=True)
    chosen = wide.gather(1, token_ids.long()[:, None])
    rank = 1 + (wide > chosen).sum(-1)
    top = torch.sort(logprobs, dim=-1, descending=True, stable=True)
    logprob = logprobs.gather(1, token_ids.long()[:, None])[:, 0]
    return logprob.float(), rank.int(), top.values[:, :num_top].float(), top.indices[:, :num_top].int()


def sample_fake(logits, row_to_slot, temperature, top_k, top_p, min_p, seed, position, stream=0):  # type: ignore[no-untyped-def]
    return logits.new_empty(logits.shape[0], dtype=torch.int32)


def gather_logprobs_fake(logits, token_ids, num_top):  # type: ignore[no-untyped-def]
    rows = logits.shape[0]
    return (logits.new_empty(rows, dtype=torch.float32), logits.new_empty(rows, dtype=torch.int32),
            logits.new_empty(rows, num_top, dtype=torch.float32), logits.new_empty(rows, num_top, dtype=torch.int32))  # fmt: skip


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: vocab_size, logit_bytes. One row per request; the logits are read once."""
    elements = len(q_lens) * dims["vocab_size"]
    return Cost(10 * elements, elements * dims.get("logit_bytes", 4))


sample = Op("sample", sample_reference, sample_fake, cost, cases=(), bind_args=("stream",), tolerance=Tolerance(token_ties=True))
gather_logprobs = Op("gather_logprobs", gather_logprobs_reference, gather_logprobs_fake, cost, cases=())
