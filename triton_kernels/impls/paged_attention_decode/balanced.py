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
from .._shared.launch import Launch
from ._call import DecodeLayer
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
    items, num_items, cu_q, seq_lens, num_reqs, window, CUTS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_I: tl.constexpr
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
    num_tokens,
    stride_qt,
    stride_qh,
    stride_table,
    sinks,
    bias,
    scale,
    softcap,
    window,
    C: tl.constexpr,
    CUTS: tl.constexpr,
):
    tensors = (q, k_cache, v_cache, k_scale, v_scale, out, lse, partial, partial_lse, cu_q, seq_lens, block_table, sinks, bias)
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
    options={"chunk": 0, "block_n": 0, "num_warps": 0, "num_stages": 0, "num_programs": 0},
    tune_space={"chunk": (128, 256, 512, 1024), "block_n": (32, 64, 128), "num_warps": (4, 8), "num_stages": (2, 3, 4, 5)},
)
class BalancedDecode(DecodeLayer):
    """``num_programs``: size of the grid; 0 takes what the device holds at once. ``chunk`` as in ``splitkv``."""

    kernel = balanced_kernel

    def __init__(
        self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any], *, num_programs: int, **options: int
    ) -> None:
        super().__init__(spec, weights, params, **options)
        self.num_programs, window = num_programs, self.params.window
        self.list_names = {blocks: f"balanced:{window}:{cuts}" for blocks, cuts in self.cuts.items()}
        self.write_list = Launch(work_list_kernel, window=window or 0, BLOCK_R=128, BLOCK_I=64, num_warps=1, enable_fp_fusion=True)

    def begin_step(self, meta: AttentionMeta) -> None:
        """Writes the step's work list into ``meta.workspace``: items int32 [n, 3], and n."""
        cuts = self.cuts[self.tiles.row_blocks(meta)]
        self.write_list((meta.num_reqs,), *self.work(meta), meta.cu_q, meta.seq_lens, meta.num_reqs, CUTS=cuts)

    def grid(self, kv: LayerKV, meta: AttentionMeta) -> tuple[int, ...]:
        return (self.num_programs or self.tiles.num_programs(meta),)

    def work(self, meta: AttentionMeta) -> tuple[torch.Tensor, ...]:
        tiles = self.tiles
        name = self.list_names[tiles.row_blocks(meta)]
        bound = meta.num_reqs * tiles.splits(meta, self.params.window) * tiles.row_grid(meta)
        return meta.scratch(name, 3 * bound, torch.int32), meta.scratch(f"{name}:length", 1, torch.int32)
