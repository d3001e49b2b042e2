"""The short convolution in one pass. Grid: blocks of channels x blocks of tokens; a program makes a [BLOCK_T, BLOCK_C] tile of one
request, and reads each of its inputs as often as the filter is wide, from the second time on from the cache. The program of a
request's first tokens is the only one that needs the state, and the last inputs, which become the state, lie in x (unless they are
fewer than the state holds, and then there is no other program): so it writes the new state as well, and nobody waits for anybody.
Decoding requests have a program per request and channels.
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
from .._shared.launch import Launch, cdiv
from .._shared.request_blocks import find_request


@triton.jit(do_not_specialize=["num_reqs"])
def causal_conv1d_kernel(
    x_ptr,
    state_ptr,
    out_ptr,
    cu_q,
    slots,
    is_first,
    num_reqs,
    stride_token,
    stride_slot,
    weight_ptr,
    bias_ptr,
    num_channels,
    WIDTH: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    block = tl.program_id(1)
    request = block if BLOCK_T == 1 else find_request(cu_q, num_reqs, block, 1, BLOCK_T)
    first_token = tl.load(cu_q + request)
    num_tokens = tl.load(cu_q + request + 1) - first_token
    start = 0 if BLOCK_T == 1 else (block - first_token // BLOCK_T - request) * BLOCK_T
    if start >= num_tokens:
        return

    slot = tl.load(slots + request).to(tl.int64)
    num_earlier = tl.where((slot >= 0) & (tl.load(is_first + request).to(tl.int32) == 0), WIDTH - 1, 0)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = channels < num_channels
    x = x_ptr + first_token.to(tl.int64) * stride_token + channels
    state = state_ptr + slot * stride_slot + channels
    tokens = tl.arange(0, BLOCK_T)
    x_block = x[None, :] + tl.cast(start, tl.int64) * stride_token
    left = num_tokens - start
    total = tl.zeros((BLOCK_T, BLOCK_C), dtype=tl.float32)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + channels, mask=exists, other=0.0).to(tl.float32)[None, :]
    for w in tl.static_range(WIDTH):
        at = (tokens - (WIDTH - 1 - w))[:, None]
        inside = exists[None, :] & (at < left) & (at >= -start)
        tap = tl.load(x_block + at * stride_token, mask=inside, other=0.0).to(tl.float32)
        if start == 0:
            earlier = exists[None, :] & (at < 0) & (at >= -num_earlier)
            tap += tl.load(state[None, :] + (at + WIDTH - 1) * num_channels, mask=earlier, other=0.0).to(tl.float32)
        total += tap * tl.load(weight_ptr + channels * WIDTH + w, mask=exists, other=0.0).to(tl.float32)[None, :]
    if SILU:
        total = total * tl.sigmoid(total)
    total = tl.where(slot >= 0, total, 0.0)
    out = out_ptr + (first_token + start).to(tl.int64) * num_channels + channels[None, :]
    tl.store(out + tokens[:, None] * num_channels, total.to(out_ptr.dtype.element_ty), mask=exists & (tokens < left)[:, None])

    if (start == 0) & (slot >= 0):
        tl.debug_barrier()  # all have read the state
        for kept in tl.static_range(WIDTH - 1):
            source = num_tokens - (WIDTH - 1) + kept
            in_x = channels < tl.where(source >= 0, num_channels, 0)
            in_state = channels < tl.where((source < 0) & (source >= -num_earlier), num_channels, 0)
            new = tl.load(x + source.to(tl.int64) * stride_token, mask=in_x, other=0.0)
            old = tl.load(state + (source + WIDTH - 1) * num_channels, mask=in_state, other=0.0)
            tl.store(state + kept * num_channels, tl.where(in_x, new, old), mask=exists)


@impl(
    "causal_conv1d",
    "triton",
    priority=20,
    requires=("triton",),
    flags=Flags(batch_invariant=True),
    options={"block_t": 32, "block_c": 128},
    tune_space={"block_t": (16, 32, 64), "block_c": (64, 128, 256)},
)
class CausalConv1dTriton:
    """``block_t``, ``block_c``: tokens and channels of a program, where a request has more than one token."""

    def __init__(
        self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any], block_t: int, block_c: int
    ) -> None:
        weight, bias = weights["weight"].contiguous(), weights.get("bias")
        self.num_channels, width = weight.shape
        self.blocks = block_t, block_c
        self.launch = Launch(
            causal_conv1d_kernel,
            weight_ptr=weight,
            bias_ptr=bias,
            num_channels=self.num_channels,
            WIDTH=width,
            SILU=params.get("activation") == "silu",
            num_warps=4,
            enable_fp_fusion=True,
        )

    def __call__(self, x: torch.Tensor, state: torch.Tensor, meta: StateMeta) -> torch.Tensor:
        x = x if x.stride(1) == 1 else x.contiguous()
        num_tokens = x.shape[0]
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        block_t, block_c = (1, 4 * self.blocks[1]) if meta.max_q == 1 else self.blocks
        num_blocks = meta.num_reqs if block_t == 1 else num_tokens // block_t + meta.num_reqs
        self.launch(
            (cdiv(self.num_channels, block_c), num_blocks),
            x,
            state,
            out,
            meta.cu_q,
            meta.slots,
            meta.is_first,
            meta.num_reqs,
            x.stride(0),
            state.stride(0),
            BLOCK_T=block_t,
            BLOCK_C=block_c,
        )
        return out
