"""Row gather. The grid is tokens x column blocks; a program loads its token id, and copies one block of that row of
the table through registers, or writes zeros when the row belongs to another shard. Rows are addressed in 64 bits.
Made for tables too large for 32-bit offsets and for shards, where the range test and the zero fill cost no second
kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl
from ...spec import Spec
from .._shared.launch import Launch, cdiv, next_power_of_2


@triton.jit
def _embedding_kernel(ids_ptr, out_ptr, stride_ids, table_ptr, vocab_start, num_local, width, stride_table, BLOCK: tl.constexpr):
    token = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(ids_ptr + token.to(tl.int64) * stride_ids).to(tl.int64) - vocab_start
    # A bound, because Triton 3.9's interpreter refuses masks broadcast from a comparison of scalars.
    readable = tl.where((row >= 0) & (row < num_local), width, 0)
    values = tl.load(table_ptr + row * stride_table + columns, mask=columns < readable, other=0.0)
    tl.store(out_ptr + token.to(tl.int64) * width + columns, values, mask=columns < width)


@impl("embedding", "triton", priority=20, requires=("triton",), flags=Flags(batch_invariant=True), options={"block": 1024})
class EmbeddingTriton:
    """``block``: columns that a program copies."""

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return ["reads rows that lie in one piece, not panels"] if spec.fact("panels", False) else []

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any], block: int) -> None:
        self.weight = weights["weight"]
        num_local, width = self.weight.shape
        assert self.weight.stride(1) == 1, "rows of the embedding table must be contiguous"
        block = min(block, next_power_of_2(width))
        self.num_blocks = cdiv(width, block)
        self.launch = Launch(
            _embedding_kernel,
            table_ptr=self.weight,
            vocab_start=params.get("vocab_start", 0),
            num_local=num_local,
            width=width,
            stride_table=self.weight.stride(0),
            BLOCK=block,
            num_warps=4,
            enable_fp_fusion=True,
        )

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        num_tokens = token_ids.shape[0]
        out = self.weight.new_empty(num_tokens, self.weight.shape[1])
        if out.numel():
            self.launch((num_tokens, self.num_blocks), token_ids, out, token_ids.stride(0))
        return out
