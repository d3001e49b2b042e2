"""Log-probabilities, rank and best tokens in two kernels. Partials, grid (rows, blocks of the vocabulary), reads every
logit once: maximum, sum of exponentials, number of logits above the chosen one, and the block's best tokens, taken one
by one from keys that stay in registers. Combine, grid (rows): adds up the blocks in a fixed order, and takes the best
of their best. The work for the best tokens grows with their number; above ``_MAX_TOP``, a sort takes over. Made for the
few that are asked for in serving.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl
from .._shared.float_key import float_key, key_float
from .._shared.launch import Launch, cdiv, next_power_of_2

_MAX_TOP = 64
_TAKEN = tl.constexpr(-(2**31))


@triton.jit(do_not_specialize=["num_top"], do_not_specialize_on_alignment=["token_ids_ptr"])
def _partials_kernel(
    logits_ptr,
    token_ids_ptr,
    block_best_ptr,
    block_mass_ptr,
    block_above_ptr,
    top_keys_ptr,
    top_tokens_ptr,
    num_tokens,
    logits_stride,
    num_top,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    here = row * tl.num_programs(1) + tl.program_id(1)
    logits_ptr += row * logits_stride
    tokens = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = tokens < num_tokens
    scores = tl.load(logits_ptr + tokens, mask=mask, other=float("-inf")).to(tl.float32)
    broken = (scores != scores) | (scores == float("inf"))
    scores = tl.where(broken, float("-inf"), scores)
    best = tl.max(scores, 0)
    tl.store(block_best_ptr + here, tl.where(tl.max(broken.to(tl.int32), 0) > 0, float("inf"), best))
    tl.store(block_mass_ptr + here, tl.sum(tl.exp(scores - tl.maximum(best, -3.4e38)), 0))
    chosen = tl.load(logits_ptr + tl.maximum(tl.load(token_ids_ptr + row), 0)).to(tl.float32)
    tl.store(block_above_ptr + here, tl.sum((scores > chosen).to(tl.int32), 0))

    keys = tl.where(mask, float_key(scores), _TAKEN)
    for i in range(num_top):
        key, index = tl.max(keys, 0, return_indices=True, return_indices_tie_break_left=True)
        tl.store(top_keys_ptr + here * num_top + i, key)
        tl.store(top_tokens_ptr + here * num_top + i, tl.program_id(1) * BLOCK + index)
        keys = tl.where(tl.arange(0, BLOCK) == index, _TAKEN, keys)


@triton.jit(do_not_specialize=["num_top"], do_not_specialize_on_alignment=["token_ids_ptr"])
def _combine_kernel(
    logits_ptr,
    token_ids_ptr,
    block_best_ptr,
    block_mass_ptr,
    block_above_ptr,
    top_keys_ptr,
    top_tokens_ptr,
    best_ptr,
    log_sum_ptr,
    logprob_ptr,
    rank_ptr,
    values_ptr,
    ids_ptr,
    logits_stride,
    num_blocks,
    num_top,
    BLOCKS: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    blocks = row * num_blocks + tl.arange(0, BLOCKS)
    mask = tl.arange(0, BLOCKS) < num_blocks
    block_best = tl.load(block_best_ptr + blocks, mask=mask, other=float("-inf"))
    best = tl.max(block_best, 0)
    valid = (best > float("-inf")) & (best < float("inf"))
    best = tl.where(valid, best, float("nan"))
    block_mass = tl.load(block_mass_ptr + blocks, mask=mask, other=0.0)
    log_sum = tl.log(tl.sum(block_mass * tl.exp(block_best - best), 0))
    tl.store(best_ptr + row, best)
    tl.store(log_sum_ptr + row, log_sum)

    token = tl.load(token_ids_ptr + row)
    chosen = tl.load(logits_ptr + row * logits_stride + tl.maximum(token, 0)).to(tl.float32)
    known = valid & (token >= 0)
    tl.store(logprob_ptr + row, tl.where(known, chosen - best - log_sum, float("nan")))
    above = tl.sum(tl.load(block_above_ptr + blocks, mask=mask, other=0), 0)
    tl.store(rank_ptr + row, tl.where(known, 1 + above, 0))

    candidates = tl.arange(0, CANDIDATES)
    first = row * num_blocks * num_top
    keys = tl.load(top_keys_ptr + first + candidates, mask=candidates < num_blocks * num_top, other=_TAKEN)
    for i in range(num_top):
        key, index = tl.max(keys, 0, return_indices=True, return_indices_tie_break_left=True)
        tl.store(values_ptr + row * num_top + i, key_float(key) - best - log_sum)
        tl.store(ids_ptr + row * num_top + i, tl.where(valid, tl.load(top_tokens_ptr + first + index), -1))
        keys = tl.where(candidates == index, _TAKEN, keys)


_PARTIALS = Launch(_partials_kernel, num_warps=8, enable_fp_fusion=True)
_COMBINE = Launch(_combine_kernel, num_warps=8, enable_fp_fusion=True)


@impl("gather_logprobs", "triton", priority=20, requires=("triton",), flags=Flags(batch_invariant=True), options={"block": 4096})
def gather_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, num_top: int, *, block: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    num_rows, num_tokens = logits.shape
    selected = num_top if num_top <= _MAX_TOP else 0
    # Each partial result is an allocation of its own: kernels are compiled for addresses that are multiples of 16, and once more
    # for those that are not, and where a part of one tensor begins would follow from the number of rows.
    best, log_sum, logprob = (logits.new_empty(num_rows, dtype=torch.float32) for _ in range(3))
    rank = logits.new_empty(num_rows, dtype=torch.int32)
    values = logits.new_empty(num_rows, num_top, dtype=torch.float32)
    ids = logits.new_empty(num_rows, num_top, dtype=torch.int32)
    if num_rows == 0:
        return logprob, rank, values, ids
    assert logits.stride(1) == 1, "the logits of a row must be contiguous"
    num_blocks = cdiv(num_tokens, block)
    block_best, block_mass = (logits.new_empty(num_rows, num_blocks, dtype=torch.float32) for _ in range(2))
    block_above = logits.new_empty(num_rows, num_blocks, dtype=torch.int32)
    top_keys, top_tokens = (logits.new_empty(num_rows, num_blocks, max(1, selected), dtype=torch.int32) for _ in range(2))
    partials = (block_best, block_mass, block_above, top_keys, top_tokens)
    _PARTIALS((num_rows, num_blocks), logits, token_ids, *partials, num_tokens, logits.stride(0), selected, BLOCK=block)
    _COMBINE(
        (num_rows,),
        logits,
        token_ids,
        *partials,
        best,
        log_sum,
        logprob,
        rank,
        values,
        ids,
        logits.stride(0),
        num_blocks,
        selected,
        BLOCKS=next_power_of_2(num_blocks),
        CANDIDATES=next_power_of_2(num_blocks * _MAX_TOP),
    )
    if num_top > selected:
        scores, order = torch.sort(logits, dim=-1, descending=True, stable=True)
        values = scores[:, :num_top].float() - best[:, None] - log_sum[:, None]
        ids = torch.where(best.isnan()[:, None], -1, order[:, :num_top]).int()
    return logprob, rank, values, ids
