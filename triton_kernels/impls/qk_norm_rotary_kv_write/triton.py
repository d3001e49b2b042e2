"""What lies between the qkv projection and attention, in one launch: norms of query and key heads, rotation, and the write
of keys and values into the paged cache. The grid is tokens x blocks of heads: blocks of queries, then of keys, then of
values; keys and values of a token without a slot leave at once. A program holds its tile of BLOCK_HEADS x head size in
float32 registers from the load to the one rounding at the end: as two halves of the rotated part (style "gptj" splits
interleaved pairs in registers) and the rest of the head. For a quantized cache the scale of a head follows from the same
registers. The separate ops read and write queries and keys up to three times.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from ...attention_meta import LayerKV
from ...impl import Flags, impl
from ...spec import Spec
from .._shared.launch import Launch, cdiv, next_power_of_2
from .._shared.quantized_values import cache_bits, cache_constants, cache_reasons, scale_of, to_quantized
from ..kv_cache_write.triton import store_heads


@triton.jit
def _load_pairs(row, mask, half, NEOX: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr):
    """First and second elements of the rotated pairs, f32 [BLOCK_HEADS, BLOCK_HALF] each; row and mask are [BLOCK_HEADS, 1]."""
    if NEOX:
        pair = tl.arange(0, BLOCK_HALF)[None, :]
        a = tl.load(row + pair, mask=mask & (pair < half), other=0.0)
        b = tl.load(row + half + pair, mask=mask & (pair < half), other=0.0)
    else:
        element = tl.arange(0, 2 * BLOCK_HALF)[None, :]
        x = tl.load(row + element, mask=mask & (element < 2 * half), other=0.0)
        a, b = tl.split(tl.reshape(x, (BLOCK_HEADS, BLOCK_HALF, 2)))
    return a.to(tl.float32), b.to(tl.float32)


@triton.jit
def _store_pairs(row, a, b, mask, half, NEOX: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr):
    dtype = row.dtype.scalar.element_ty
    if NEOX:
        pair = tl.arange(0, BLOCK_HALF)[None, :]
        tl.store(row + pair, a.to(dtype), mask=mask & (pair < half))
        tl.store(row + half + pair, b.to(dtype), mask=mask & (pair < half))
    else:
        element = tl.arange(0, 2 * BLOCK_HALF)[None, :]
        joined = tl.reshape(tl.join(a, b), (BLOCK_HEADS, 2 * BLOCK_HALF))
        tl.store(row + element, joined.to(dtype), mask=mask & (element < 2 * half))


@triton.jit
def _norm_and_rotate(
    source,
    target,
    scale_target,
    mask,
    weight_ptr,
    cos_sin_ptr,
    half,
    width,
    eps,
    offset,
    KIND: tl.constexpr,
    LIMIT: tl.constexpr,
    HAS_NORM: tl.constexpr,
    NEOX: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    """source, target: pointers [HEADS, 1] to the heads, mask [HEADS, 1]. KIND: of the target's quantized values, whose scales go to
    scale_target [HEADS, 1]; "" for none."""
    a, b = _load_pairs(source, mask, half, NEOX, HEADS, BLOCK_HALF)
    if BLOCK_REST:
        rest_at = 2 * half + tl.arange(0, BLOCK_REST)[None, :]
        rest = tl.load(source + rest_at, mask=mask & (rest_at < width), other=0.0).to(tl.float32)
    if HAS_NORM:
        squares = tl.sum(a * a + b * b, axis=1)
        if BLOCK_REST:
            squares += tl.sum(rest * rest, axis=1)
        inverse = tl.rsqrt(squares / width + eps)[:, None]
        one = tl.zeros((1, 1), tl.int32)
        weight_a, weight_b = _load_pairs(weight_ptr + one, one == 0, half, NEOX, 1, BLOCK_HALF)
        a, b = a * inverse * (weight_a + offset), b * inverse * (weight_b + offset)
        if BLOCK_REST:
            rest *= inverse * (tl.load(weight_ptr + rest_at, mask=rest_at < width, other=0.0).to(tl.float32) + offset)
    pair = tl.arange(0, BLOCK_HALF)[None, :]
    cos = tl.load(cos_sin_ptr + pair, mask=pair < half, other=0.0)
    sin = tl.load(cos_sin_ptr + half + pair, mask=pair < half, other=0.0)
    a, b = a * cos - b * sin, b * cos + a * sin
    if KIND != "":
        largest = tl.maximum(tl.max(tl.abs(a), axis=1), tl.max(tl.abs(b), axis=1))
        if BLOCK_REST:
            largest = tl.maximum(largest, tl.max(tl.abs(rest), axis=1))
        scale = scale_of(largest, LIMIT)[:, None]
        tl.store(scale_target, scale, mask=mask)
        a, b = to_quantized(a, scale, KIND, LIMIT), to_quantized(b, scale, KIND, LIMIT)
        if BLOCK_REST:
            rest = to_quantized(rest, scale, KIND, LIMIT)
    _store_pairs(target, a, b, mask, half, NEOX, HEADS, BLOCK_HALF)
    if BLOCK_REST:
        tl.store(target + rest_at, rest.to(target.dtype.scalar.element_ty), mask=mask & (rest_at < width))


@triton.jit
def _fused_kernel(
    qkv_ptr,
    positions_ptr,
    k_cache_ptr,
    v_cache_ptr,
    k_scale_ptr,
    v_scale_ptr,
    slots_ptr,
    q_ptr,
    width,
    page_size,
    stride_token,
    stride_positions,
    stride_slots,
    k_page,
    k_slot,
    k_head,
    v_page,
    v_slot,
    v_head,
    k_scale_page,
    k_scale_slot,
    k_scale_head,
    v_scale_page,
    v_scale_slot,
    v_scale_head,
    cos_sin_ptr,
    q_weight_ptr,
    k_weight_ptr,
    num_heads,
    num_kv_heads,
    half,
    eps,
    offset,
    stride_cos_sin,
    KIND: tl.constexpr,
    LIMIT: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
    NEOX: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    q_blocks, kv_blocks = tl.cdiv(num_heads, HEADS), tl.cdiv(num_kv_heads, HEADS)
    qkv_ptr += token * stride_token
    cos_sin_ptr += tl.load(positions_ptr + token * stride_positions).to(tl.int64) * stride_cos_sin
    if block < q_blocks:
        heads = (block * HEADS + tl.arange(0, HEADS))[:, None]
        _norm_and_rotate(
            qkv_ptr + heads * width,
            q_ptr + (token * num_heads + heads) * width,
            None,
            heads < num_heads,
            q_weight_ptr,
            cos_sin_ptr,
            half,
            width,
            eps,
            offset,
            "",
            LIMIT,
            Q_NORM,
            NEOX,
            HEADS,
            BLOCK_HALF,
            BLOCK_REST,
        )
    else:
        slot = tl.load(slots_ptr + token * stride_slots)
        if slot < 0:
            return
        page, place = slot // page_size, slot % page_size
        if block < q_blocks + kv_blocks:
            heads = ((block - q_blocks) * HEADS + tl.arange(0, HEADS))[:, None]
            _norm_and_rotate(
                qkv_ptr + (num_heads + heads) * width,
                k_cache_ptr + page * k_page + place * k_slot + heads * k_head,
                k_scale_ptr + page * k_scale_page + place * k_scale_slot + heads * k_scale_head,
                heads < num_kv_heads,
                k_weight_ptr,
                cos_sin_ptr,
                half,
                width,
                eps,
                offset,
                KIND,
                LIMIT,
                K_NORM,
                NEOX,
                HEADS,
                BLOCK_HALF,
                BLOCK_REST,
            )
        else:
            heads = ((block - q_blocks - kv_blocks) * HEADS + tl.arange(0, HEADS))[:, None]
            element = tl.arange(0, BLOCK)[None, :]
            mask = (heads < num_kv_heads) & (element < width)
            values = tl.load(qkv_ptr + (num_heads + num_kv_heads + heads) * width + element, mask=mask, other=0.0)
            store_heads(
                values,
                v_cache_ptr + page * v_page + place * v_slot + heads * v_head + element,
                v_scale_ptr + page * v_scale_page + place * v_scale_slot + heads * v_scale_head,
                None,
                heads < num_kv_heads,
                element < width,
                KIND,
                LIMIT,
            )


@impl(
    "qk_norm_rotary_kv_write",
    "triton",
    priority=20,
    requires=("triton",),
    flags=Flags(batch_invariant=True),
    options={"block_heads": 8},
)
class TritonFused:
    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any], *, block_heads: int) -> None:
        bound = {**weights, **params}
        self.num_heads, self.num_kv_heads, cos_sin = bound["num_heads"], bound["num_kv_heads"], bound["cos_sin"]
        assert cos_sin.stride(1) == 1, "rows of cos_sin must be contiguous"
        q_weight, k_weight = bound.get("q_weight"), bound.get("k_weight")
        self.rotated = cos_sin.shape[1]
        self.num_blocks = cdiv(self.num_heads, block_heads) + 2 * cdiv(self.num_kv_heads, block_heads)
        self.launch = Launch(
            _fused_kernel,
            cos_sin_ptr=cos_sin,
            q_weight_ptr=q_weight,
            k_weight_ptr=k_weight,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            half=self.rotated // 2,
            eps=bound.get("eps", 1e-6),
            offset=bound.get("offset", 0.0),
            stride_cos_sin=cos_sin.stride(0),
            Q_NORM=q_weight is not None,
            K_NORM=k_weight is not None,
            NEOX=bound.get("style", "neox") == "neox",
            HEADS=block_heads,
            BLOCK_HALF=next_power_of_2(self.rotated // 2),
            num_warps=2,  # of whose threads each loads 16 bytes of the rotated halves of 8 heads of 128
        )

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        reasons = cache_reasons(spec.fact("kv_dtype", spec.dtype))
        if spec.fact("value_dim", spec.fact("head_dim")) != spec.fact("head_dim"):
            reasons.append("needs values of the keys' head size")
        return reasons

    def __call__(self, qkv: torch.Tensor, positions: torch.Tensor, kv: LayerKV, slot_mapping: torch.Tensor) -> torch.Tensor:
        num_tokens, columns = qkv.shape
        width = columns // (self.num_heads + 2 * self.num_kv_heads)
        q = qkv.new_empty(num_tokens, self.num_heads, width)
        if num_tokens == 0:
            return q
        k_cache, v_cache, k_scale, v_scale = cache_bits(kv)
        stride_token, element = qkv.stride()
        *k_strides, k_element = k_cache.stride()
        *v_strides, v_element = v_cache.stride()
        assert element == k_element == v_element == 1, "head elements must be contiguous"
        rest = width - self.rotated
        self.launch(
            (num_tokens, self.num_blocks),
            qkv,
            positions,
            k_cache,
            v_cache,
            k_scale,
            v_scale,
            slot_mapping,
            q,
            width,
            kv.page_size,
            stride_token,
            positions.stride(0),
            slot_mapping.stride(0),
            *k_strides,
            *v_strides,
            *k_scale.stride()[:3],
            *v_scale.stride()[:3],
            **cache_constants(kv),
            BLOCK_REST=next_power_of_2(rest) if rest else 0,
            BLOCK=next_power_of_2(width),
            enable_fp_fusion=kv.k_scale is None,
        )
        return q
