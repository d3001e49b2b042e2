"""Exact min-p, top-k, top-p and the Gumbel choice without a sort, in two kernels.

Scan, grid (rows, blocks of the vocabulary), reads every logit once: for a row without filters it leaves the token that wins the
block; for a row with filters the best score and the mass of every ``group`` tokens.
Choose, grid (rows): takes the best of the blocks' winners; for a row with filters it searches the last token that is kept
(``_filters.py``) and draws among the kept ones. After the scan it rereads groups that hold a token near the border or above:
a few dozen when few tokens are kept, the whole row twice when the distribution is flat, ``tile`` tokens at a time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl
from .._shared.launch import Launch, next_power_of_2
from .._shared.philox import block_words, token_noise
from ._filters import find_border, list_groups, load_part
from ._keys import at_least, load_groups, load_list, row_mass
from ._rows import SEARCH_OPTIONS, cut_rows, load_filters
from ._scan import is_filtered, scan_kernel
from ._scores import load_logits, noisy_winner, scores_of

_NO_TOKEN = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _best_token(noisy, tokens):
    """The largest value, and the lowest of its tokens."""
    best = tl.max(noisy, 0)
    return best, tl.min(tl.where(noisy == best, tokens, _NO_TOKEN), 0)


@triton.jit
def _draw_settled(row, list_ptr, num_listed, lower, noise, best_noisy, best_token, GROUP: tl.constexpr, TILE: tl.constexpr):
    """The better of what was drawn so far and of the tokens of listed groups with keys of at least ``lower``."""
    logits_ptr, num_tokens, temperature = row[:3]
    seed, position, stream = noise
    for start in tl.range(0, num_listed, TILE // GROUP, disable_licm=True):
        tokens, scores, valid = load_part(row, list_ptr, num_listed, start, TILE // GROUP, GROUP, True)
        at = start + tl.arange(0, TILE // GROUP)
        first_quads = tl.load(list_ptr + at, mask=at < num_listed, other=0) * (GROUP // 4)
        quads = first_quads[:, None] + tl.arange(0, GROUP // 4)[None, :]
        words = block_words(seed, position, stream, tl.reshape(quads, [TILE // 4]), TILE)
        settled = tl.reshape(tl.where(valid & at_least(scores, tokens, lower), scores, float("-inf")), [TILE])
        index = noisy_winner(settled, 1.0, words, TILE)
        token = tl.load(list_ptr + start + index // GROUP) * GROUP + index % GROUP
        score = scores_of(load_logits(logits_ptr, token, token < num_tokens), temperature)
        noisy = tl.where(tl.max(settled, 0) > float("-inf"), score + token_noise(seed, position, stream, token), float("-inf"))
        wins = (noisy > best_noisy) | ((noisy == best_noisy) & (token < best_token))
        best_token = tl.where(wins, token, best_token)
        best_noisy = tl.maximum(noisy, best_noisy)
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
    block_token_ptr,
    groups_ptr,
    out_ptr,
    num_tokens,
    logits_stride,
    groups_stride,
    num_blocks,
    num_groups,
    stream,
    BLOCKS: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    SETS: tl.constexpr,
    TILE: tl.constexpr,
    SURVIVORS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    seat = tl.load(row_to_seat_ptr + row)
    if seat < 0:
        tl.store(out_ptr + row, -1)
        return
    logits_ptr += row * logits_stride
    temperature, top_k, top_p, min_p = load_filters(seat, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr)
    token = -1
    if is_filtered(temperature, top_k, top_p, min_p, num_tokens):
        groups = (groups_ptr + row * groups_stride, num_groups)
        group_best, group_mass, _ = load_groups(groups, GROUPS, GROUP)
        best = tl.max(group_best, 0)
        if (best > float("-inf")) & (best < float("inf")):
            scored = (logits_ptr, num_tokens, temperature, best)
            mass = row_mass(group_best, group_mass, best)
            lower, upper, list_ptr, num_listed, some_settled = find_border(
                scored, groups, mass, top_k, top_p, min_p, SETS, GROUPS, GROUP, TILE, SURVIVORS
            )
            seed, position = tl.load(seed_ptr + seat), tl.load(position_ptr + row)
            tokens, scores, keys = load_list(scored, list_ptr, tl.arange(0, SETS), num_listed)
            noisy = tl.where(keys >= lower, scores + token_noise(seed, position, stream, tokens), float("-inf"))
            best_noisy, token = _best_token(noisy, tokens)
            if some_settled:
                settled_ptr, num_settled = list_groups(groups, upper, GROUPS, GROUP)
                noise = (seed, position, stream)
                token = _draw_settled(scored, settled_ptr, num_settled, upper, noise, best_noisy, token, GROUP, TILE)
    else:
        blocks = tl.arange(0, BLOCKS)
        tokens = tl.load(block_token_ptr + row * num_blocks + blocks, mask=blocks < num_blocks, other=0)
        scores = load_logits(logits_ptr, tokens, blocks < num_blocks)
        if temperature != 0:
            scores = scores_of(scores, temperature)
        best = tl.max(scores, 0)
        if (best > float("-inf")) & (best < float("inf")):
            if temperature != 0:
                scores += token_noise(tl.load(seed_ptr + seat), tl.load(position_ptr + row), stream, tokens)
            _, token = _best_token(scores, tokens)
    tl.store(out_ptr + row, token)


_SCAN = Launch(scan_kernel, num_warps=4, enable_fp_fusion=True)
_CHOOSE = Launch(_choose_kernel, num_warps=8, num_stages=1, enable_fp_fusion=True)


@impl("sample", "triton", priority=20, requires=("triton",), flags=Flags(batch_invariant=True), options=SEARCH_OPTIONS)
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
    **options: int,
) -> torch.Tensor:
    num_rows, num_tokens = logits.shape
    out = logits.new_empty(num_rows, dtype=torch.int32)
    if num_rows == 0:
        return out
    cut = cut_rows(logits, **options)
    block_token = logits.new_empty(num_rows, cut.num_blocks, dtype=torch.int32)
    inputs = (logits, row_to_seat, temperature, top_k, top_p, min_p, seed, position)
    sizes = (num_tokens, logits.stride(0), cut.groups.stride(0))
    _SCAN((num_rows, cut.num_blocks), *inputs, block_token, cut.groups, *sizes, stream, GROUP=cut.search["GROUP"], BLOCK=cut.block)
    _CHOOSE(
        (num_rows,),
        *inputs,
        block_token,
        cut.groups,
        out,
        *sizes,
        cut.num_blocks,
        cut.num_groups,
        stream,
        BLOCKS=next_power_of_2(cut.num_blocks),
        **cut.search,
    )
    return out
