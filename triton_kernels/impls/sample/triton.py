"""Exact min-p, top-k, top-p and the Gumbel choice without a sort, in two kernels.

Scan, grid (rows, blocks of the vocabulary), reads every logit once: a program keeps ``block`` scores in registers. For a
row without filters it adds the noise and leaves its best token. For a row with filters it leaves the best score of every
``group`` tokens and the block's probability mass.
Choose, grid (rows): reduces the blocks; for a row with filters it lists the groups that reach down to a floor below the
best score, lowers the floor (1, 2, 4 ... below the best) until the listed tokens suffice for top-k or top-p, searches the
border among the ordered bits of their scores, ``pivots`` at a time, and draws among what is kept. So after the scan it
rereads, some ten to thirty times and from cache, only groups that hold a token near the border or above: a few thousand
scores when few tokens are kept, the whole row when the distribution is flat. Mass is summed in 2^-40 fixed point, so that
sums are exact and no border depends on their order. Made for large vocabularies with peaked rows; a flat top-p row is
bound by one program's cache bandwidth.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl
from .._shared.float_key import float_key, key_float
from .._shared.philox import block_noise, token_noise

_LOWEST = tl.constexpr(-3.4028234663852886e38)
_MASS_ONE = tl.constexpr(float(1 << 40))
_MANY = tl.constexpr(1 << 62)


@triton.jit
def _is_random_filtered(temperature, top_k, top_p, min_p, num_tokens):
    return (temperature != 0) & (((top_k > 0) & (top_k < num_tokens)) | (top_p < 1) | (min_p > 0))


@triton.jit
def _load_scores(logits_ptr, tokens, mask, temperature):
    scores = tl.load(logits_ptr + tokens, mask=mask, other=float("-inf")).to(tl.float32)
    return tl.div_rn(scores, tl.where(temperature == 0, 1.0, temperature))


@triton.jit
def _scan_kernel(
    logits_ptr,
    row_to_seat_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seed_ptr,
    position_ptr,
    block_best_ptr,
    block_mass_ptr,
    block_noisy_ptr,
    block_token_ptr,
    group_best_ptr,
    num_tokens,
    logits_stride,
    stream,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    seat = tl.load(row_to_seat_ptr + row)
    if seat < 0:
        return
    temperature = tl.load(temperature_ptr + seat)
    tokens = block * BLOCK + tl.arange(0, BLOCK)
    scores = _load_scores(logits_ptr + row * logits_stride, tokens, tokens < num_tokens, temperature)
    broken = (scores != scores) | (scores == float("inf"))
    scores = tl.where(broken, float("-inf"), scores)
    best = tl.max(scores, 0)
    here = row * tl.num_programs(1) + block
    tl.store(block_best_ptr + here, tl.where(tl.max(broken.to(tl.int32), 0) > 0, float("inf"), best))
    top_k, top_p, min_p = tl.load(top_k_ptr + seat), tl.load(top_p_ptr + seat), tl.load(min_p_ptr + seat)
    if _is_random_filtered(temperature, top_k, top_p, min_p, num_tokens):
        group_best = tl.max(tl.reshape(scores, [BLOCK // GROUP, GROUP]), axis=1)
        tl.store(group_best_ptr + here * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP), group_best)
        tl.store(block_mass_ptr + here, tl.sum(tl.exp(scores - tl.maximum(best, _LOWEST)), 0))
    else:
        if temperature != 0:
            scores += block_noise(tl.load(seed_ptr + seat), tl.load(position_ptr + row), stream, block * BLOCK, BLOCK)
        noisy, index = tl.max(scores, 0, return_indices=True, return_indices_tie_break_left=True)
        tl.store(block_noisy_ptr + here, noisy)
        tl.store(block_token_ptr + here, block * BLOCK + index)


@triton.jit
def _mass(scores, best):
    return (tl.exp(scores - best) * _MASS_ONE).to(tl.int64)


@triton.jit
def _list_groups(group_best_ptr, group_list_ptr, num_groups, floor, TILE: tl.constexpr):
    """Writes, in order, the groups whose best score is at least ``floor``; returns their number."""
    num_listed = 0
    for start in range(0, num_groups, TILE):
        groups = start + tl.arange(0, TILE)
        best = tl.load(group_best_ptr + groups, mask=groups < num_groups, other=float("-inf"))
        listed = (best >= floor).to(tl.int32)
        tl.store(group_list_ptr + num_listed + tl.cumsum(listed, 0) - 1, groups, mask=listed != 0)
        num_listed += tl.sum(listed, 0)
    tl.debug_barrier()  # the list is read by other threads than wrote it
    return num_listed


@triton.jit
def _load_listed(logits_ptr, group_list_ptr, num_listed, start, num_tokens, temperature, GROUP: tl.constexpr, TILE: tl.constexpr):
    at = start + tl.arange(0, TILE)
    valid = at < num_listed * GROUP
    tokens = tl.load(group_list_ptr + at // GROUP, mask=valid, other=0) * GROUP + at % GROUP
    return _load_scores(logits_ptr, tokens, valid & (tokens < num_tokens), temperature), tokens


@triton.jit
def _measure(
    logits_ptr,
    group_list_ptr,
    num_listed,
    num_tokens,
    temperature,
    best,
    by_mass,
    pivots,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    """Number or mass of listed tokens whose key is at least each pivot (int64 [PIVOTS]) -> int64 [PIVOTS]."""
    totals = tl.zeros([PIVOTS], dtype=tl.int64)
    borders = pivots.to(tl.int32)[None, :]
    for start in range(0, num_listed * GROUP, TILE):
        scores, _ = _load_listed(logits_ptr, group_list_ptr, num_listed, start, num_tokens, temperature, GROUP, TILE)
        weights = tl.where(by_mass, _mass(scores, best), 1)
        totals += tl.sum(tl.where(float_key(scores)[:, None] >= borders, weights[:, None], 0), axis=0)
    return totals


@triton.jit
def _search(
    logits_ptr,
    group_list_ptr,
    num_listed,
    num_tokens,
    temperature,
    best,
    by_mass,
    target,
    low,
    high,
    above,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    """The largest key in low .. high - 1 (``low``, if none) at and above which tokens reach ``target``, and what they are
    above it; ``above`` < target is what they are at and above ``high``."""
    while high - low > 1:
        pivots = low + (high - low) * (tl.arange(0, PIVOTS) + 1) // (PIVOTS + 1)
        totals = _measure(
            logits_ptr, group_list_ptr, num_listed, num_tokens, temperature, best, by_mass, pivots, GROUP, TILE, PIVOTS
        )
        reached = totals >= target
        above = tl.maximum(above, tl.max(tl.where(reached, 0, totals), 0))
        new_high = tl.minimum(high, tl.min(tl.where(reached, high, pivots), 0))
        low = tl.maximum(low, tl.max(tl.where(reached, pivots, low), 0))
        high = new_high
    return low, above


@triton.jit
def _draw_filtered(
    logits_ptr,
    group_best_ptr,
    group_list_ptr,
    num_groups,
    num_tokens,
    temperature,
    top_k,
    top_p,
    min_p,
    seed,
    position,
    stream,
    best,
    row_mass,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    bottom = tl.where(min_p > 0, tl.maximum(best + tl.log(tl.where(min_p > 0, min_p, 1.0)), _LOWEST), _LOWEST)
    limited = (top_k > 0) & (top_k < num_tokens)
    # Without top-k, min-p alone says which tokens count, and the mass of top-p is theirs.
    depth = tl.where((min_p > 0) & (limited == 0), float("inf"), 1.0)
    target = tl.where(limited, top_k.to(tl.int64), tl.maximum(tl.ceil(row_mass * top_p).to(tl.int64), 1))
    num_listed = 0
    beyond = float_key(best).to(tl.int64) + 1
    low, high = beyond, beyond
    found = tl.zeros([], dtype=tl.int64)
    above = found
    enough = False
    while not enough:
        high, above = low, found
        floor = tl.maximum(tl.where(depth > 200, float("-inf"), best - depth), bottom)
        num_listed = _list_groups(group_best_ptr, group_list_ptr, num_groups, floor, TILE)
        low = float_key(floor).to(tl.int64)
        totals = _measure(
            logits_ptr,
            group_list_ptr,
            num_listed,
            num_tokens,
            temperature,
            best,
            limited == 0,
            low + tl.zeros([PIVOTS], dtype=tl.int64),
            GROUP,
            TILE,
            PIVOTS,
        )
        found = tl.max(totals, 0)
        enough = (found >= target) | (floor <= bottom)
        depth *= 2

    num_equal = tl.zeros([], dtype=tl.int64) + _MANY  # how many tokens at the border itself are kept
    total = tl.where(min_p > 0, found.to(tl.float64), row_mass)
    if limited:
        low, above = _search(
            logits_ptr,
            group_list_ptr,
            num_listed,
            num_tokens,
            temperature,
            best,
            False,
            target,
            low,
            high,
            above,
            GROUP,
            TILE,
            PIVOTS,
        )
        num_equal = top_k - above
    if top_p < 1:
        if limited:
            high, above = beyond, tl.zeros([], dtype=tl.int64)
            pair = low + tl.minimum(tl.arange(0, PIVOTS), 1)
            masses = _measure(
                logits_ptr, group_list_ptr, num_listed, num_tokens, temperature, best, True, pair, GROUP, TILE, PIVOTS
            )
            with_border, above_border = tl.max(masses, 0), tl.min(masses, 0)
            border = _mass(key_float(low.to(tl.int32)), best)
            total = tl.minimum(with_border, above_border + num_equal * border).to(tl.float64)
        target = tl.maximum(tl.ceil(total * top_p).to(tl.int64), 1)
        border_k = low
        low, above = _search(
            logits_ptr,
            group_list_ptr,
            num_listed,
            num_tokens,
            temperature,
            best,
            True,
            target,
            low,
            high,
            above,
            GROUP,
            TILE,
            PIVOTS,
        )
        border = _mass(key_float(low.to(tl.int32)), best)
        needed = tl.where(border > 0, (target - above + border - 1) // tl.maximum(border, 1), _MANY)
        num_equal = tl.where(low == border_k, tl.minimum(num_equal, needed), needed)

    best_noisy = best + float("-inf")
    best_token = 0
    num_seen = tl.zeros([], dtype=tl.int64)
    for start in range(0, num_listed * GROUP, TILE):
        scores, tokens = _load_listed(logits_ptr, group_list_ptr, num_listed, start, num_tokens, temperature, GROUP, TILE)
        keys = float_key(scores).to(tl.int64)
        equal = (keys == low).to(tl.int32)
        kept = (keys > low) | ((equal != 0) & (num_seen + tl.cumsum(equal, 0) <= num_equal))
        num_seen += tl.sum(equal, 0)
        noisy = tl.where(kept, scores + token_noise(seed, position, stream, tokens), float("-inf"))
        top, index = tl.max(noisy, 0, return_indices=True, return_indices_tie_break_left=True)
        token = tl.sum(tl.where(tl.arange(0, TILE) == index, tokens, 0), 0)
        best_token = tl.where(top > best_noisy, token, best_token)
        best_noisy = tl.maximum(top, best_noisy)
    return best_token


@triton.jit
def _choose_kernel(
    logits_ptr,
    row_to_seat_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seed_ptr,
    position_ptr,
    block_best_ptr,
    block_mass_ptr,
    block_noisy_ptr,
    block_token_ptr,
    group_best_ptr,
    group_list_ptr,
    out_ptr,
    num_tokens,
    logits_stride,
    num_blocks,
    num_groups,
    stream,
    BLOCKS: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    PIVOTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    seat = tl.load(row_to_seat_ptr + row)
    if seat < 0:
        tl.store(out_ptr + row, -1)
        return
    blocks = row * num_blocks + tl.arange(0, BLOCKS)
    mask = tl.arange(0, BLOCKS) < num_blocks
    block_best = tl.load(block_best_ptr + blocks, mask=mask, other=float("-inf"))
    best = tl.max(block_best, 0)
    if (best == float("-inf")) | (best == float("inf")):
        tl.store(out_ptr + row, -1)
        return
    temperature, top_k = tl.load(temperature_ptr + seat), tl.load(top_k_ptr + seat)
    top_p, min_p = tl.load(top_p_ptr + seat), tl.load(min_p_ptr + seat)
    if _is_random_filtered(temperature, top_k, top_p, min_p, num_tokens):
        block_mass = tl.load(block_mass_ptr + blocks, mask=mask, other=0.0)
        row_mass = (tl.sum(block_mass * tl.exp(block_best - best), 0) * _MASS_ONE).to(tl.float64)
        token = _draw_filtered(
            logits_ptr + row * logits_stride,
            group_best_ptr + row * num_groups,
            group_list_ptr + row * num_groups,
            num_groups,
            num_tokens,
            temperature,
            top_k,
            top_p,
            min_p,
            tl.load(seed_ptr + seat),
            tl.load(position_ptr + row),
            stream,
            best,
            row_mass,
            GROUP,
            TILE,
            PIVOTS,
        )
    else:
        noisy = tl.load(block_noisy_ptr + blocks, mask=mask, other=float("-inf"))
        token = tl.load(block_token_ptr + row * num_blocks + tl.argmax(noisy, 0, tie_break_left=True))
    tl.store(out_ptr + row, token)


@impl(
    "sample",
    "triton",
    priority=20,
    requires=("triton",),
    flags=Flags(batch_invariant=True),
    options={"block": 4096, "group": 32, "tile": 1024, "pivots": 4},
)
def sample(
    logits: torch.Tensor,
    row_to_seat: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
    stream: int = 0,
    *,
    block: int,
    group: int,
    tile: int,
    pivots: int,
) -> torch.Tensor:
    num_rows, num_tokens = logits.shape
    out = logits.new_empty(num_rows, dtype=torch.int32)
    if num_rows == 0:
        return out
    assert logits.stride(1) == 1, "the logits of a row must be contiguous"
    block = max(group, min(block, triton.next_power_of_2(num_tokens)))
    num_blocks = triton.cdiv(num_tokens, block)
    num_groups = num_blocks * (block // group)
    # Each partial result is an allocation of its own: kernels are compiled for addresses that are multiples of 16, and once more
    # for those that are not, and where a part of one tensor begins would follow from the number of rows.
    block_best, block_mass, block_noisy = (logits.new_empty(num_rows, num_blocks, dtype=torch.float32) for _ in range(3))
    block_token = logits.new_empty(num_rows, num_blocks, dtype=torch.int32)
    group_best = logits.new_empty(num_rows, num_groups, dtype=torch.float32)
    group_list = logits.new_empty(num_rows, num_groups, dtype=torch.int32)
    inputs = (logits, row_to_seat, temperature, top_k, top_p, min_p, seed, position)
    _scan_kernel[(num_rows, num_blocks)](
        *inputs,
        block_best,
        block_mass,
        block_noisy,
        block_token,
        group_best,
        num_tokens,
        logits.stride(0),
        stream,
        GROUP=group,
        BLOCK=block,
        num_warps=8,
        enable_fp_fusion=True,
    )
    _choose_kernel[(num_rows,)](
        *inputs,
        block_best,
        block_mass,
        block_noisy,
        block_token,
        group_best,
        group_list,
        out,
        num_tokens,
        logits.stride(0),
        num_blocks,
        num_groups,
        stream,
        BLOCKS=triton.next_power_of_2(num_blocks),
        GROUP=group,
        TILE=tile,
        PIVOTS=pivots,
        num_warps=8,
        enable_fp_fusion=True,
    )
    return out
