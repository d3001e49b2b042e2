"""The two halves of decode attention that its schedules share: one split of one request, and the combination of splits.

A request's keys are cut at multiples of a split size that follows from the request alone: the smallest multiple of the option
``chunk`` with which MAX_SPLITS cover what the request can see. Its result has the same bits whatever else is in the batch. Splits
leave a normalized float32 partial result and its log-sum; the combination adds them in the order of their positions, in tiles
of a fixed shape. A request with one split writes its output directly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from ...attention_meta import AttentionMeta, LayerKV
from ...spec import Spec
from .._shared.attention import LN2, AttentionParams, attend, cache_strides, packed_rows, visible_keys

MAX_SPLITS = tl.constexpr(64)


@triton.jit
def split_plan(num_queries, seq_len, window, HAS_WINDOW: tl.constexpr, CHUNK: tl.constexpr):
    """(split size, first split, number of splits) of a request, or of a vector of requests; at least one split each."""
    low = tl.maximum(seq_len - num_queries - window + 1, 0) if HAS_WINDOW else seq_len * 0
    size = tl.maximum(tl.cdiv(seq_len - low, CHUNK * (MAX_SPLITS - 1)), 1) * CHUNK
    first = low // size
    return size, first, tl.maximum(tl.cdiv(seq_len, size) - first, 1)


@triton.jit
def decode_split(
    request,
    kv_head,
    m_block,
    split,
    tensors,
    strides,
    scale,
    softcap,
    window,
    num_tokens,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    WIDEN: tl.constexpr,
    PIN: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DK: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    STRIDES: tl.constexpr,
):
    """One block of a request's packed rows against one split of its keys; nothing if the request has no such block or split."""
    q, k_cache, v_cache, k_scale, v_scale, out, lse, partial, partial_lse, cu_q, seq_lens, block_table, sinks, alibi = tensors
    stride_qt, stride_qh, stride_table = strides
    first_token = tl.load(cu_q + request)
    num_queries = tl.load(cu_q + request + 1) - first_token
    seq_len = tl.load(seq_lens + request)
    size, first_split, num_splits = split_plan(num_queries, seq_len, window, HAS_WINDOW, CHUNK)
    first_row = m_block * BLOCK_M
    num_rows = num_queries * GROUP
    if (split < num_splits) & (first_row < num_rows):
        token, head = packed_rows(first_row, GROUP, BLOCK_M)
        inside = tl.arange(0, BLOCK_M) < num_rows - first_row
        base_token = first_token.to(tl.int64) + first_row // GROUP
        base_head = kv_head * GROUP
        dims = tl.arange(0, BLOCK_DK)
        q += base_token * stride_qt + base_head * stride_qh
        q_pointers = q + (token * stride_qt + head * stride_qh)[:, None] + dims[None, :]
        q_block = tl.load(q_pointers, mask=inside[:, None] & (dims < DK)[None, :], other=0.0)
        if WIDEN:
            q_block = q_block.to(tl.float32)
        slope = head.to(tl.float32)
        if alibi is not None:
            slope = tl.load(alibi + base_head + head, mask=inside, other=0.0).to(tl.float32)
        sink = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        if sinks is not None:
            # A bound: Triton 3.9's interpreter refuses masks broadcast from a comparison of scalars.
            rows_with_sink = tl.where((seq_len > 0) & (split == 0), num_rows - first_row, 0)
            sink_mask = tl.arange(0, BLOCK_M) < rows_with_sink
            sink = tl.load(sinks + base_head + head, mask=sink_mask, other=float("-inf")).to(tl.float32)

        before = seq_len - num_queries
        first_position = before + first_row // GROUP
        last_position = before + (tl.minimum(first_row + BLOCK_M, num_rows) - 1) // GROUP
        low, high, full_begin, full_end = visible_keys(first_position, last_position, seq_len, window, CAUSAL, HAS_WINDOW, BLOCK_N)
        split_begin = (first_split + split) * size
        split_end = tl.minimum(split_begin + size, high)
        begin = tl.maximum(low // BLOCK_N * BLOCK_N, split_begin)
        kv = (k_cache, v_cache, k_scale, v_scale)
        table = block_table + request.to(tl.int64) * stride_table
        result, log_sum = attend(
            q_block,
            first_position + token,
            slope,
            sink,
            kv,
            table,
            kv_head,
            begin,
            tl.maximum(split_end, begin),
            full_begin,
            full_end,
            low,
            high,
            scale,
            softcap,
            window,
            CAUSAL,
            HAS_WINDOW,
            HAS_SOFTCAP,
            alibi is not None,
            DK,
            DV,
            BLOCK_DK,
            BLOCK_DV,
            BLOCK_N,
            PAGE_SIZE,
            STRIDES,
            False,
            PIN,
        )

        columns = tl.arange(0, BLOCK_DV)
        mask = inside[:, None] & (columns < DV)[None, :]
        first_target = base_token * (NUM_KV_HEADS * GROUP) + base_head
        target = token * (NUM_KV_HEADS * GROUP) + head
        offsets = (target * DV)[:, None] + columns[None, :]
        if num_splits == 1:
            tl.store(out + first_target * DV + offsets, result.to(out.dtype.element_ty), mask=mask)
            if lse is not None:
                tl.store(lse + first_target + target, log_sum * LN2, mask=inside)
        else:
            first_target += split.to(tl.int64) * num_tokens * (NUM_KV_HEADS * GROUP)
            tl.store(partial + first_target * DV + offsets, result, mask=mask)
            tl.store(partial_lse + first_target + target, log_sum, mask=inside)


@triton.jit(do_not_specialize=["num_tokens", "num_reqs"])
def combine_kernel(
    out,
    lse,
    partial,
    partial_lse,
    cu_q,
    seq_lens,
    window,
    num_tokens,
    num_reqs,
    HAS_WINDOW: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Program (head, query, request): the partial results of a request with several splits. One request more than there
    are clears the rows past the last one."""
    head = tl.program_id(0)
    query = tl.program_id(1)
    request = tl.program_id(2)
    columns = tl.arange(0, BLOCK_DV)
    first_token = tl.load(cu_q + request).to(tl.int64)
    if request == num_reqs:
        for token in range(query, num_tokens - first_token, tl.num_programs(1)):
            row = (first_token + token) * NUM_HEADS + head
            tl.store(out + row * DV + columns, tl.zeros((BLOCK_DV,), out.dtype.element_ty), mask=columns < DV)
            if lse is not None:
                tl.store(lse + row, float("-inf"))
        return
    num_queries = tl.load(cu_q + request + 1) - tl.load(cu_q + request)
    _, _, num_splits = split_plan(num_queries, tl.load(seq_lens + request), window, HAS_WINDOW, CHUNK)
    if (query >= num_queries) | (num_splits == 1):
        return
    row = (first_token + query) * NUM_HEADS + head
    stride = num_tokens.to(tl.int64) * NUM_HEADS
    every = tl.arange(0, MAX_SPLITS)
    all_sums = tl.load(partial_lse + row + every * stride, mask=every < num_splits, other=float("-inf"))
    peak = tl.max(all_sums, 0)
    total = tl.sum(tl.exp2(all_sums - peak), 0)
    acc = tl.zeros((BLOCK_DV,), tl.float32)
    for start in range(0, num_splits, TILE):
        splits = start + tl.arange(0, TILE)
        log_sums = tl.load(partial_lse + row + splits * stride, mask=splits < num_splits, other=float("-inf"))
        pointers = partial + (row + splits * stride)[:, None] * DV + columns[None, :]
        values = tl.load(pointers, mask=(splits < num_splits)[:, None] & (columns < DV)[None, :], other=0.0)
        acc += tl.sum(values * tl.exp2(log_sums - peak)[:, None], 0)
    tl.store(out + row * DV + columns, (acc / total).to(out.dtype.element_ty), mask=columns < DV)
    if lse is not None:
        tl.store(lse + row, (peak + tl.log2(total)) * LN2)


@dataclass(frozen=True)
class DecodeTiles:
    """Sizes that fix how a request's keys are cut, and how a program is compiled. None depends on the batch, nor on the
    number of queries, or the bits of a row would."""

    chunk: int
    block_m: int
    block_n: int
    num_warps: int
    num_stages: int

    @classmethod
    def choose(cls, spec: Spec, chunk: int, block_n: int, num_warps: int, num_stages: int) -> DecodeTiles:
        """Options of 0 follow the arch and the head size: tiles of heads above 128 have half the keys, or registers spill. A block
        has the query heads of a KV head, at least the 16 rows of a matrix instruction."""
        group = spec.fact("num_heads", 1) // spec.fact("num_kv_heads", 1)
        default_n = 32 if spec.arch.startswith("gfx") or spec.fact("head_dim", 128) > 128 else 64
        default_stages = 2 if spec.arch.startswith("gfx") else 3
        block_n = block_n or default_n
        if chunk % block_n or block_n & (block_n - 1):
            raise ValueError(f"chunk must be a multiple of block_n, which is a power of two; got {chunk} and {block_n}")
        block_m = max(16, triton.next_power_of_2(group))
        return cls(chunk, block_m, block_n, num_warps or 4, num_stages or default_stages)

    @property
    def launch(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


class DecodeCall:
    """One call of a decode impl: its outputs, its partial results, and the arguments that the kernels share."""

    def __init__(self, q: torch.Tensor, kv: LayerKV, meta: AttentionMeta, params: AttentionParams, tiles: DecodeTiles) -> None:
        q = q if q.stride(2) == 1 else q.contiguous()
        num_tokens, num_heads, dk = q.shape
        num_kv_heads, dv = kv.v.shape[2:]
        self.out = torch.empty(num_tokens, num_heads, dv, dtype=q.dtype, device=q.device)
        self.lse = torch.empty(num_tokens, num_heads, dtype=torch.float32, device=q.device) if params.return_lse else None
        self.num_splits = max_splits(meta, params.window, tiles.chunk)
        self.num_m_blocks = triton.cdiv(meta.max_q * num_heads // num_kv_heads, tiles.block_m)
        self.meta, self.params, self.num_heads, self.dv, self.chunk = meta, params, num_heads, dv, tiles.chunk
        rows = self.num_splits * num_tokens * num_heads  # partial results [splits, T * Hq, Dv] and log-sums, for all layers
        self.partial = meta.scratch("decode_partials", rows * dv, torch.float32)
        self.partial_lse = meta.scratch("decode_partial_lse", rows, torch.float32)
        self.tensors = (
            q,
            kv.k,
            kv.v,
            kv.k_scale,
            kv.v_scale,
            self.out,
            self.lse,
            self.partial,
            self.partial_lse,
            meta.cu_q,
            meta.seq_lens,
            meta.block_table,
        )
        self.arguments: dict[str, Any] = dict(
            num_tokens=num_tokens,
            stride_qt=q.stride(0),
            stride_qh=q.stride(1),
            stride_table=meta.block_table.stride(0),
            STRIDES=cache_strides(kv),
            **params.kernel_args(),
            NUM_KV_HEADS=num_kv_heads,
            GROUP=num_heads // num_kv_heads,
            DK=dk,
            DV=dv,
            BLOCK_DK=max(16, triton.next_power_of_2(dk)),
            BLOCK_DV=max(16, triton.next_power_of_2(dv)),
            BLOCK_M=tiles.block_m,
            BLOCK_N=tiles.block_n,
            CHUNK=tiles.chunk,
            PAGE_SIZE=kv.page_size,
            PIN=params.pin,
        )

    def combine(self) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Adds up the splits and gives the op's result."""
        args = self.arguments
        combine_kernel[(self.num_heads, self.meta.max_q, self.meta.num_reqs + 1)](
            self.out,
            self.lse,
            self.partial,
            self.partial_lse,
            self.meta.cu_q,
            self.meta.seq_lens,
            args["window"],
            args["num_tokens"],
            self.meta.num_reqs,
            HAS_WINDOW=args["HAS_WINDOW"],
            NUM_HEADS=self.num_heads,
            DV=self.dv,
            BLOCK_DV=args["BLOCK_DV"],
            CHUNK=self.chunk,
            TILE=16,
            num_warps=2,
            enable_fp_fusion=True,
        )
        return self.out if self.lse is None else (self.out, self.lse)


def max_splits(meta: AttentionMeta, window: int | None, chunk: int) -> int:
    """Upper bound of the splits of any request, from host integers."""
    span = meta.max_seq_len if window is None else min(meta.max_seq_len, window + meta.max_q)
    return max(1, min(MAX_SPLITS.value, triton.cdiv(span, chunk) + (window is not None)))
