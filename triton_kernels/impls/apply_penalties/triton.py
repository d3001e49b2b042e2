"""Everything that changes logits before the random choice, in one pass. Grid (rows, blocks of the vocabulary): a program
owns ``block`` logits of one row, keeps them in registers, and reads the bits and counts of its tokens once. The few bias
entries of a row are scanned by every program; only those that fall into its block cost more than a compare. The drafts before a
row, few too, are compared with all tokens of a block. Programs
whose row uses nothing return before they touch a logit, so that a batch without penalties costs a launch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl
from .._shared.launch import Launch, cdiv, next_power_of_2


@triton.jit
def _bits(words_ptr, tokens, mask):
    words = tl.load(words_ptr + tokens // 32, mask=mask, other=0)
    return (words >> (tokens % 32)) & 1


@triton.jit(do_not_specialize=["num_bias", "bias_stride", "num_drafts", "drafts_stride"])
def _penalties_kernel(
    logits_ptr,
    row_to_seat_ptr,
    bitmask_ptr,
    prompt_mask_ptr,
    output_counts_ptr,
    repetition_ptr,
    frequency_ptr,
    presence_ptr,
    bias_ids_ptr,
    bias_values_ptr,
    drafts_ptr,
    num_tokens,
    num_bias,
    num_drafts,
    logits_stride,
    bitmask_stride,
    prompt_stride,
    counts_stride,
    bias_stride,
    drafts_stride,
    HAS_BITMASK: tl.constexpr,
    BIAS_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    seat = tl.load(row_to_seat_ptr + row).to(tl.int64)
    if seat < 0:
        return
    start = tl.program_id(1) * BLOCK
    entries = tl.arange(0, BIAS_BLOCK)
    bias_ids_ptr += seat * bias_stride
    bias_values_ptr += seat * bias_stride
    ids = tl.load(bias_ids_ptr + entries, mask=entries < num_bias, other=-1)
    num_here = tl.sum(((ids >= start) & (ids < start + BLOCK)).to(tl.int32))
    repetition = tl.load(repetition_ptr + seat)
    frequency = tl.load(frequency_ptr + seat)
    presence = tl.load(presence_ptr + seat)
    penalized = (repetition != 1) | (frequency != 0) | (presence != 0)
    if (penalized | (num_here > 0) | HAS_BITMASK) == 0:
        return

    tokens = start + tl.arange(0, BLOCK)
    mask = tokens < num_tokens
    pointers = logits_ptr + row * logits_stride + tokens
    values = tl.load(pointers, mask=mask, other=0.0)
    if HAS_BITMASK:
        allowed = _bits(bitmask_ptr + row * bitmask_stride, tokens, mask)
        values = tl.where(allowed != 0, values, float("-inf"))
    if num_here > 0:
        for entry in range(num_bias):
            token = tl.load(bias_ids_ptr + entry)
            if (token >= start) & (token < start + BLOCK):
                values += tl.where(tokens == token, tl.load(bias_values_ptr + entry), 0.0)
    if penalized:
        counts = tl.load(output_counts_ptr + seat * counts_stride + tokens, mask=mask, other=0)
        for entry in range(num_drafts):
            counts += (tokens == tl.load(drafts_ptr + row * drafts_stride + entry)).to(tl.int32)
        seen = (_bits(prompt_mask_ptr + seat * prompt_stride, tokens, mask) != 0) | (counts > 0)
        values = tl.where(seen, tl.where(values > 0, values / repetition, values * repetition), values)
        values -= frequency * counts + tl.where(counts > 0, presence, 0.0)
    tl.store(pointers, values, mask=mask)


_LAUNCH = Launch(_penalties_kernel, num_warps=8, enable_fp_fusion=True)


@impl("apply_penalties", "triton", priority=20, requires=("triton",), flags=Flags(batch_invariant=True), options={"block": 4096})
def apply_penalties(
    logits: torch.Tensor,
    row_to_seat: torch.Tensor,
    bitmask: torch.Tensor | None,
    prompt_mask: torch.Tensor,
    output_counts: torch.Tensor,
    repetition: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
    bias_ids: torch.Tensor,
    bias_values: torch.Tensor,
    drafts: torch.Tensor | None,
    *,
    block: int,
) -> None:
    num_rows, num_tokens = logits.shape
    if logits.numel() == 0:
        return
    num_bias = bias_ids.shape[1]
    assert logits.stride(1) == 1 and bias_ids.stride() == bias_values.stride(), "rows must be contiguous"
    _LAUNCH(
        (num_rows, cdiv(num_tokens, block)),
        logits,
        row_to_seat,
        prompt_mask if bitmask is None else bitmask,
        prompt_mask,
        output_counts,
        repetition,
        frequency,
        presence,
        bias_ids,
        bias_values,
        bias_ids if drafts is None else drafts,
        num_tokens,
        num_bias,
        0 if drafts is None else drafts.shape[1],
        logits.stride(0),
        0 if bitmask is None else bitmask.stride(0),
        prompt_mask.stride(0),
        output_counts.stride(0),
        bias_ids.stride(0),
        0 if drafts is None else drafts.stride(0),
        HAS_BITMASK=bitmask is not None,
        BIAS_BLOCK=next_power_of_2(max(1, num_bias)),
        BLOCK=block,
    )
