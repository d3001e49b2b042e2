"""Draft verification in four kernels, which read every logit once and one row per request a second time.
Scan, grid (rows, blocks of the vocabulary): a program keeps ``block`` scores in registers and leaves their best, its token,
and the sum of exponentials. Accept, grid (requests): walks the request's rows in order, joins their blocks, tests the draft
(greedy: is it the best token; else u q(x) < p(x)), and stops at the first failure; a greedy request is finished there.
Draw, grid (requests, blocks), only for requests that sample: the rejected draft's row or the bonus row is read again, with
the draft's distribution where there is one, and each block leaves its best noisy token, of what p has more than q and, should
rounding have left nothing of that, of p. Choose, grid (requests): the best of the blocks. How many rows a request ends up
with never reaches the host. Noise is computed for one row per request, not for all. Made for a few drafts per
request over large vocabularies.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl
from ...rng import STREAM_ACCEPT, STREAM_RECOVERED, STREAM_TARGET
from .._shared.launch import Launch, cdiv, next_power_of_2
from .._shared.philox import block_noise, quad_words

_LOWEST = tl.constexpr(-3.4028234663852886e38)
_ACCEPT, _RECOVERED, _TARGET = tl.constexpr(STREAM_ACCEPT), tl.constexpr(STREAM_RECOVERED), tl.constexpr(STREAM_TARGET)


@triton.jit
def _scores(logits_ptr, tokens, num_tokens, temperature):
    scores = tl.load(logits_ptr + tokens, mask=tokens < num_tokens, other=float("-inf")).to(tl.float32)
    return tl.div_rn(scores, tl.where(temperature == 0, 1.0, temperature))


@triton.jit(do_not_specialize=["num_reqs"])
def _scan_kernel(
    logits_ptr,
    cu_rows_ptr,
    row_to_seat_ptr,
    temperature_ptr,
    block_best_ptr,
    block_token_ptr,
    block_mass_ptr,
    num_tokens,
    logits_stride,
    num_reqs,
    REQS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    requests = tl.arange(0, REQS)
    ends = tl.load(cu_rows_ptr + 1 + requests, mask=requests < num_reqs, other=2147483647)
    request = tl.sum((ends <= row).to(tl.int32), 0)
    seat = tl.load(row_to_seat_ptr + request, mask=request < num_reqs, other=-1)
    if seat < 0:
        return
    scores = _scores(
        logits_ptr + row * logits_stride, block * BLOCK + tl.arange(0, BLOCK), num_tokens, tl.load(temperature_ptr + seat)
    )
    broken = tl.max(((scores != scores) | (scores == float("inf"))).to(tl.int32), 0) > 0
    scores = tl.where(scores == scores, scores, float("-inf"))
    best, index = tl.max(scores, 0, return_indices=True, return_indices_tie_break_left=True)
    here = row * tl.num_programs(1) + block
    tl.store(block_best_ptr + here, tl.where(broken, float("inf"), best))
    tl.store(block_token_ptr + here, block * BLOCK + index)
    tl.store(block_mass_ptr + here, tl.sum(tl.exp(scores - tl.maximum(best, _LOWEST)), 0))


@triton.jit
def _accept_kernel(
    logits_ptr,
    draft_ids_ptr,
    draft_probs_ptr,
    cu_rows_ptr,
    row_to_seat_ptr,
    temperature_ptr,
    seed_ptr,
    position_ptr,
    block_best_ptr,
    block_token_ptr,
    block_mass_ptr,
    out_ptr,
    accepted_ptr,
    draw_row_ptr,
    draw_best_ptr,
    draw_mass_ptr,
    num_tokens,
    num_blocks,
    logits_stride,
    probs_stride,
    HAS_PROBS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    request = tl.program_id(0)
    seat = tl.load(row_to_seat_ptr + request)
    row, end = tl.load(cu_rows_ptr + request), tl.load(cu_rows_ptr + request + 1)
    temperature = tl.load(temperature_ptr + tl.maximum(seat, 0))
    seed = tl.load(seed_ptr + tl.maximum(seat, 0))
    greedy = temperature == 0
    accepted = 0
    draw_row = -1
    going = (seat >= 0) & (row < end)
    while going:
        blocks = row.to(tl.int64) * num_blocks + tl.arange(0, BLOCKS)
        mask = tl.arange(0, BLOCKS) < num_blocks
        block_best = tl.load(block_best_ptr + blocks, mask=mask, other=float("-inf"))
        best = tl.max(block_best, 0)
        usable = (best > float("-inf")) & (best < float("inf"))
        best = tl.where(usable, best, 0.0)
        mass = tl.sum(tl.load(block_mass_ptr + blocks, mask=mask, other=0.0) * tl.exp(block_best - best), 0)
        first_best = tl.argmax(block_best, 0, tie_break_left=True)
        best_token = tl.load(block_token_ptr + row.to(tl.int64) * num_blocks + first_best)

        draft = tl.load(draft_ids_ptr + row)
        token = tl.maximum(draft, 0)
        p = tl.exp(_scores(logits_ptr + row.to(tl.int64) * logits_stride, token, num_tokens, temperature) - best) / mass
        q = tl.load(draft_probs_ptr + row.to(tl.int64) * probs_stride + token) if HAS_PROBS else 1.0
        a, b, c, d = quad_words(seed, tl.load(position_ptr + row), _ACCEPT, token // 4)
        word = tl.where(token % 4 < 2, tl.where(token % 4 == 0, a, b), tl.where(token % 4 == 2, c, d))
        passes = (draft >= 0) & usable & tl.where(greedy, best_token == draft, tl.random.uint_to_uniform_float(word) * q < p)
        tl.store(out_ptr + row, tl.where(greedy, best_token, draft), mask=passes | (greedy & usable))
        accepted += passes.to(tl.int32)
        draws = usable & (passes == 0) & (greedy == 0)
        tl.store(draw_best_ptr + request, best, mask=draws)
        tl.store(draw_mass_ptr + request, mass, mask=draws)
        draw_row = tl.where(draws, row, draw_row)
        row += 1
        going = passes & (row < end)
    tl.store(accepted_ptr + request, accepted)
    tl.store(draw_row_ptr + request, draw_row)


@triton.jit
def _draw_kernel(
    logits_ptr,
    draft_ids_ptr,
    draft_probs_ptr,
    row_to_seat_ptr,
    temperature_ptr,
    seed_ptr,
    position_ptr,
    draw_row_ptr,
    draw_best_ptr,
    draw_mass_ptr,
    noisy_ptr,
    noisy_token_ptr,
    num_tokens,
    logits_stride,
    probs_stride,
    HAS_PROBS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Per block, for both of its candidates [request, 2, block]: the best noisy score, and its token."""
    request, block = tl.program_id(0), tl.program_id(1)
    row = tl.load(draw_row_ptr + request).to(tl.int64)
    if row < 0:
        return
    seat = tl.load(row_to_seat_ptr + request)
    tokens = block * BLOCK + tl.arange(0, BLOCK)
    scores = _scores(logits_ptr + row * logits_stride, tokens, num_tokens, tl.load(temperature_ptr + seat))
    draft = tl.load(draft_ids_ptr + row)
    rest = scores
    if draft >= 0:
        if HAS_PROBS:
            p = tl.exp(scores - tl.load(draw_best_ptr + request)) / tl.load(draw_mass_ptr + request)
            q = tl.load(draft_probs_ptr + row * probs_stride + tokens, mask=tokens < num_tokens, other=0.0)
            rest = tl.where(p > q, tl.log(tl.where(p > q, p - q, 1.0)), float("-inf"))
        else:
            rest = tl.where(tokens == draft, float("-inf"), scores)
    stream = tl.where(draft < 0, _TARGET, _RECOVERED)
    noise = block_noise(tl.load(seed_ptr + seat), tl.load(position_ptr + row), stream, block * BLOCK, BLOCK)
    here = request.to(tl.int64) * 2 * tl.num_programs(1) + block
    noisy, index = tl.max(rest + noise, 0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(noisy_ptr + here, noisy)
    tl.store(noisy_token_ptr + here, block * BLOCK + index)
    noisy, index = tl.max(scores + noise, 0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(noisy_ptr + here + tl.num_programs(1), noisy)
    tl.store(noisy_token_ptr + here + tl.num_programs(1), block * BLOCK + index)


@triton.jit
def _choose_kernel(draw_row_ptr, noisy_ptr, noisy_token_ptr, out_ptr, num_blocks, BLOCKS: tl.constexpr):
    request = tl.program_id(0).to(tl.int64)
    row = tl.load(draw_row_ptr + request)
    if row < 0:
        return
    at = tl.arange(0, BLOCKS)
    here = request * 2 * num_blocks
    noisy = tl.load(noisy_ptr + here + at, mask=at < num_blocks, other=float("-inf"))
    if tl.max(noisy, 0) == float("-inf"):
        here += num_blocks
        noisy = tl.load(noisy_ptr + here + at, mask=at < num_blocks, other=float("-inf"))
    tl.store(out_ptr + row, tl.load(noisy_token_ptr + here + tl.argmax(noisy, 0, tie_break_left=True)))


_SCAN_ROWS = Launch(_scan_kernel, num_warps=8, enable_fp_fusion=True)
_ACCEPT_DRAFTS = Launch(_accept_kernel, num_warps=1, enable_fp_fusion=True)
_DRAW_NEXT = Launch(_draw_kernel, num_warps=8, enable_fp_fusion=True)
_CHOOSE_NEXT = Launch(_choose_kernel, num_warps=1, enable_fp_fusion=True)


@impl("verify_draft", "triton", priority=20, requires=("triton",), flags=Flags(batch_invariant=True), options={"block": 4096})
def verify_draft(
    logits: torch.Tensor,
    draft_ids: torch.Tensor,
    draft_probs: torch.Tensor | None,
    cu_rows: torch.Tensor,
    row_to_seat: torch.Tensor,
    temperature: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
    *,
    block: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    (num_rows, num_tokens), num_reqs = logits.shape, row_to_seat.shape[0]
    out, accepted = torch.full_like(draft_ids, -1), row_to_seat.new_empty(num_reqs)
    if num_rows == 0 or num_reqs == 0:
        return out, accepted.zero_()
    assert logits.stride(1) == 1 and (draft_probs is None or draft_probs.stride(1) == 1), "rows must be contiguous"
    block = max(4, min(block, next_power_of_2(num_tokens)))
    num_blocks = cdiv(num_tokens, block)
    blocks = next_power_of_2(num_blocks)
    # Each partial result is an allocation of its own: kernels are compiled for addresses that are multiples of 16, and once more
    # for those that are not, and where a part of one tensor begins would follow from the number of rows.
    block_best, block_mass = (logits.new_empty(num_rows, num_blocks, dtype=torch.float32) for _ in range(2))
    block_token, draw_row = draft_ids.new_empty(num_rows, num_blocks), draft_ids.new_empty(num_reqs)
    draw_best, draw_mass = (logits.new_empty(num_reqs, dtype=torch.float32) for _ in range(2))
    noisy = logits.new_empty(num_reqs, 2, num_blocks, dtype=torch.float32)
    noisy_token = draft_ids.new_empty(num_reqs, 2, num_blocks)
    probs = logits if draft_probs is None else draft_probs
    strides, has_probs = (logits.stride(0), probs.stride(0)), draft_probs is not None
    _SCAN_ROWS(
        (num_rows, num_blocks),
        logits,
        cu_rows,
        row_to_seat,
        temperature,
        block_best,
        block_token,
        block_mass,
        num_tokens,
        logits.stride(0),
        num_reqs,
        REQS=next_power_of_2(num_reqs),
        BLOCK=block,
    )
    _ACCEPT_DRAFTS(
        (num_reqs,),
        logits,
        draft_ids,
        probs,
        cu_rows,
        row_to_seat,
        temperature,
        seed,
        position,
        block_best,
        block_token,
        block_mass,
        out,
        accepted,
        draw_row,
        draw_best,
        draw_mass,
        num_tokens,
        num_blocks,
        *strides,
        HAS_PROBS=has_probs,
        BLOCKS=blocks,
    )
    _DRAW_NEXT(
        (num_reqs, num_blocks),
        logits,
        draft_ids,
        probs,
        row_to_seat,
        temperature,
        seed,
        position,
        draw_row,
        draw_best,
        draw_mass,
        noisy,
        noisy_token,
        num_tokens,
        *strides,
        HAS_PROBS=has_probs,
        BLOCK=block,
    )
    _CHOOSE_NEXT((num_reqs,), draw_row, noisy, noisy_token, out, num_blocks, BLOCKS=blocks)
    return out, accepted
