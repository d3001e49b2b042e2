"""The scan of ``sample``: reads every logit once."""

from __future__ import annotations

import triton
import triton.language as tl

from .._shared.philox import block_words
from ._scores import load_logits, noisy_winner, scores_of

LOWEST = tl.constexpr(-3.4028234663852886e38)
GROUP_ONE = tl.constexpr(float(1 << 24))


@triton.jit
def is_filtered(temperature, top_k, top_p, min_p, num_tokens):
    return (temperature != 0) & (((top_k > 0) & (top_k < num_tokens)) | (top_p < 1) | (min_p > 0))


@triton.jit
def scan_groups(logits, temperature, groups_ptr, block, num_blocks, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """Leaves of a row's block, of logits [BLOCK], for all groups the best score, then for all the sum of exp(score - best) in units
    of 2^-24, an integer so that it does not depend on the order, which follows the logits' type."""
    scores = tl.reshape(scores_of(logits, temperature), [BLOCK // GROUP, GROUP])
    best = tl.max(scores, 1)
    weights = (tl.exp(scores - tl.maximum(best, LOWEST)[:, None]) * GROUP_ONE + 0.5).to(tl.int32)
    here = groups_ptr + block * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
    tl.store(here, best.to(tl.int32, bitcast=True))
    tl.store(here + num_blocks * (BLOCK // GROUP), tl.sum(weights, 1))


@triton.jit
def scan_kernel(
    logits_ptr,
    row_to_seat_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seed_ptr,
    position_ptr,
    block_token_ptr,
    groups_ptr,
    num_tokens,
    logits_stride,
    groups_stride,
    stream,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows without filters: the token that wins each block. Rows with filters: what ``scan_groups`` leaves."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    seat = tl.load(row_to_seat_ptr + row)
    if seat < 0:
        return
    temperature = tl.load(temperature_ptr + seat)
    tokens = block * BLOCK + tl.arange(0, BLOCK)
    logits = load_logits(logits_ptr + row * logits_stride, tokens, tokens < num_tokens)
    top_k, top_p, min_p = tl.load(top_k_ptr + seat), tl.load(top_p_ptr + seat), tl.load(min_p_ptr + seat)
    if is_filtered(temperature, top_k, top_p, min_p, num_tokens):
        scan_groups(logits, temperature, groups_ptr + row * groups_stride, block, tl.num_programs(1), GROUP, BLOCK)
    else:
        if temperature == 0:
            winner = tl.argmax(logits, 0, tie_break_left=True)
        else:
            quads = block * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
            words = block_words(tl.load(seed_ptr + seat), tl.load(position_ptr + row), stream, quads, BLOCK)
            winner = noisy_winner(logits, temperature, words, BLOCK)
        tl.store(block_token_ptr + row * tl.num_programs(1) + block, block * BLOCK + winner)
