"""``sample``, ``filter_logits`` and ``gather_logprobs``: from logits to a token, and what is told about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..cases.sampling import FILTER_LOGITS_CASES, GATHER_LOGPROBS_CASES, SAMPLE_CASES
from ..op import Cost, Op, Tolerance
from ..rng import gumbel_noise

TIE = 1e-5
"""Scores (relative to the larger of 1 and their size) and probabilities closer than this may be ordered either way."""


def sample_reference(
    logits: torch.Tensor,
    row_to_seat: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
    stream: int = 0,
) -> torch.Tensor:
    """One token per row -> int32 [R].

    logits float [R, V]; row_to_seat int32 [R]; per seat: temperature f32 (0 = greedy, ties to the lowest id), top_k int32
    (0 = off), top_p f32 (1 = off), min_p f32 (0 = off), seed int64; position int64 [R]: absolute index of the sampled token.
    Order: divide by the temperature (f32), keep scores >= max + log(min_p), keep the top_k best (ties: lower id first), keep
    the shortest prefix of the rest, best first, whose probability reaches top_p, add Gumbel noise (``rng.py``), argmax
    (ties: lower id). The best token is always kept.
    A row whose largest score is not finite (it holds NaN or +inf, or nothing but -inf) gives -1 and harms no other row; a
    row whose seat is -1 gives -1.
    """
    out = torch.full((logits.shape[0],), -1, dtype=torch.int32, device=logits.device)
    for row in range(logits.shape[0]):
        seat = int(row_to_seat[row])
        if seat < 0:
            continue
        greedy = float(temperature[seat]) == 0.0
        scores = logits[row].float() if greedy else logits[row].float() / temperature[seat]
        if not bool(scores.max().isfinite()):
            continue
        if greedy:
            out[row] = torch.argmax(scores)
            continue
        ranked, order = torch.sort(scores.double(), descending=True, stable=True)
        num_kept = _num_kept(ranked, top_k[seat], top_p[seat], min_p[seat])
        noisy = scores + _row_noise(seed[seat], position[row], stream, len(scores))
        out[row] = _winner(noisy, order[:num_kept])
    return out


def _num_kept(ranked: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor, slack: float = 0.0) -> int:
    """How many of the scores f64 [V], best first, survive min-p, top-k and top-p. Slack moves the borders."""
    keep = torch.ones_like(ranked, dtype=torch.bool)
    if float(min_p) > 0:
        keep &= ranked >= ranked[0] + torch.log(min_p.double()) - slack * ranked[0].abs().clamp_min(1)
    if int(top_k) > 0:
        keep[int(top_k) :] = False
    if float(top_p) < 1:
        probability = torch.softmax(ranked.masked_fill(~keep, -torch.inf), dim=0)
        keep &= probability.cumsum(0) - probability < top_p.double() + slack
    return max(1, int(keep.sum()))


def _row_noise(seed: torch.Tensor, position: torch.Tensor, stream: int, num_tokens: int) -> torch.Tensor:
    return gumbel_noise(seed.view(1), position.view(1), stream, torch.arange(num_tokens, device=seed.device))[0]


def _winner(noisy: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    return torch.argmax(torch.full_like(noisy, -torch.inf).scatter(0, kept, noisy[kept]))


def near_ties(args: Mapping[str, Any]) -> torch.Tensor:
    """bool [R]: rows of :func:`sample_reference` whose token hangs on less than :data:`TIE`, because the two best noisy
    scores are that close, or because moving a border by so much lets another token win. Never true of greedy rows."""
    logits, temperature, position = args["logits"], args["temperature"], args["position"]
    out = torch.zeros(logits.shape[0], dtype=torch.bool, device=logits.device)
    for row, seat in enumerate(args["row_to_seat"].tolist()):
        scores = logits[row].float() / temperature[seat]
        if seat < 0 or float(temperature[seat]) == 0.0 or not bool(scores.max().isfinite()):
            continue
        filters = args["top_k"][seat], args["top_p"][seat], args["min_p"][seat]
        ranked, order = torch.sort(scores.double(), descending=True, stable=True)
        fewest, most = (_num_kept(ranked, *filters, slack=slack) for slack in (-TIE, TIE))
        noisy = scores + _row_noise(args["seed"][seat], position[row], args["stream"], len(scores))
        best = noisy[order[:most]].topk(min(2, most)).values
        close = most > 1 and bool(best[0] - best[-1] <= TIE * best[0].abs().clamp_min(1))
        out[row] = close or bool(_winner(noisy, order[:fewest]) != _winner(noisy, order[:most]))
    return out


def drawn_rows(args: Mapping[str, Any]) -> torch.Tensor:
    """bool [R]: rows of :func:`sample_reference` whose token depends on random numbers."""
    seats = args["row_to_seat"]
    drawn: torch.Tensor = (seats >= 0) & (args["temperature"][seats.clamp_min(0).long()] > 0)
    return drawn & args["logits"].max(dim=-1).values.isfinite()


def filter_logits_reference(
    logits: torch.Tensor,
    row_to_seat: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
) -> torch.Tensor:
    """Logits float [R, V] with -inf for the tokens that the filters of ``sample`` remove -> the same, in memory of its own.

    Arguments and filters as of :func:`sample_reference`. So a row's token is drawn from the softmax of what is left, over the
    temperature. Greedy rows, rows whose seat is -1, and rows whose largest score is not finite stay as they are.
    """
    out = logits.clone()
    for row, seat in enumerate(row_to_seat.tolist()):
        if seat < 0 or float(temperature[seat]) == 0.0:
            continue
        scores = logits[row].float() / temperature[seat]
        if bool(scores.max().isfinite()):
            ranked, order = torch.sort(scores.double(), descending=True, stable=True)
            out[row, order[_num_kept(ranked, top_k[seat], top_p[seat], min_p[seat]) :]] = -torch.inf
    return out


def gather_logprobs_reference(
    logits: torch.Tensor, token_ids: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-softmax of logits float [R, V] at token_ids int64 [R], and of the num_top <= V best tokens.

    Returns logprob f32 [R]; rank int32 [R] (1 + number of tokens with a larger logit); top logprobs f32 [R, num_top] and
    their ids int32 [R, num_top], best first, ties to the lower id.
    A token id of -1 has logprob NaN and rank 0. A row whose largest logit is not finite has rank 0, logprobs NaN and top
    ids -1.
    """
    wide = logits.double()
    valid = wide.max(dim=-1, keepdim=True).values.isfinite()
    logprobs = torch.where(valid, wide - torch.logsumexp(wide, dim=-1, keepdim=True), torch.nan)
    ids = token_ids.long()[:, None]
    known = valid & (ids >= 0)
    logprob = torch.where(known, logprobs.gather(1, ids.clamp_min(0)), torch.nan)[:, 0]
    rank = torch.where(known[:, 0], 1 + (wide > wide.gather(1, ids.clamp_min(0))).sum(-1), 0)
    order = torch.sort(wide, dim=-1, descending=True, stable=True).indices[:, :num_top]
    return logprob.float(), rank.int(), logprobs.gather(1, order).float(), torch.where(valid, order, -1).int()


def sample_fake(logits, row_to_seat, temperature, top_k, top_p, min_p, seed, position, stream=0):  # type: ignore[no-untyped-def]
    return logits.new_empty(logits.shape[0], dtype=torch.int32)


def filter_logits_fake(logits, row_to_seat, temperature, top_k, top_p, min_p):  # type: ignore[no-untyped-def]
    return logits.new_empty(logits.shape)


def gather_logprobs_fake(logits, token_ids, num_top):  # type: ignore[no-untyped-def]
    rows = logits.shape[0]
    return (
        logits.new_empty(rows, dtype=torch.float32),
        logits.new_empty(rows, dtype=torch.int32),
        logits.new_empty(rows, num_top, dtype=torch.float32),
        logits.new_empty(rows, num_top, dtype=torch.int32),
    )


def cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: vocab_size, logit_bytes. One row per request; the logits are read once."""
    elements = len(q_lens) * dims["vocab_size"]
    return Cost(10 * elements, elements * dims.get("logit_bytes", 4))


def filter_cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """As ``cost``; and the logits are written once."""
    found = cost(dims, q_lens, ctx_lens)
    return Cost(found.flops, 2 * found.bytes)


sample = Op(
    "sample",
    sample_reference,
    sample_fake,
    cost,
    cases=SAMPLE_CASES,
    bind_args=("stream",),
    row_args=("logits", "row_to_seat", "position"),
    tolerance=Tolerance(token_ties=near_ties, drawn=drawn_rows),
)
filter_logits = Op(
    "filter_logits",
    filter_logits_reference,
    filter_logits_fake,
    filter_cost,
    cases=FILTER_LOGITS_CASES,
    row_args=("logits", "row_to_seat"),
    tolerance=Tolerance(exact=True),
)
gather_logprobs = Op(
    "gather_logprobs",
    gather_logprobs_reference,
    gather_logprobs_fake,
    cost,
    cases=GATHER_LOGPROBS_CASES,
    row_args=("logits", "token_ids"),
)
