"""The two halves of decode attention that its schedules share: one split of one request, and the combination of splits.

A request's keys are cut at multiples of a split size that follows from the request alone: the smallest multiple of the option
``chunk`` with which MAX_SPLITS cover what the request can see. Its result has the same bits whatever else is in the batch. Splits
leave a normalized float32 partial result and its log-sum; the combination adds them in the order of their positions, in tiles
of a fixed shape. A request with one split writes its output directly. Keys are read once for ROW_BLOCKS blocks of rows, each of
which is multiplied alone, so that a row has the same bits whether or not others share its keys.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._shared.attention_loop import LN2, attend
from .._shared.attention_rows import load_rows, store_rows, visible_keys


@triton.jit
def split_plan(num_queries, seq_len, window, CUTS: tl.constexpr):
    """(split size, first split, number of splits) of a request, or of a vector of requests; at least one split each."""
    low = tl.maximum(seq_len - num_queries - window + 1, 0) if CUTS.HAS_WINDOW else seq_len * 0
    size = tl.maximum(tl.cdiv(seq_len - low, CUTS.CHUNK * (CUTS.MAX_SPLITS - 1)), 1) * CUTS.CHUNK
    first = low // size
    return size, first, tl.maximum(tl.cdiv(seq_len, size) - first, 1)


@triton.jit
def decode_split(
    request, kv_head, row_block, split, tensors, strides, scale, softcap, window, num_tokens, C: tl.constexpr, CUTS: tl.constexpr
):
    """ROW_BLOCKS blocks of a request's packed rows against one split of its keys; nothing if the request has no such rows or
    split."""
    q, k_cache, v_cache, k_scale, v_scale, out, lse, partial, partial_lse, cu_q, seq_lens, block_table, sinks, bias = tensors
    stride_qt, stride_qh, stride_table = strides
    first_token = tl.load(cu_q + request)
    num_queries = tl.load(cu_q + request + 1) - first_token
    seq_len = tl.load(seq_lens + request)
    size, first_split, num_splits = split_plan(num_queries, seq_len, window, CUTS)
    first_row = row_block * CUTS.ROWS
    num_rows = num_queries * C.GROUP
    if (split < num_splits) & (first_row < num_rows):
        before = seq_len - num_queries
        has_sink = tl.where((seq_len > 0) & (split == 0), 1, 0)
        BLOCKS: tl.constexpr = C.ROW_BLOCKS
        rows: tl.tuple = ()
        row_sinks: tl.tuple = ()
        for b in tl.static_range(BLOCKS):
            row, sink = load_rows(
                q,
                sinks,
                bias,
                stride_qt,
                stride_qh,
                scale,
                first_token,
                kv_head,
                first_row + b * C.BLOCK_M,
                num_rows,
                before,
                has_sink,
                k_scale is not None,
                C,
            )
            rows += (row,)
            row_sinks += (sink,)
        first_position = before + first_row // C.GROUP
        last_position = before + (tl.minimum(first_row + CUTS.ROWS, num_rows) - 1) // C.GROUP
        low, high, full_begin, full_end = visible_keys(first_position, last_position, seq_len, window, C)
        split_begin = (first_split + split) * size
        split_end = tl.minimum(split_begin + size, high)
        begin = tl.maximum(low // C.BLOCK_N * C.BLOCK_N, split_begin)
        results = attend(
            rows,
            row_sinks,
            (k_cache, v_cache, k_scale, v_scale),
            block_table + request.to(tl.int64) * stride_table,
            kv_head,
            begin,
            tl.maximum(split_end, begin),
            full_begin,
            full_end,
            low,
            high,
            softcap,
            window,
            bias is not None,
            C,
        )
        target = first_token.to(tl.int64)
        for b in tl.static_range(BLOCKS):
            result, log_sum = results[b]
            row = first_row + b * C.BLOCK_M
            if num_splits == 1:
                store_rows(out, lse, result, log_sum * LN2, target, kv_head, row, num_rows, C)
            else:
                split_target = target + split.to(tl.int64) * num_tokens
                store_rows(partial, partial_lse, result, log_sum, split_target, kv_head, row, num_rows, C)


@triton.jit(do_not_specialize=["num_tokens", "num_reqs"])
def combine_kernel(
    out,
    lse,
    partial,
    partial_lse,
    cu_q,
    seq_lens,
    num_tokens,
    num_reqs,
    window,
    CUTS: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    TILE: tl.constexpr,
):
    """Program (head, query, request): the partial results of a request with several splits. One request more than there
    are clears the rows past the last one."""
    head = tl.program_id(0)
    query = tl.program_id(1)
    request = tl.program_id(2)
    num_heads = tl.num_programs(0)
    columns = tl.arange(0, BLOCK_DV)
    first_token = tl.load(cu_q + request).to(tl.int64)
    if request == num_reqs:
        for token in range(query, num_tokens - first_token, tl.num_programs(1)):
            row = (first_token + token) * num_heads + head
            tl.store(out + row * DV + columns, tl.zeros((BLOCK_DV,), out.dtype.element_ty), mask=columns < DV)
            if lse is not None:
                tl.store(lse + row, float("-inf"))
        return
    num_queries = tl.load(cu_q + request + 1) - tl.load(cu_q + request)
    _, _, num_splits = split_plan(num_queries, tl.load(seq_lens + request), window, CUTS)
    if (query >= num_queries) | (num_splits == 1):
        return
    row = (first_token + query) * num_heads + head
    stride = num_tokens.to(tl.int64) * num_heads
    every = tl.arange(0, CUTS.MAX_SPLITS)
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
