"""The recurrence of Mamba 2 in Triton: prompts by chunks, short runs token by token; which of them a request takes depends on
its own number of tokens alone, so that its bits do not depend on the batch.

``scan_kernel`` (arXiv 2405.21060, section 6): a program per request, head and BLOCK_P elements of the head goes from chunk to chunk
with its columns of the state in f32 registers; within a chunk, and between it and the state, all is products of CHUNK rows, while
tiles of the next chunk are under way. One launch, and nothing between passes through memory; its programs are as many as requests
and heads, which is few where a single prompt runs on a large device.

``recurrent_kernel`` goes from token to token: it reads the state once, writes it once, and is bound by that. Drafts to verify go
that way, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl
from ...spec import Spec
from ...state_meta import StateMeta
from .._shared.chunked_state import chunk_step, decay_between, product
from .._shared.launch import Launch, cdiv, next_power_of_2


@triton.jit
def _step(dt_ptrs, mask, dt_bias_ptr, head, dt_min, dt_max):
    """f32; 0 where masked, so that nothing happens there."""
    dt = tl.load(dt_ptrs, mask=mask, other=0.0).to(tl.float32) + tl.load(dt_bias_ptr + head)
    softplus = tl.where(dt > 20.0, dt, tl.log(1.0 + tl.exp(tl.minimum(dt, 20.0))))
    return tl.where(mask, tl.minimum(tl.maximum(softplus, dt_min), dt_max), 0.0)


@triton.jit
def scan_kernel(
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
            zeros = tl.zeros((C.CHUNK, C.BLOCK_P), dtype=out_ptr.dtype.element_ty)
            tl.store(out + in_out, zeros, mask=(n < length - start)[:, None] & has_p)
            out += C.CHUNK * C.NUM_HEADS * C.HEAD_DIM
        return

    group = head // C.GROUP * C.STATE_SIZE
    x, dt = x_ptr + first_token * stride_x + head * C.HEAD_DIM, dt_ptr + first_token * stride_dt + head
    b, c = b_ptr + first_token * stride_b + group, c_ptr + first_token * stride_c + group
    in_x, in_b, in_c = n[:, None] * stride_x + p[None, :], n[:, None] * stride_b + s[None, :], n[:, None] * stride_c + s[None, :]
    log_decay, skip = -tl.exp(tl.load(a_log_ptr + head)), tl.load(d_ptr + head)
    state_ptrs = state_ptr + slot * stride_slot + head * (C.HEAD_DIM * C.STATE_SIZE) + p[None, :] * C.STATE_SIZE + s[:, None]
    in_state = (s < C.STATE_SIZE)[:, None] & has_p
    known = in_state & (s < tl.where(tl.load(is_first + request).to(tl.int32) == 0, C.STATE_SIZE, 0))[:, None]
    state = tl.load(state_ptrs, mask=known, other=0.0).to(tl.float32)
    for start in range(0, length, C.CHUNK):
        inside = n < length - start
        keys = tl.load(b + in_b, mask=inside[:, None] & has_s, other=0.0)
        queries = tl.load(c + in_c, mask=inside[:, None] & has_s, other=0.0)
        source = tl.load(x + in_x, mask=inside[:, None] & has_p, other=0.0).to(tl.float32)
        step = _step(dt + n * stride_dt, inside, dt_bias_ptr, head, dt_min, dt_max)
        gate = log_decay * step
        total, last = tl.cumsum(gate, axis=0), tl.sum(gate, axis=0)
        scores = product(queries, tl.trans(keys), x_ptr.dtype.element_ty, C.INTERPRET) * decay_between(total) * step[None, :]
        result, state = chunk_step(
            state, scores, queries, tl.exp(total), keys, step * tl.exp(last - total), source, last, C.INTERPRET
        )
        tl.store(out + in_out, (result + skip * source).to(out_ptr.dtype.element_ty), mask=inside[:, None] & has_p)
        x += C.CHUNK * stride_x
        dt += C.CHUNK * stride_dt
        b += C.CHUNK * stride_b
        c += C.CHUNK * stride_c
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
            tl.store(out, tl.zeros((C.BLOCK_P,), dtype=out_ptr.dtype.element_ty), mask=has_p)
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


class Constants(NamedTuple):
    """What a kernel is compiled for. GROUP: heads that share a group."""

    NUM_HEADS: int
    GROUP: int
    HEAD_DIM: int
    STATE_SIZE: int
    BLOCK_P: int
    BLOCK_N: int
    CHUNK: int
    MAX_RECURRENT: int
    INTERPRET: bool


@impl(
    "ssd_scan",
    "triton",
    priority=20,
    requires=("triton",),
    flags=Flags(batch_invariant=True),
    options={"chunk": 0, "block_p": 0, "num_warps": 0, "num_stages": 0, "max_recurrent": 8},
    tune_space={"chunk": (32, 64, 128), "block_p": (16, 32, 64), "num_warps": (4, 8), "num_stages": (1, 2, 3)},
)
class SsdScanTriton:
    """``chunk``, ``block_p``, ``num_warps``, ``num_stages``: of ``scan_kernel``, 0 follows dtype and arch. ``max_recurrent``: of
    the longest run that goes from token to token."""

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any], **options: int) -> None:
        self.layer = {f"{name}_ptr": weights[name].float().contiguous() for name in ("a_log", "dt_bias", "d")}
        self.layer |= {"dt_min": params.get("dt_min", 0.0), "dt_max": params.get("dt_max", float("inf"))}
        self.interpret = spec.interpret
        usual = {"chunk": 64, "block_p": 32, "num_warps": 4, "num_stages": 3}
        if spec.dtype == torch.float32:  # no matrix instruction: needs registers
            usual = {"chunk": 16, "block_p": 16, "num_warps": 8, "num_stages": 2}
        elif spec.arch.startswith(("sm_8", "gfx")):  # whose matrix instructions have fewer rows
            usual |= {"chunk": 32}
        self.options = {name: options[name] or value for name, value in usual.items()}
        self.max_recurrent = options["max_recurrent"]
        self.launches: dict[tuple[torch.Size, torch.Size], tuple[Launch, Launch]] = {}

    def _launches(self, x: torch.Size, b: torch.Size) -> tuple[Launch, Launch]:
        """Of both kernels, for heads and groups of such numbers and sizes."""
        if (x, b) not in self.launches:
            constants = Constants(
                NUM_HEADS=x[0],
                GROUP=x[0] // b[0],
                HEAD_DIM=x[1],
                STATE_SIZE=b[1],
                BLOCK_P=min(self.options["block_p"], max(16, next_power_of_2(x[1]))),
                BLOCK_N=max(16, next_power_of_2(b[1])),
                CHUNK=self.options["chunk"],
                MAX_RECURRENT=self.max_recurrent,
                INTERPRET=self.interpret,
            )
            in_loop = {"num_warps": self.options["num_warps"], "num_stages": self.options["num_stages"]}
            self.launches[x, b] = (
                Launch(scan_kernel, **self.layer, C=constants, **in_loop, enable_fp_fusion=True),
                Launch(recurrent_kernel, **self.layer, C=constants, num_warps=4, enable_fp_fusion=True),
            )
        return self.launches[x, b]

    def __call__(
        self, x: torch.Tensor, dt: torch.Tensor, b: torch.Tensor, c: torch.Tensor, state: torch.Tensor, meta: StateMeta
    ) -> torch.Tensor:
        x, b, c = (rows if rows.stride()[1:] == (rows.shape[2], 1) else rows.contiguous() for rows in (x, b, c))
        dt = dt if dt.stride(1) == 1 else dt.contiguous()
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        scan, recurrent = self._launches(x.shape[1:], b.shape[1:])
        grid = cdiv(x.shape[2], self.options["block_p"]), x.shape[1], meta.num_reqs
        strides = x.stride(0), dt.stride(0), b.stride(0), c.stride(0), state.stride(0)
        args = x, dt, b, c, state, out, meta.cu_q, meta.slots, meta.is_first, *strides
        if meta.max_q > self.max_recurrent:
            scan(grid, *args)
        recurrent(grid, *args)
        return out
