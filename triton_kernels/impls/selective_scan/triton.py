"""The recurrence of Mamba 1 in Triton, prompts and decoding alike. A program per request and BLOCK_C channels goes from token to
token, with its part of the state in f32 registers; the inputs of UNROLL tokens are loaded before the first of them is used, so that
one latency is paid for all. The decays differ from element to element of the state, so there is no product to make of a chunk; and
as tokens come one after the other, a prompt has the same bits however it is cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl
from ...spec import Spec
from ...state_meta import StateMeta
from .._shared.launch import Launch, cdiv, next_power_of_2


@triton.jit
def selective_scan_kernel(
    x_ptr,
    dt_ptr,
    b_ptr,
    c_ptr,
    z_ptr,
    state_ptr,
    out_ptr,
    cu_q,
    slots,
    is_first,
    stride_x,
    stride_dt,
    stride_b,
    stride_c,
    stride_z,
    stride_slot,
    a_log_ptr,
    dt_bias_ptr,
    d_ptr,
    num_channels,
    STATE_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    UNROLL: tl.constexpr,
):
    request = tl.program_id(1)
    first = tl.load(cu_q + request).to(tl.int64)
    length = (tl.load(cu_q + request + 1) - first).to(tl.int32)
    if length == 0:
        return
    slot = tl.load(slots + request).to(tl.int64)
    i, n = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_N)
    exists = i < num_channels
    out = out_ptr + first * num_channels + i
    if slot < 0:
        for _ in range(length):
            tl.store(out, tl.zeros((BLOCK_C,), dtype=out_ptr.dtype.element_ty), mask=exists)
            out += num_channels
        return

    x, dt, z = x_ptr + first * stride_x + i, dt_ptr + first * stride_dt + i, z_ptr + first * stride_z + i
    b, c = b_ptr + first * stride_b + n, c_ptr + first * stride_c + n
    at, in_state = i[:, None] * STATE_SIZE + n[None, :], exists[:, None] & (n < STATE_SIZE)[None, :]
    rates = -tl.exp(tl.load(a_log_ptr + at, mask=in_state, other=0.0))
    bias, skip = tl.load(dt_bias_ptr + i, mask=exists, other=0.0), tl.load(d_ptr + i, mask=exists, other=0.0)
    known = in_state & (n < tl.where(tl.load(is_first + request).to(tl.int32) == 0, STATE_SIZE, 0))[None, :]
    state_ptrs = state_ptr + slot * stride_slot + at
    state = tl.load(state_ptrs, mask=known, other=0.0).to(tl.float32)
    for start in range(0, length, UNROLL):
        loaded = ()
        for t in tl.static_range(UNROLL):
            left = length - start - t
            in_i, in_n = i < tl.where(left > 0, num_channels, 0), n < tl.where(left > 0, STATE_SIZE, 0)
            loaded += (
                (
                    tl.load(x + t * stride_x, mask=in_i, other=0.0),
                    tl.load(dt + t * stride_dt, mask=in_i, other=0.0),
                    tl.load(z + t * stride_z, mask=in_i, other=0.0),
                    tl.load(b + t * stride_b, mask=in_n, other=0.0),
                    tl.load(c + t * stride_c, mask=in_n, other=0.0),
                    in_i,
                ),
            )
        for t in tl.static_range(UNROLL):
            source = loaded[t][0].to(tl.float32)  # type: ignore[var-annotated]
            gate = loaded[t][2].to(tl.float32)  # type: ignore[var-annotated]
            raw = loaded[t][1].to(tl.float32) + bias
            softplus = tl.where(raw > 20.0, raw, tl.log(1.0 + tl.exp(tl.minimum(raw, 20.0))))
            step = tl.where(loaded[t][5], softplus, 0.0)  # past the end nothing happens
            added = (step * source)[:, None] * loaded[t][3].to(tl.float32)[None, :]
            state = (tl.exp(rates * step[:, None]) * state + added).to(state_ptr.dtype.element_ty).to(tl.float32)
            read = tl.sum(state * loaded[t][4].to(tl.float32)[None, :], axis=1) + skip * source
            read *= gate * tl.sigmoid(gate)
            tl.store(out + t * num_channels, read.to(out_ptr.dtype.element_ty), mask=loaded[t][5])
        x += UNROLL * stride_x
        dt += UNROLL * stride_dt
        z += UNROLL * stride_z
        b += UNROLL * stride_b
        c += UNROLL * stride_c
        out += UNROLL * num_channels
    tl.store(state_ptrs, state.to(state_ptr.dtype.element_ty), mask=in_state)


@impl(
    "selective_scan",
    "triton",
    priority=20,
    requires=("triton",),
    flags=Flags(batch_invariant=True),
    options={"block_c": 32, "unroll": 4},
    tune_space={"block_c": (16, 32, 64), "unroll": (4, 8, 16)},
)
class SelectiveScanTriton:
    """``block_c``: channels of a program, a warp. ``unroll``: tokens whose inputs are loaded at once, where a request has more than
    one."""

    def __init__(
        self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any], block_c: int, unroll: int
    ) -> None:
        layer = {f"{name}_ptr": weights[name].float().contiguous() for name in ("a_log", "dt_bias", "d")}
        self.num_channels, size = weights["a_log"].shape
        self.block_c, self.unroll = block_c, unroll
        self.launch = Launch(
            selective_scan_kernel,
            **layer,
            num_channels=self.num_channels,
            STATE_SIZE=size,
            BLOCK_N=next_power_of_2(size),
            BLOCK_C=block_c,
            num_warps=1,
            enable_fp_fusion=True,
        )

    def __call__(
        self,
        x: torch.Tensor,
        dt: torch.Tensor,
        b: torch.Tensor,
        c: torch.Tensor,
        z: torch.Tensor,
        state: torch.Tensor,
        meta: StateMeta,
    ) -> torch.Tensor:
        x, dt, b, c, z = (rows if rows.stride(1) == 1 else rows.contiguous() for rows in (x, dt, b, c, z))
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        strides = (rows.stride(0) for rows in (x, dt, b, c, z, state))
        self.launch(
            (cdiv(self.num_channels, self.block_c), meta.num_reqs),
            *(x, dt, b, c, z, state, out, meta.cu_q, meta.slots, meta.is_first, *strides),
            UNROLL=1 if meta.max_q == 1 else self.unroll,
        )
        return out
