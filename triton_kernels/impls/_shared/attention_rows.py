"""Blocks of query rows in attention kernels: which request and keys they belong to, reading them, and storing their results.

A block holds BLOCK_M packed rows of one request and one KV head: row m is query token m // GROUP and query head m % GROUP of
the heads that share the KV head, so that a short query still fills a matrix instruction. Addresses are a 64-bit scalar and
small 32-bit offsets.
"""

from __future__ import annotations

import triton
import triton.language as tl

FEW_ROWS = tl.constexpr(64)
"""Blocks below it convert more quantized values per row than they have weights."""


@triton.jit
def _packed_rows(first_row, C: tl.constexpr):
    """(token, head) of BLOCK_M rows, counted from token first_row // GROUP and from the first head of the KV head. Known to the
    compiler where GROUP divides BLOCK_M."""
    rows = tl.arange(0, C.BLOCK_M)
    if C.BLOCK_M % C.GROUP != 0:
        rows += first_row % C.GROUP
    return rows // C.GROUP, rows % C.GROUP


@triton.jit
def visible_keys(first, last, seq_len, window, C: tl.constexpr):
    """For rows at positions first..last: keys [begin, end) that some row sees, and the whole tiles [full_begin, full_end)
    that all rows see. ``begin`` is not aligned to tiles; the full range is empty when full_begin >= full_end."""
    begin = 0
    full_begin = 0
    if C.HAS_WINDOW:
        begin = tl.maximum(first - window + 1, 0)
        full_begin = tl.cdiv(tl.maximum(last - window + 1, 0), C.BLOCK_N) * C.BLOCK_N
    end = seq_len
    full_end = seq_len
    if C.CAUSAL:
        end = tl.maximum(last + 1, 0)
        full_end = tl.maximum(first + 1, 0)
    elif C.HAS_WINDOW:
        end = tl.minimum(end, tl.maximum(last + window, 0))
        full_end = tl.minimum(end, tl.maximum(first + window, 0))
    return begin, end, full_begin, full_end // C.BLOCK_N * C.BLOCK_N


@triton.jit
def load_rows(
    q,
    sinks,
    bias,
    stride_qt,
    stride_qh,
    scale,
    first_token,
    kv_head,
    first_row,
    num_rows,
    before,
    has_sink,
    QUANTIZED: tl.constexpr,
    C: tl.constexpr,
):
    """The block from row ``first_row`` of a request with ``num_rows``: ((q, factor of its scores, position, slope), sink). q
    is ([BLOCK_M, BLOCK_DK],), and [BLOCK_M, BLOCK_REST] behind it where keys have a rest; all else is per row. slope: ALiBi's, or,
    with DISTANCES, where the biases of its head lie. ``before``: position of the request's first query; ``has_sink``: 1 if its
    sinks count here, else 0.

    Few queries are multiplied with quantized keys in float16, not in bfloat16: one instruction converts two values. A power of two
    per row, which is divided out of q and joins the factor, keeps bfloat16's range.
    """
    BLOCK_M: tl.constexpr = C.BLOCK_M
    token, head = _packed_rows(first_row, C)
    inside = tl.arange(0, BLOCK_M) < num_rows - first_row
    base_head = kv_head * C.GROUP
    dims = tl.arange(0, C.BLOCK_DK)
    q += (first_token.to(tl.int64) + first_row // C.GROUP) * stride_qt + base_head * stride_qh
    pointers = q + (token * stride_qt + head * stride_qh)[:, None] + dims[None, :]
    block = tl.load(pointers, mask=inside[:, None] & (dims < C.DK)[None, :], other=0.0)
    if C.WIDEN:
        block = block.to(tl.float32)
    factor = tl.full((BLOCK_M,), scale, tl.float32)
    if QUANTIZED and C.BLOCK_M < FEW_ROWS and block.dtype == tl.bfloat16:
        wide = block.to(tl.float32)
        exponent = tl.max(tl.abs(wide), 1).to(tl.int32, bitcast=True) & 0x7F800000
        block = (wide * (0x7F000000 - exponent).to(tl.float32, bitcast=True)[:, None]).to(tl.float16)
        factor *= exponent.to(tl.float32, bitcast=True)
    block = (block,)
    if C.REST > 0:
        dims = tl.arange(0, C.BLOCK_REST)
        pointers = q + (token * stride_qt + head * stride_qh)[:, None] + C.DK + dims[None, :]
        rest = tl.load(pointers, mask=inside[:, None] & (dims < C.REST)[None, :], other=0.0)
        if C.WIDEN:
            rest = rest.to(tl.float32)
        block += (rest,)
    slope = head.to(tl.float32)
    if C.DISTANCES > 0:
        slope = bias + (base_head + head) * C.DISTANCES
    elif bias is not None:
        slope = tl.load(bias + base_head + head, mask=inside, other=0.0).to(tl.float32)
    sink = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    if sinks is not None:
        # A bound: Triton 3.9's interpreter refuses masks broadcast from a comparison of scalars.
        mask = tl.arange(0, BLOCK_M) < (num_rows - first_row) * has_sink
        sink = tl.load(sinks + base_head + head, mask=mask, other=float("-inf")).to(tl.float32)
    return (block, factor, before + first_row // C.GROUP + token, slope), sink


@triton.jit
def store_rows(out, lse, result, log_sum, first_target, kv_head, first_row, num_rows, C: tl.constexpr):
    """Rows of [T, Hq, Dv] and [T, Hq] from token ``first_target`` (64 bits) on; ``log_sum`` in the unit that is stored."""
    token, head = _packed_rows(first_row, C)
    inside = tl.arange(0, C.BLOCK_M) < num_rows - first_row
    columns = tl.arange(0, C.BLOCK_DV)
    first = (first_target + first_row // C.GROUP) * (C.NUM_KV_HEADS * C.GROUP) + kv_head * C.GROUP
    target = token * (C.NUM_KV_HEADS * C.GROUP) + head
    mask = inside[:, None] & (columns < C.DV)[None, :]
    offsets = (target * C.DV)[:, None] + columns[None, :]
    tl.store(out + first * C.DV + offsets, result.to(out.dtype.element_ty), mask=mask)
    if lse is not None:
        tl.store(lse + first + target, log_sum, mask=inside)
