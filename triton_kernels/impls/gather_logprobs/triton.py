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
def _partials_kernel(logits_ptr, token_ids_ptr, partials_ptr, num_tokens, logits_stride, num_top, BLOCK: tl.constexpr):
    """Per row int32, of all blocks: the bits of their maxima and of their sums, how many logits are above the chosen one, and the
    keys, then the tokens, of their best."""
    row, num_blocks = tl.program_id(0).to(tl.int64), tl.num_programs(1)
    here = partials_ptr + row * num_blocks * (3 + 2 * num_top) + tl.program_id(1)
    logits_ptr += row * logits_stride
    tokens = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = tokens < num_tokens
    scores = tl.load(logits_ptr + tokens, mask=mask, other=float("-inf")).to(tl.float32)
    broken = (scores != scores) | (scores == float("inf"))
    scores = tl.where(broken, float("-inf"), scores)
    best = tl.max(scores, 0)
    shown = tl.where(tl.max(broken.to(tl.int32), 0) > 0, float("inf"), best)
    tl.store(here, shown.to(tl.int32, bitcast=True))
    tl.store(here + num_blocks, tl.sum(tl.exp(scores - tl.maximum(best, -3.4e38)), 0).to(tl.int32, bitcast=True))
    chosen = tl.load(logits_ptr + tl.maximum(tl.load(token_ids_ptr + row), 0)).to(tl.float32)
    tl.store(here + 2 * num_blocks, tl.sum((scores > chosen).to(tl.int32), 0))

    here += 3 * num_blocks + tl.program_id(1) * (num_top - 1)
    keys = tl.where(mask, float_key(scores), _TAKEN)
    for i in range(num_top):
        key, index = tl.max(keys, 0, return_indices=True, return_indices_tie_break_left=True)
        tl.store(here + i, key)
        tl.store(here + num_blocks * num_top + i, tl.program_id(1) * BLOCK + index)
        keys = tl.where(tl.arange(0, BLOCK) == index, _TAKEN, keys)


@triton.jit(do_not_specialize=["num_top"], do_not_specialize_on_alignment=["token_ids_ptr"])
def _combine_kernel(
    logits_ptr,
    token_ids_ptr,
    partials_ptr,
    norms_ptr,
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
    partials_ptr += row * num_blocks * (3 + 2 * num_top)
    blocks = partials_ptr + tl.arange(0, BLOCKS)
    mask = tl.arange(0, BLOCKS) < num_blocks
    block_best = tl.load(blocks, mask=mask, other=0).to(tl.float32, bitcast=True)
    block_best = tl.where(mask, block_best, float("-inf"))
    best = tl.max(block_best, 0)
    valid = (best > float("-inf")) & (best < float("inf"))
    best = tl.where(valid, best, float("nan"))
    block_mass = tl.load(blocks + num_blocks, mask=mask, other=0).to(tl.float32, bitcast=True)
    log_sum = tl.log(tl.sum(block_mass * tl.exp(block_best - best), 0))
    tl.store(norms_ptr + 2 * row, best)
    tl.store(norms_ptr + 2 * row + 1, log_sum)

    token = tl.load(token_ids_ptr + row)
    chosen = tl.load(logits_ptr + row * logits_stride + tl.maximum(token, 0)).to(tl.float32)
    known = valid & (token >= 0)
    tl.store(logprob_ptr + row, tl.where(known, chosen - best - log_sum, float("nan")))
    above = tl.sum(tl.load(blocks + 2 * num_blocks, mask=mask, other=0), 0)
    tl.store(rank_ptr + row, tl.where(known, 1 + above, 0))

    candidates = tl.arange(0, CANDIDATES)
    keys_ptr, num_candidates = partials_ptr + 3 * num_blocks, num_blocks * num_top
    keys = tl.load(keys_ptr + candidates, mask=candidates < num_candidates, other=_TAKEN)
    for i in range(num_top):
        key, index = tl.max(keys, 0, return_indices=True, return_indices_tie_break_left=True)
        tl.store(values_ptr + row * num_top + i, key_float(key) - best - log_sum)
        tl.store(ids_ptr + row * num_top + i, tl.where(valid, tl.load(keys_ptr + num_candidates + index), -1))
        keys = tl.where(candidates == index, _TAKEN, keys)


_PARTIALS = Launch(_partials_kernel, num_warps=8, enable_fp_fusion=True)
_COMBINE = Launch(_combine_kernel, num_warps=8, enable_fp_fusion=True)


@impl("gather_logprobs", "triton", priority=20, requires=("triton",), flags=Flags(batch_invariant=True), options={"block": 4096})
def gather_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, num_top: int, *, block: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    num_rows, num_tokens = logits.shape
    selected = num_top if num_top <= _MAX_TOP else 0
    logprob = logits.new_empty(num_rows, dtype=torch.float32)
    rank = logits.new_empty(num_rows, dtype=torch.int32)
    values = logits.new_empty(num_rows, num_top, dtype=torch.float32)
    ids = logits.new_empty(num_rows, num_top, dtype=torch.int32)
    if num_rows == 0:
        return logprob, rank, values, ids
    assert logits.stride(1) == 1, "the logits of a row must be contiguous"
    num_blocks = cdiv(num_tokens, block)
    # One allocation, in which rows come first: kernels are compiled for addresses that are multiples of 16, and once more for those
    # that are not, and where a part behind all rows of another begins would follow from their number.
    partials = logits.new_empty(num_rows, num_blocks * (3 + 2 * selected), dtype=torch.int32)
    norms = logits.new_empty(num_rows, 2, dtype=torch.float32)
    _PARTIALS((num_rows, num_blocks), logits, token_ids, partials, num_tokens, logits.stride(0), selected, BLOCK=block)
    _COMBINE(
        (num_rows,),
        logits,
        token_ids,
        partials,
        norms,
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
        best, log_sum = norms.split(1, dim=1)
        values = scores[:, :num_top].float() - best - log_sum
        ids = torch.where(best.isnan(), -1, order[:, :num_top]).int()
    return logprob, rank, values, ids
