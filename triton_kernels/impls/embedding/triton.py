"""Row gather. The grid is tokens x column blocks; a program loads its token id, and copies one block of that row of
the table through registers, or writes zeros when the row belongs to another shard. Rows are addressed in 64 bits.
Made for tables too large for 32-bit offsets and for shards, where the range test and the zero fill cost no second
kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl


@triton.jit
def _embedding_kernel(ids_ptr, table_ptr, out_ptr, vocab_start, num_local, width, stride_ids, stride_table, BLOCK: tl.constexpr):
    token = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(ids_ptr + token.to(tl.int64) * stride_ids).to(tl.int64) - vocab_start
    # A bound, because Triton 3.9's interpreter refuses masks broadcast from a comparison of scalars.
    readable = tl.where((row >= 0) & (row < num_local), width, 0)
    values = tl.load(table_ptr + row * stride_table + columns, mask=columns < readable, other=0.0)
    tl.store(out_ptr + token.to(tl.int64) * width + columns, values, mask=columns < width)


@impl("embedding", "triton", priority=20, requires=("triton",), flags=Flags(batch_invariant=True), options={"block": 1024})
def embedding(token_ids: torch.Tensor, *, weight: torch.Tensor, vocab_start: int = 0, block: int) -> torch.Tensor:
    assert weight.stride(1) == 1, "rows of the embedding table must be contiguous"
    num_tokens, width = token_ids.shape[0], weight.shape[1]
    out = weight.new_empty(num_tokens, width)
    if out.numel():
        block = min(block, triton.next_power_of_2(width))
        _embedding_kernel[(num_tokens, triton.cdiv(width, block))](
            token_ids,
            weight,
            out,
            vocab_start,
            weight.shape[0],
            width,
            token_ids.stride(0),
            weight.stride(0),
            BLOCK=block,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return out
