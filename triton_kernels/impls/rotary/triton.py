"""Rotary position embedding, in place on views of a fused projection. The grid is tokens x blocks of heads, queries
first, then keys, so that one launch covers both and grows with both. A program holds its token's cos and sin and a
tile of BLOCK_HEADS x rot_dim elements in registers; style "gptj" loads the interleaved pairs as one tile and splits
them in registers, which keeps the loads wide. Made for decode, where one launch instead of two counts, and for
strided q and k.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl
from ...spec import Spec
from .._shared.launch import Launch, cdiv, next_power_of_2


@triton.jit
def _rotate(
    x_ptr, head, num_heads, stride_head, cos_sin_ptr, half, NEOX: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr
):
    heads = head + tl.arange(0, BLOCK_HEADS)[:, None]
    pair = tl.arange(0, BLOCK_HALF)
    cos = tl.load(cos_sin_ptr + pair, mask=pair < half, other=0.0)[None, :]
    sin = tl.load(cos_sin_ptr + half + pair, mask=pair < half, other=0.0)[None, :]
    ptrs = x_ptr + heads * stride_head
    if NEOX:
        mask = (heads < num_heads) & (pair[None, :] < half)
        a = tl.load(ptrs + pair[None, :], mask=mask, other=0.0).to(tl.float32)
        b = tl.load(ptrs + half + pair[None, :], mask=mask, other=0.0).to(tl.float32)
        tl.store(ptrs + pair[None, :], (a * cos - b * sin).to(x_ptr.dtype.element_ty), mask=mask)
        tl.store(ptrs + half + pair[None, :], (b * cos + a * sin).to(x_ptr.dtype.element_ty), mask=mask)
    else:
        element = tl.arange(0, 2 * BLOCK_HALF)[None, :]
        mask = (heads < num_heads) & (element < 2 * half)
        x = tl.load(ptrs + element, mask=mask, other=0.0).to(tl.float32)
        a, b = tl.split(tl.reshape(x, (BLOCK_HEADS, BLOCK_HALF, 2)))
        rotated = tl.reshape(tl.join(a * cos - b * sin, b * cos + a * sin), (BLOCK_HEADS, 2 * BLOCK_HALF))
        tl.store(ptrs + element, rotated.to(x_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _rotary_kernel(
    q_ptr,
    k_ptr,
    positions_ptr,
    num_q_heads,
    num_k_heads,
    q_token,
    q_head,
    k_token,
    k_head,
    stride_positions,
    cos_sin_ptr,
    half,
    stride_cos_sin,
    NEOX: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    token, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num_q_blocks = tl.cdiv(num_q_heads, BLOCK_HEADS)
    cos_sin_ptr += tl.load(positions_ptr + token * stride_positions).to(tl.int64) * stride_cos_sin
    if block < num_q_blocks:
        _rotate(q_ptr + token * q_token, block * BLOCK_HEADS, num_q_heads, q_head, cos_sin_ptr, half, NEOX, BLOCK_HEADS, BLOCK_HALF)
    else:
        head = (block - num_q_blocks) * BLOCK_HEADS
        _rotate(k_ptr + token * k_token, head, num_k_heads, k_head, cos_sin_ptr, half, NEOX, BLOCK_HEADS, BLOCK_HALF)


@impl("rotary", "triton", priority=20, requires=("triton",), flags=Flags(batch_invariant=True), options={"block_heads": 8})
class RotaryTriton:
    """``block_heads``: heads that a program rotates."""

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any], block_heads: int) -> None:
        cos_sin = weights["cos_sin"]
        assert cos_sin.stride(1) == 1, "rows of cos and sin must be contiguous"
        self.block_heads, self.half = block_heads, cos_sin.shape[1] // 2
        self.launch = Launch(
            _rotary_kernel,
            cos_sin_ptr=cos_sin,
            half=self.half,
            stride_cos_sin=cos_sin.stride(0),
            NEOX=params.get("style", "neox") == "neox",
            BLOCK_HEADS=block_heads,
            BLOCK_HALF=next_power_of_2(max(self.half, 1)),
            num_warps=4,
            enable_fp_fusion=True,
        )

    def __call__(self, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor) -> None:
        (num_tokens, num_q_heads, _), num_k_heads = q.shape, k.shape[1]
        q_token, q_head, q_element = q.stride()
        k_token, k_head, k_element = k.stride()
        assert q_element == k_element == 1, "heads must be contiguous"
        if num_tokens and self.half:
            self.launch(
                (num_tokens, cdiv(num_q_heads, self.block_heads) + cdiv(num_k_heads, self.block_heads)),
                q,
                k,
                positions,
                num_q_heads,
                num_k_heads,
                q_token,
                q_head,
                k_token,
                k_head,
                positions.stride(0),
            )
