"""Rotary position embedding, in place on views of a fused projection. The grid is tokens x blocks of heads, queries
first, then keys, so that one launch covers both and grows with both. A program holds its token's cos and sin and a
tile of BLOCK_HEADS x rot_dim elements in registers; style "gptj" loads the interleaved pairs as one tile and splits
them in registers, which keeps the loads wide. Made for decode, where one launch instead of two counts, and for
strided q and k.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...impl import Flags, impl


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
    cos_sin_ptr,
    num_q_heads,
    num_k_heads,
    half,
    q_token,
    q_head,
    k_token,
    k_head,
    stride_positions,
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
def rotary(
    q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, *, cos_sin: torch.Tensor, style: str = "neox", block_heads: int
) -> None:
    assert q.stride(2) == 1 and k.stride(2) == 1 and cos_sin.stride(1) == 1, "heads must be contiguous"
    num_tokens, half = q.shape[0], cos_sin.shape[1] // 2
    if num_tokens == 0 or half == 0:
        return
    grid = (num_tokens, triton.cdiv(q.shape[1], block_heads) + triton.cdiv(k.shape[1], block_heads))
    _rotary_kernel[grid](
        q,
        k,
        positions,
        cos_sin,
        q.shape[1],
        k.shape[1],
        half,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        positions.stride(0),
        cos_sin.stride(0),
        NEOX=style == "neox",
        BLOCK_HEADS=block_heads,
        BLOCK_HALF=triton.next_power_of_2(half),
        num_warps=4,
        enable_fp_fusion=True,
    )
