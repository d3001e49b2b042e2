"""The kernels of ``gated_delta_rule``; what they are for is said in ``triton.py``."""

from __future__ import annotations

import triton
import triton.language as tl

from .._shared.chunked_state import chunk_step, decay_between, product
from .._shared.request_blocks import find_request


@triton.jit
def _gates(a_ptrs, b_ptrs, a_log_ptr, dt_bias_ptr, head):
    """f32: the logarithm of the decay, and the rate."""
    a = tl.load(a_ptrs).to(tl.float32) + tl.load(dt_bias_ptr + head)
    softplus = tl.where(a > 20.0, a, tl.log(1.0 + tl.exp(tl.minimum(a, 20.0))))
    return -tl.exp(tl.load(a_log_ptr + head)) * softplus, tl.sigmoid(tl.load(b_ptrs).to(tl.float32))


@triton.jit
def _inverse(lower):
    """(1 + lower)^-1 of a strictly lower f32 [n, n], column by column."""
    n: tl.constexpr = lower.shape[0]
    rows, columns = tl.arange(0, n)[:, None], tl.arange(0, n)[None, :]
    found = tl.where(rows == columns, 1.0, 0.0)
    for i in range(n - 1):
        column = tl.sum(tl.where(columns == i, lower, 0.0), axis=1)
        row = tl.sum(tl.where(rows == i, found, 0.0), axis=0)
        found -= column[:, None] * row[None, :]
    return found


@triton.jit(do_not_specialize=["num_tokens", "num_reqs"])
def prepare_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    a_ptr,
    b_ptr,
    keys_ptr,
    values_ptr,
    scores_ptr,
    rows_ptr,
    cu_q,
    slots,
    num_tokens,
    num_reqs,
    stride_q,
    stride_k,
    stride_v,
    stride_a,
    stride_b,
    a_log_ptr,
    dt_bias_ptr,
    scale,
    C: tl.constexpr,
):
    """Of a chunk and a head: keys [n, K] that read what the state has of the values, values [n, V] to put in place of it, scores
    [n, n] of queries and keys, and, f32 [3, n], G and the factors of q and of k."""
    block, head = tl.program_id(0), tl.program_id(1)
    request = find_request(cu_q, num_reqs, block, 1, C.CHUNK)
    first_token = tl.load(cu_q + request)
    length = tl.load(cu_q + request + 1) - first_token
    start = (block - first_token // C.CHUNK - request) * C.CHUNK
    if (start >= length) | (length <= C.MAX_RECURRENT) | (tl.load(slots + request) < 0):
        return
    first = (first_token + start).to(tl.int64)
    n, d, e = tl.arange(0, C.CHUNK), tl.arange(0, C.BLOCK_K), tl.arange(0, C.BLOCK_V)
    inside = n < length - start
    # Rows behind the last are the last once more, and come to nothing: masks of rows would take registers.
    row = tl.minimum(n, length - start - 1)
    has_k, has_v = (d < C.K_DIM)[None, :], (e < C.V_DIM)[None, :]
    k_head = head // C.GROUP * C.K_DIM
    q = tl.load(q_ptr + first * stride_q + k_head + row[:, None] * stride_q + d[None, :], mask=has_k, other=0.0).to(tl.float32)
    q_scale = scale * tl.rsqrt(tl.sum(q * q, axis=1) + C.NORM_EPS)
    k = tl.load(k_ptr + first * stride_k + k_head + row[:, None] * stride_k + d[None, :], mask=has_k, other=0.0)
    k_scale = tl.rsqrt(tl.sum(k.to(tl.float32) * k.to(tl.float32), axis=1) + C.NORM_EPS)
    a_ptrs, b_ptrs = a_ptr + first * stride_a + head + row * stride_a, b_ptr + first * stride_b + head + row * stride_b
    gate, rate = _gates(a_ptrs, b_ptrs, a_log_ptr, dt_bias_ptr, head)
    total = tl.cumsum(gate, axis=0)
    between = decay_between(total)
    if C.SLICE < C.BLOCK_K:
        scores, alike = tl.full((C.CHUNK, C.CHUNK), 0.0, tl.float32), tl.full((C.CHUNK, C.CHUNK), 0.0, tl.float32)
        for begin in range(0, C.BLOCK_K, C.SLICE):
            part = begin + tl.arange(0, C.SLICE)
            mask = (part < C.K_DIM)[None, :]
            of_q, of_k = row[:, None] * stride_q + part[None, :], row[:, None] * stride_k + part[None, :]
            q_part = tl.load(q_ptr + first * stride_q + k_head + of_q, mask=mask, other=0.0)
            k_part = tl.load(k_ptr + first * stride_k + k_head + of_k, mask=mask, other=0.0)
            scores += product(q_part, tl.trans(k_part), k_ptr.dtype.element_ty, C.INTERPRET)
            alike += product(k_part, tl.trans(k_part), q_ptr.dtype.element_ty, C.INTERPRET)
    else:
        scores = product(q, tl.trans(k), k_ptr.dtype.element_ty, C.INTERPRET)
        alike = product(k, tl.trans(k), q_ptr.dtype.element_ty, C.INTERPRET)
    scores *= between * q_scale[:, None] * k_scale[None, :]
    alike *= (rate * k_scale)[:, None] * k_scale[None, :]
    lower = tl.where(n[:, None] > n[None, :], alike * between, 0.0)
    solved = _inverse(lower) * rate[None, :]
    v = tl.load(v_ptr + first * stride_v + head * C.V_DIM + row[:, None] * stride_v + e[None, :], mask=has_v, other=0.0)
    values = product(solved, v, q_ptr.dtype.element_ty, C.INTERPRET)
    keys = product(solved * (tl.exp(total) * k_scale)[None, :], k, q_ptr.dtype.element_ty, C.INTERPRET)
    at = first * C.NUM_HEADS + head + n * C.NUM_HEADS
    tl.store(keys_ptr + at[:, None] * C.K_DIM + d[None, :], keys.to(keys_ptr.dtype.element_ty), mask=inside[:, None] & has_k)
    tl.store(values_ptr + at[:, None] * C.V_DIM + e[None, :], values.to(values_ptr.dtype.element_ty), mask=inside[:, None] & has_v)
    tl.store(scores_ptr + at[:, None] * C.CHUNK + n[None, :], scores.to(scores_ptr.dtype.element_ty), mask=inside[:, None])
    rows = rows_ptr + head.to(tl.int64) * num_tokens + first + n
    plane = tl.cast(num_tokens, tl.int64) * C.NUM_HEADS
    last = tl.sum(tl.where(n == tl.minimum(length - start, C.CHUNK) - 1, total, 0.0), axis=0)
    tl.store(rows, total, mask=inside)
    tl.store(rows + plane, q_scale * tl.exp(total), mask=inside)
    tl.store(rows + 2 * plane, k_scale * tl.exp(last - total), mask=inside)


@triton.jit(do_not_specialize=["num_tokens"])
def scan_kernel(
    q_ptr,
    k_ptr,
    keys_ptr,
    values_ptr,
    scores_ptr,
    rows_ptr,
    state_ptr,
    out_ptr,
    cu_q,
    slots,
    is_first,
    num_tokens,
    stride_q,
    stride_k,
    stride_slot,
    C: tl.constexpr,
):
    """From chunk to chunk of a request, for BLOCK_V values of a head."""
    head, request = tl.program_id(1), tl.program_id(2)
    first_token = tl.load(cu_q + request).to(tl.int64)
    length = (tl.load(cu_q + request + 1) - first_token).to(tl.int32)
    slot = tl.load(slots + request).to(tl.int64)
    n, d = tl.arange(0, C.CHUNK), tl.arange(0, C.BLOCK_K)
    e = tl.program_id(0) * C.BLOCK_V + tl.arange(0, C.BLOCK_V)
    # Tiles are addressed by a 64-bit scalar and 32-bit offsets, which need few registers.
    out = out_ptr + (first_token * C.NUM_HEADS + head) * C.V_DIM
    in_keys = n[:, None] * (C.NUM_HEADS * C.K_DIM) + d[None, :]
    in_values = n[:, None] * (C.NUM_HEADS * C.V_DIM) + e[None, :]
    in_q, in_k = n[:, None] * stride_q + d[None, :], n[:, None] * stride_k + d[None, :]
    has_v = (e < C.V_DIM)[None, :]
    if length <= C.MAX_RECURRENT:
        return
    if slot < 0:
        for start in range(0, length, C.CHUNK):
            tl.store(out + in_values, 0.0, mask=(n < length - start)[:, None] & has_v)
            out += C.CHUNK * C.NUM_HEADS * C.V_DIM
        return

    k_head, has_k = head // C.GROUP * C.K_DIM, (d < C.K_DIM)[None, :]
    q, k = q_ptr + first_token * stride_q + k_head, k_ptr + first_token * stride_k + k_head
    keys = keys_ptr + (first_token * C.NUM_HEADS + head) * C.K_DIM
    values = values_ptr + (first_token * C.NUM_HEADS + head) * C.V_DIM
    scores = scores_ptr + (first_token * C.NUM_HEADS + head) * C.CHUNK
    in_scores = n[:, None] * (C.NUM_HEADS * C.CHUNK) + n[None, :]
    rows = rows_ptr + head.to(tl.int64) * num_tokens + first_token
    plane = tl.cast(num_tokens, tl.int64) * C.NUM_HEADS
    state_ptrs = state_ptr + slot * stride_slot + head * (C.K_DIM * C.V_DIM) + d[:, None] * C.V_DIM + e[None, :]
    in_state = (d < C.K_DIM)[:, None] & has_v
    known = in_state & (d < tl.where(tl.load(is_first + request).to(tl.int32) == 0, C.K_DIM, 0))[:, None]
    state = tl.load(state_ptrs, mask=known, other=0.0).to(tl.float32)
    for start in range(0, length, C.CHUNK):
        inside = n < length - start
        k_mask, v_mask = inside[:, None] & has_k, inside[:, None] & has_v
        new = tl.load(values + in_values, mask=v_mask, other=0.0).to(tl.float32)
        new -= product(tl.load(keys + in_keys, mask=k_mask, other=0.0), state, q_ptr.dtype.element_ty, C.INTERPRET)
        last = tl.load(rows + tl.minimum(start + C.CHUNK, length) - 1)
        result, state = chunk_step(
            state,
            tl.load(scores + in_scores, mask=inside[:, None], other=0.0),
            tl.load(q + in_q, mask=k_mask, other=0.0),
            tl.load(rows + plane + start + n, mask=inside, other=0.0),
            tl.load(k + in_k, mask=k_mask, other=0.0),
            tl.load(rows + 2 * plane + start + n, mask=inside, other=0.0),
            new,
            last,
            C.INTERPRET,
        )
        tl.store(out + in_values, result.to(out_ptr.dtype.element_ty), mask=v_mask)
        q += C.CHUNK * stride_q
        k += C.CHUNK * stride_k
        keys += C.CHUNK * C.NUM_HEADS * C.K_DIM
        values += C.CHUNK * C.NUM_HEADS * C.V_DIM
        scores += C.CHUNK * C.NUM_HEADS * C.CHUNK
        out += C.CHUNK * C.NUM_HEADS * C.V_DIM
    tl.store(state_ptrs, state.to(state_ptr.dtype.element_ty), mask=in_state)


@triton.jit
def recurrent_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    a_ptr,
    b_ptr,
    state_ptr,
    out_ptr,
    cu_q,
    slots,
    is_first,
    stride_q,
    stride_k,
    stride_v,
    stride_a,
    stride_b,
    stride_slot,
    a_log_ptr,
    dt_bias_ptr,
    scale,
    C: tl.constexpr,
):
    """From token to token of a request, for BLOCK_V values of a head."""
    head, request = tl.program_id(1), tl.program_id(2)
    first_token = tl.load(cu_q + request).to(tl.int64)
    length = (tl.load(cu_q + request + 1) - first_token).to(tl.int32)
    slot = tl.load(slots + request).to(tl.int64)
    if (length == 0) | (length > C.MAX_RECURRENT):
        return
    d, e = tl.arange(0, C.BLOCK_K), tl.program_id(0) * C.BLOCK_V + tl.arange(0, C.BLOCK_V)
    has_k, has_v = d < C.K_DIM, e < C.V_DIM
    out = out_ptr + (first_token * C.NUM_HEADS + head) * C.V_DIM + e
    if slot < 0:
        for _ in range(length):
            tl.store(out, 0.0, mask=has_v)
            out += C.NUM_HEADS * C.V_DIM
        return

    k_head = head // C.GROUP * C.K_DIM
    q_row, k_row = q_ptr + first_token * stride_q + k_head + d, k_ptr + first_token * stride_k + k_head + d
    v_row = v_ptr + first_token * stride_v + head * C.V_DIM + e
    a, b = a_ptr + first_token * stride_a + head, b_ptr + first_token * stride_b + head
    state_ptrs = state_ptr + slot * stride_slot + head * (C.K_DIM * C.V_DIM) + d[:, None] * C.V_DIM + e[None, :]
    in_state = has_k[:, None] & has_v[None, :]
    known = in_state & (d < tl.where(tl.load(is_first + request).to(tl.int32) == 0, C.K_DIM, 0))[:, None]
    state = tl.load(state_ptrs, mask=known, other=0.0).to(tl.float32)
    for _ in range(length):
        q = tl.load(q_row, mask=has_k, other=0.0).to(tl.float32)
        k = tl.load(k_row, mask=has_k, other=0.0).to(tl.float32)
        v = tl.load(v_row, mask=has_v, other=0.0).to(tl.float32)
        q *= scale * tl.rsqrt(tl.sum(q * q, axis=0) + C.NORM_EPS)
        k *= tl.rsqrt(tl.sum(k * k, axis=0) + C.NORM_EPS)
        gate, rate = _gates(a, b, a_log_ptr, dt_bias_ptr, head)
        state *= tl.exp(gate)
        new = rate * (v - tl.sum(state * k[:, None], axis=0))
        state = (state + k[:, None] * new[None, :]).to(state_ptr.dtype.element_ty).to(tl.float32)
        tl.store(out, tl.sum(state * q[:, None], axis=0).to(out_ptr.dtype.element_ty), mask=has_v)
        q_row += stride_q
        k_row += stride_k
        v_row += stride_v
        a += stride_a
        b += stride_b
        out += C.NUM_HEADS * C.V_DIM
    tl.store(state_ptrs, state.to(state_ptr.dtype.element_ty), mask=in_state)
