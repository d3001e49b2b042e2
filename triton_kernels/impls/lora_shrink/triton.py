"""The first thin GEMM of LoRA, each token with its own adapter. Tokens are grouped by adapter on the device, once per step for all
layers (``moe_align`` with one choice per token; tokens without an adapter belong to none). Grid of the GEMM: row tiles x blocks
of the rank x splits of the features; a program multiplies a tile of one adapter's tokens, read through their indices, with
rows of its A over its share of the features, and leaves a float32 partial sum. A second kernel adds the partial sums in the
order of the splits, scales, and writes 0 for tokens without an adapter. Registers hold the float32 accumulator, shared memory
the pipelined tiles. The output is too narrow to fill a GPU by itself, which is why the features are split; how many ways
depends on their number alone, so that a token's result keeps its bits in any batch. An adapter's weights are read once per
tile of its tokens, not once per token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl
from ...lora_meta import LoraMeta
from ...spec import Spec
from .._shared.launch import Launch, cdiv, next_power_of_2
from .._shared.lora import dtypes_differ
from ..moe_align.triton import group_by_adapter, tile_rows


@triton.jit(do_not_specialize=["num_tokens"])
def _shrink_kernel(
    x_ptr,
    partial_ptr,
    tokens_ptr,
    starts_ptr,
    tile_adapter_ptr,
    num_tokens,
    stride_x,
    a_ptr,
    a_adapter,
    a_row,
    FEATURES: tl.constexpr,
    RANK: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """partial[split, token, r] = x[token] . A[r] over the split's SPLIT features."""
    adapter, rows, inside = tile_rows(starts_ptr, tile_adapter_ptr, tl.program_id(0), BLOCK_M)
    if adapter < 0:
        return
    tokens = tl.load(tokens_ptr + rows, mask=inside, other=0).to(tl.int64)
    rank = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    split = tl.program_id(2)
    ks = tl.arange(0, BLOCK_K)
    x_rows = x_ptr + tokens[:, None] * stride_x
    a_rows = a_ptr + adapter.to(tl.int64) * a_adapter + rank[:, None] * a_row
    acc = tl.zeros((BLOCK_M, BLOCK_R), tl.float64 if INTERPRET else tl.float32)
    for step in tl.range(0, tl.minimum(SPLIT, FEATURES - split * SPLIT), BLOCK_K):
        k = split * SPLIT + step + ks
        x = tl.load(x_rows + k[None, :], mask=inside[:, None] & (k < FEATURES)[None, :], other=0.0)
        a = tl.load(a_rows + k[None, :], mask=(rank < RANK)[:, None] & (k < FEATURES)[None, :], other=0.0)
        if INTERPRET:  # its GEMMs round by their place in the tile, which float64 hides
            acc = tl.dot(x.to(tl.float64), tl.trans(a).to(tl.float64), acc, out_dtype=tl.float64)
        else:
            acc = tl.dot(x, tl.trans(a), acc, input_precision="ieee")
    out = partial_ptr + (split.to(tl.int64) * num_tokens + tokens[:, None]) * RANK + rank[None, :]
    tl.store(out, acc.to(tl.float32), mask=inside[:, None] & (rank < RANK)[None, :])


@triton.jit(do_not_specialize=["num_tokens"])
def _sum_splits_kernel(
    partial_ptr, out_ptr, index_ptr, num_tokens, scale_ptr, RANK: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr
):
    token = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)) // RANK
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = token < num_tokens
    adapter = tl.load(index_ptr + token, mask=valid, other=-1)
    acc = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLITS):
        acc += tl.load(partial_ptr + split * num_tokens.to(tl.int64) * RANK + element, mask=adapter >= 0, other=0.0)
    row = element - token.to(tl.int64) * RANK
    scale = tl.load(scale_ptr + adapter.to(tl.int64) * RANK + row, mask=adapter >= 0, other=0.0)
    tl.store(out_ptr + element, acc * scale, mask=valid)


_SUM_BLOCK = 512


@impl(
    "lora_shrink",
    "triton",
    priority=20,
    requires=("triton",),
    flags=Flags(batch_invariant=True),
    options={"block_m": 16, "block_r": 64, "block_k": 0, "split": 512},
    tune_space={"block_m": (16, 32, 64), "block_k": (64, 128, 256), "split": (256, 512, 1024)},
)
class TritonShrink:
    """``split``: features per program, a multiple of ``block_k``; a block_k of 0 means 128, for float32 32."""

    takes = ("partial",)  # float32 all the same

    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any], **options: int) -> None:
        lora_a, self.block_m = weights["lora_a"], options["block_m"]
        block_k, split = options["block_k"] or (32 if spec.dtype == torch.float32 else 128), options["split"]
        if split % block_k:
            raise ValueError(f"lora_shrink: split={split} is no multiple of block_k={block_k}")
        self.num_adapters, self.rank, features = lora_a.shape
        a_adapter, a_row, a_element = lora_a.stride()
        assert a_element == 1, "rows of A must be contiguous"
        block_r = min(options["block_r"], max(16, next_power_of_2(self.rank)))
        self.num_splits, self.num_blocks = cdiv(features, split), cdiv(self.rank, block_r)
        self.shrink = Launch(
            _shrink_kernel,
            a_ptr=lora_a,
            a_adapter=a_adapter,
            a_row=a_row,
            FEATURES=features,
            RANK=self.rank,
            SPLIT=split,
            BLOCK_M=self.block_m,
            BLOCK_R=block_r,
            BLOCK_K=block_k,
            INTERPRET=spec.interpret,
            num_warps=4,
            num_stages=3,
            enable_fp_fusion=True,
        )
        self.sum_splits = Launch(
            _sum_splits_kernel,
            scale_ptr=weights["scale"],
            RANK=self.rank,
            SPLITS=self.num_splits,
            BLOCK=_SUM_BLOCK,
            num_warps=4,
            enable_fp_fusion=True,
        )

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return dtypes_differ(spec)

    def begin_step(self, meta: LoraMeta) -> None:
        group_by_adapter(meta, self.num_adapters, self.block_m)

    def __call__(self, x: torch.Tensor, meta: LoraMeta) -> torch.Tensor:
        assert x.stride(1) == 1, "features must be contiguous"
        num_tokens = x.shape[0]
        out = x.new_empty(num_tokens, self.rank, dtype=torch.float32)
        if num_tokens == 0:
            return out
        groups = group_by_adapter(meta, self.num_adapters, self.block_m)
        partial = x.new_empty(self.num_splits, num_tokens, self.rank, dtype=torch.float32)
        self.shrink((groups.num_tiles, self.num_blocks, self.num_splits), x, partial, *groups, num_tokens, x.stride(0))
        self.sum_splits((cdiv(out.numel(), _SUM_BLOCK),), partial, out, meta.index, num_tokens)
        return out
