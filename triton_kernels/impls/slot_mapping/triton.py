"""The slots of a step's tokens in the paged cache, from the block table on the device. The grid is blocks of tokens; each
token of a program finds its request by a binary search over cu_q, in step with the others of its block, then reads its page
and writes its slot. Everything lives in registers; cu_q, the lengths and the few pages that a step touches come from the L2
cache. One short launch takes the place of an array that the host would compute and copy in every step, and it can be part of
a captured graph, in which only positions, lengths and tables change.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...impl import impl
from .._shared.launch import Launch, cdiv


@triton.jit(do_not_specialize=["num_tokens", "num_reqs", "num_halvings", "stride_table"])
def _slot_mapping_kernel(
    positions,
    cu_q,
    seq_lens,
    block_table,
    slots,
    num_tokens,
    num_reqs,
    num_halvings,
    stride_table,
    PAGE_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    low = tl.zeros([BLOCK], tl.int32)
    high = low + num_reqs
    for _ in range(num_halvings):  # the first request that ends behind the token lies in low .. high
        middle = (low + high) // 2
        end = tl.load(cu_q + 1 + middle, mask=low < high, other=0)
        before = (low < high) & (end <= token)
        high = tl.where(before, high, middle)
        low = tl.where(before, middle + 1, low)
    owned = (token < num_tokens) & (low < num_reqs)
    owned = owned & (tl.load(seq_lens + low, mask=owned, other=0) > 0)
    position = tl.load(positions + token, mask=owned, other=0)
    page = tl.load(block_table + low.to(tl.int64) * stride_table + position // PAGE_SIZE, mask=owned, other=0)
    slot = page.to(tl.int64) * PAGE_SIZE + position % PAGE_SIZE
    tl.store(slots + token, tl.where(owned, slot, -1), mask=token < num_tokens)


_LAUNCH = Launch(_slot_mapping_kernel, num_warps=4, enable_fp_fusion=True)


@impl("slot_mapping", "triton", priority=20, requires=("triton",), options={"block": 128})
def slot_mapping_triton(
    positions: torch.Tensor, cu_q: torch.Tensor, seq_lens: torch.Tensor, block_table: torch.Tensor, page_size: int, *, block: int
) -> torch.Tensor:
    assert positions.is_contiguous() and cu_q.is_contiguous() and seq_lens.is_contiguous() and block_table.stride(1) == 1
    slots, num_tokens, num_reqs = torch.empty_like(positions), positions.shape[0], seq_lens.shape[0]
    if num_tokens:
        _LAUNCH(
            (cdiv(num_tokens, block),),
            positions,
            cu_q,
            seq_lens,
            block_table,
            slots,
            num_tokens,
            num_reqs,
            num_reqs.bit_length(),
            block_table.stride(0),
            PAGE_SIZE=page_size,
            BLOCK=block,
        )
    return slots
