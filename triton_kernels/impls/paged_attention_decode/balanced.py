"""Paged decode attention from a work list that is built on the device once per step.

Algorithm: the splits and the combination of ``splitkv``, bit for bit, under another schedule. Grid: a fixed number of
programs, each of which takes every n-th (split, KV head) pair of the list, so that the grid depends neither on the lengths
nor on a bound of them: a captured graph for long sequences launches no idle programs, and a batch of one long request and
many short ones spreads evenly. An item is a triple (request, row block, split); each request finds its place in the list by
summing over the requests before it, in one small kernel shared by all layers of the KV group. Registers and shared memory
hold what they hold in ``splitkv``. It suits captured steps and batches of mixed lengths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from ...attention_meta import AttentionMeta, LayerKV
from ...impl import Flags, impl
from ...spec import Spec
from .._shared.attention import AttentionParams, unsupported_attention
from ._call import DecodeCall, DecodeTiles
from ._kernels import decode_split, split_plan


@triton.jit
def _num_items(requests, mask, cu_q, seq_lens, window, CUTS: tl.constexpr):
    """(row blocks, splits) of requests; no row blocks where masked."""
    first = tl.load(cu_q + requests, mask=mask, other=0)
    num_queries = tl.load(cu_q + requests + 1, mask=mask, other=0) - first
    seq_len = tl.load(seq_lens + requests, mask=mask, other=0)
    _, _, num_splits = split_plan(num_queries, seq_len, window, CUTS)
    return tl.cdiv(num_queries * CUTS.GROUP, CUTS.ROWS), num_splits


@triton.jit(do_not_specialize=["num_reqs"])
def work_list_kernel(
    items, num_items, cu_q, seq_lens, window, num_reqs, CUTS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_I: tl.constexpr
):
    """Program r writes the items of request r; the last one also the length of the list."""
    request = tl.program_id(0)
    start = 0
    for base in range(0, request, BLOCK_R):
        requests = base + tl.arange(0, BLOCK_R)
        blocks, splits = _num_items(requests, requests < request, cu_q, seq_lens, window, CUTS)
        start += tl.sum(blocks * splits, 0)
    blocks, splits = _num_items(request, True, cu_q, seq_lens, window, CUTS)
    for base in range(0, blocks * splits, BLOCK_I):
        item = base + tl.arange(0, BLOCK_I)
        mask = item < blocks * splits
        tl.store(items + 3 * (start + item), tl.zeros_like(item) + request, mask=mask)
        tl.store(items + 3 * (start + item) + 1, item % blocks, mask=mask)
        tl.store(items + 3 * (start + item) + 2, item // blocks, mask=mask)
    if request == num_reqs - 1:
        tl.store(num_items, start + blocks * splits)


@triton.jit(do_not_specialize=["num_tokens"])
def balanced_kernel(
    q,
    k_cache,
    v_cache,
    k_scale,
    v_scale,
    out,
    lse,
    partial,
    partial_lse,
    cu_q,
    seq_lens,
    block_table,
    items,
    num_items,
    sinks,
    alibi,
    scale,
    softcap,
    window,
    num_tokens,
    stride_qt,
    stride_qh,
    stride_table,
    C: tl.constexpr,
    CUTS: tl.constexpr,
):
    tensors = (q, k_cache, v_cache, k_scale, v_scale, out, lse, partial, partial_lse, cu_q, seq_lens, block_table, sinks, alibi)
    strides = (stride_qt, stride_qh, stride_table)
    for index in tl.range(tl.program_id(0), tl.load(num_items) * C.NUM_KV_HEADS, tl.num_programs(0), disable_licm=True):
        item = items + index // C.NUM_KV_HEADS * 3
        request, row_block, split = tl.load(item), tl.load(item + 1), tl.load(item + 2)
        kv_head = index % C.NUM_KV_HEADS
        decode_split(request, kv_head, row_block, split, tensors, strides, scale, softcap, window, num_tokens, C, CUTS)


@impl(
    "paged_attention_decode",
    "balanced",
    priority=65,
    requires=("triton",),
    flags=Flags(batch_invariant=True),
    options={"chunk": 256, "block_n": 0, "num_warps": 0, "num_stages": 0, "num_programs": 0},
    tune_space={"chunk": (128, 256, 512, 1024), "block_n": (32, 64, 128), "num_warps": (4, 8), "num_stages": (2, 3, 4, 5)},
)
class BalancedDecode:
    """``num_programs``: size of the grid; 0 takes what the device holds at once. ``chunk`` as in ``splitkv``."""

    def __init__(
        self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any], *, num_programs: int, **options: int
    ) -> None:
        self.params = AttentionParams.of(spec, weights, params)
        self.tiles = DecodeTiles.choose(spec, **options)
        self.num_programs = num_programs

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return unsupported_attention(spec)

    def begin_step(self, meta: AttentionMeta) -> None:
        """Writes the step's work list into ``meta.workspace``: items int32 [n, 3], and n."""
        work_list_kernel[(meta.num_reqs,)](
            *self._work_list(meta),
            meta.cu_q,
            meta.seq_lens,
            self.params.window or 0,
            meta.num_reqs,
            CUTS=self.tiles.cuts(meta, self.params.window),
            BLOCK_R=128,
            BLOCK_I=64,
            num_warps=1,
            enable_fp_fusion=True,
        )

    def __call__(self, q: torch.Tensor, kv: LayerKV, meta: AttentionMeta) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        call = DecodeCall(q, kv, meta, self.params, self.tiles)
        if meta.num_reqs:  # else nobody wrote the list
            grid = (self.num_programs or self.tiles.num_programs(meta),)
            balanced_kernel[grid](*call.tensors, *self._work_list(meta), **call.arguments, **self.tiles.launch)
        return call.combine()

    def _work_list(self, meta: AttentionMeta) -> tuple[torch.Tensor, torch.Tensor]:
        window, tiles = self.params.window, self.tiles
        bound = meta.num_reqs * tiles.splits(meta, window) * tiles.row_grid(meta)
        key = f"balanced:{window}:{tiles.cuts(meta, window)}"
        return meta.scratch(key, 3 * bound, torch.int32), meta.scratch(f"{key}:length", 1, torch.int32)
