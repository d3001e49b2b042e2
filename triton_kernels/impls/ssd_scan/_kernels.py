"""The kernels of ``ssd_scan``; what they are for is said in ``triton.py``."""

from __future__ import annotations

import triton
import triton.language as tl

from .._shared.chunked_state import chunk_step, decay_between, product
from .._shared.request_blocks import find_request


@triton.jit
def _step(dt_ptrs, mask, dt_bias_ptr, head, dt_min, dt_max):
    """f32; 0 where masked, so that nothing happens there."""
    dt = tl.load(dt_ptrs, mask=mask, other=0.0).to(tl.float32) + tl.load(dt_bias_ptr + head)
    softplus = tl.where(dt > 20.0, dt, tl.log(1.0 + tl.exp(tl.minimum(dt, 20.0))))
    return tl.where(mask, tl.minimum(tl.maximum(softplus, dt_min), dt_max), 0.0)


@triton.jit(do_not_specialize=["num_tokens", "num_reqs"])
def prepare_kernel(
    dt_ptr,
    b_ptr,
    c_ptr,
    scores_ptr,
    rows_ptr,
    cu_q,
    slots,
    num_tokens,
    num_reqs,
    stride_dt,
    stride_b,
    stride_c,
    a_log_ptr,
    dt_bias_ptr,
    dt_min,
    dt_max,
    C: tl.constexpr,
):
    """Of a chunk and a head: factors [n, n] of x in the output, and, f32 [3, n], G and the factors of c and of b."""
    block, head = tl.program_id(0), tl.program_id(1)
    request = find_request(cu_q, num_reqs, block, 1, C.CHUNK)
    first_token = tl.load(cu_q + request)
    length = tl.load(cu_q + request + 1) - first_token
    start = (block - first_token // C.CHUNK - request) * C.CHUNK
    if (start >= length) | (length <= C.MAX_RECURRENT) | (tl.load(slots + request) < 0):
        return
    first = (first_token + start).to(tl.int64)
    n, s = tl.arange(0, C.CHUNK), tl.arange(0, C.BLOCK_N)
    inside, group = n < length - start, head // C.GROUP * C.STATE_SIZE
    mask = inside[:, None] & (s < C.STATE_SIZE)[None, :]
    keys = tl.load(b_ptr + first * stride_b + group + n[:, None] * stride_b + s[None, :], mask=mask, other=0.0)
    queries = tl.load(c_ptr + first * stride_c + group + n[:, None] * stride_c + s[None, :], mask=mask, other=0.0)
    step = _step(dt_ptr + first * stride_dt + head + n * stride_dt, inside, dt_bias_ptr, head, dt_min, dt_max)
    gate = -tl.exp(tl.load(a_log_ptr + head)) * step
    total, last = tl.cumsum(gate, axis=0), tl.sum(gate, axis=0)
    scores = product(queries, tl.trans(keys), b_ptr.dtype.element_ty, C.INTERPRET) * decay_between(total) * step[None, :]
    at = scores_ptr + (first * C.NUM_HEADS + head) * C.CHUNK + n[:, None] * (C.NUM_HEADS * C.CHUNK) + n[None, :]
    tl.store(at, scores.to(scores_ptr.dtype.element_ty), mask=inside[:, None])
    rows = rows_ptr + head.to(tl.int64) * 3 * num_tokens + first + n
    tl.store(rows, total, mask=inside)
    tl.store(rows + num_tokens, tl.exp(total), mask=inside)
    tl.store(rows + 2 * num_tokens, step * tl.exp(last - total), mask=inside)


@triton.jit(do_not_specialize=["num_tokens"])
def scan_kernel(
    x_ptr,
    b_ptr,
    c_ptr,
    scores_ptr,
    rows_ptr,
    state_ptr,
    out_ptr,
    cu_q,
    slots,
    is_first,
    num_tokens,
    stride_x,
    stride_b,
    stride_c,
    stride_slot,
    d_ptr,
    C: tl.constexpr,
):
    """From chunk to chunk of a request, for BLOCK_P elements of a head."""
    head, request = tl.program_id(1), tl.program_id(2)
    first_token = tl.load(cu_q + request).to(tl.int64)
    length = (tl.load(cu_q + request + 1) - first_token).to(tl.int32)
    slot = tl.load(slots + request).to(tl.int64)
    if length <= C.MAX_RECURRENT:
        return
    n, s = tl.arange(0, C.CHUNK), tl.arange(0, C.BLOCK_N)
    p = tl.program_id(0) * C.BLOCK_P + tl.arange(0, C.BLOCK_P)
    has_s, has_p = (s < C.STATE_SIZE)[None, :], (p < C.HEAD_DIM)[None, :]
    # Tiles are addressed by a 64-bit scalar and 32-bit offsets, which need few registers.
    out = out_ptr + (first_token * C.NUM_HEADS + head) * C.HEAD_DIM
    in_out = n[:, None] * (C.NUM_HEADS * C.HEAD_DIM) + p[None, :]
    if slot < 0:
        for start in range(0, length, C.CHUNK):
            tl.store(out + in_out, 0.0, mask=(n < length - start)[:, None] & has_p)
            out += C.CHUNK * C.NUM_HEADS * C.HEAD_DIM
        return

    group = head // C.GROUP * C.STATE_SIZE
    x = x_ptr + first_token * stride_x + head * C.HEAD_DIM
    b, c = b_ptr + first_token * stride_b + group, c_ptr + first_token * stride_c + group
    in_x, in_b, in_c = n[:, None] * stride_x + p[None, :], n[:, None] * stride_b + s[None, :], n[:, None] * stride_c + s[None, :]
    scores = scores_ptr + (first_token * C.NUM_HEADS + head) * C.CHUNK
    in_scores = n[:, None] * (C.NUM_HEADS * C.CHUNK) + n[None, :]
    rows = rows_ptr + head.to(tl.int64) * 3 * num_tokens + first_token
    skip = tl.load(d_ptr + head)
    state_ptrs = state_ptr + slot * stride_slot + head * (C.HEAD_DIM * C.STATE_SIZE) + p[None, :] * C.STATE_SIZE + s[:, None]
    in_state = (s < C.STATE_SIZE)[:, None] & has_p
    known = in_state & (s < tl.where(tl.load(is_first + request).to(tl.int32) == 0, C.STATE_SIZE, 0))[:, None]
    state = tl.load(state_ptrs, mask=known, other=0.0).to(tl.float32)
    for start in range(0, length, C.CHUNK):
        inside = n < length - start
        source = tl.load(x + in_x, mask=inside[:, None] & has_p, other=0.0)
        result, state = chunk_step(
            state,
            tl.load(scores + in_scores, mask=inside[:, None], other=0.0),
            tl.load(c + in_c, mask=inside[:, None] & has_s, other=0.0),
            tl.load(rows + num_tokens + n, mask=inside, other=0.0),
            tl.load(b + in_b, mask=inside[:, None] & has_s, other=0.0),
            tl.load(rows + 2 * num_tokens + n, mask=inside, other=0.0),
            source,
            tl.load(rows + tl.minimum(C.CHUNK, length - start) - 1),
            C.INTERPRET,
        )
        result += skip * source.to(tl.float32)
        tl.store(out + in_out, result.to(out_ptr.dtype.element_ty), mask=inside[:, None] & has_p)
        x += C.CHUNK * stride_x
        b += C.CHUNK * stride_b
        c += C.CHUNK * stride_c
        scores += C.CHUNK * C.NUM_HEADS * C.CHUNK
        rows += C.CHUNK
        out += C.CHUNK * C.NUM_HEADS * C.HEAD_DIM
    tl.store(state_ptrs, state.to(state_ptr.dtype.element_ty), mask=in_state)


@triton.jit
def recurrent_kernel(
    x_ptr,
    dt_ptr,
    b_ptr,
    c_ptr,
    state_ptr,
    out_ptr,
    cu_q,
    slots,
    is_first,
    stride_x,
    stride_dt,
    stride_b,
    stride_c,
    stride_slot,
    a_log_ptr,
    dt_bias_ptr,
    d_ptr,
    dt_min,
    dt_max,
    C: tl.constexpr,
):
    """From token to token of a request, for BLOCK_P elements of a head."""
    head, request = tl.program_id(1), tl.program_id(2)
    first_token = tl.load(cu_q + request).to(tl.int64)
    length = (tl.load(cu_q + request + 1) - first_token).to(tl.int32)
    slot = tl.load(slots + request).to(tl.int64)
    if (length == 0) | (length > C.MAX_RECURRENT):
        return
    s, p = tl.arange(0, C.BLOCK_N), tl.program_id(0) * C.BLOCK_P + tl.arange(0, C.BLOCK_P)
    has_s, has_p = s < C.STATE_SIZE, p < C.HEAD_DIM
    out = out_ptr + (first_token * C.NUM_HEADS + head) * C.HEAD_DIM + p
    if slot < 0:
        for _ in range(length):
            tl.store(out, 0.0, mask=has_p)
            out += C.NUM_HEADS * C.HEAD_DIM
        return

    group = head // C.GROUP * C.STATE_SIZE
    x, dt = x_ptr + first_token * stride_x + head * C.HEAD_DIM + p, dt_ptr + first_token * stride_dt + head
    b, c = b_ptr + first_token * stride_b + group + s, c_ptr + first_token * stride_c + group + s
    log_decay, skip = -tl.exp(tl.load(a_log_ptr + head)), tl.load(d_ptr + head)
    state_ptrs = state_ptr + slot * stride_slot + head * (C.HEAD_DIM * C.STATE_SIZE) + p[:, None] * C.STATE_SIZE + s[None, :]
    in_state = has_p[:, None] & has_s[None, :]
    known = in_state & (s < tl.where(tl.load(is_first + request).to(tl.int32) == 0, C.STATE_SIZE, 0))[None, :]
    state = tl.load(state_ptrs, mask=known, other=0.0).to(tl.float32)
    for _ in range(length):
        source = tl.load(x, mask=has_p, other=0.0).to(tl.float32)
        step = _step(dt, True, dt_bias_ptr, head, dt_min, dt_max)
        keys = tl.load(b, mask=has_s, other=0.0).to(tl.float32)
        state = tl.exp(log_decay * step) * state + (step * source)[:, None] * keys[None, :]
        state = state.to(state_ptr.dtype.element_ty).to(tl.float32)
        queries = tl.load(c, mask=has_s, other=0.0).to(tl.float32)
        result = tl.sum(state * queries[None, :], axis=1) + skip * source
        tl.store(out, result.to(out_ptr.dtype.element_ty), mask=has_p)
        x += stride_x
        dt += stride_dt
        b += stride_b
        c += stride_c
        out += C.NUM_HEADS * C.HEAD_DIM
    tl.store(state_ptrs, state.to(state_ptr.dtype.element_ty), mask=in_state)
