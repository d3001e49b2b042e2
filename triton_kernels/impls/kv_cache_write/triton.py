"""Scatter of new keys and values into the paged cache. The grid is tokens x blocks of heads; a program reads its
token's slot, leaves at once when it is -1, and copies a tile of BLOCK_HEADS x head size of k and of v through
registers, converted to the cache's dtype. For a quantized cache the scale of a head follows from the same tile, which
holds whole heads. Slots and cache offsets are 64-bit: caches exceed 2^31 elements. Made for strided k and v inside a
fused projection.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl

from ...attention_meta import LayerKV
from ...impl import Flags, impl
from ...spec import Spec
from .._shared.launch import Launch, cdiv, next_power_of_2
from .._shared.quantized_values import cache_bits, cache_constants, cache_reasons, scale_of, to_quantized


@triton.jit
def store_heads(values, cache_ptr, scale_ptr, static_ptr, heads, elements, KIND: tl.constexpr, LIMIT: tl.constexpr):
    """Whole heads [H, D] to the pointers [H, D]; ``heads`` bool [H, 1] and ``elements`` bool [1, D] say which exist, others are
    0. A quantized cache (KIND of its quantized values, else "") gets their scales at the pointers [H, 1]: the one at
    ``static_ptr``, or without it their own."""
    if KIND == "":
        tl.store(cache_ptr, values.to(cache_ptr.dtype.scalar.element_ty), mask=heads & elements)
    else:
        numbers = values.to(tl.float32)
        if static_ptr is None:
            scale = scale_of(tl.max(tl.abs(numbers), axis=1, keep_dims=True), LIMIT)
        else:
            scale = tl.load(static_ptr) + tl.zeros_like(tl.max(numbers, axis=1, keep_dims=True))
        tl.store(scale_ptr, scale, mask=heads)
        tl.store(cache_ptr, to_quantized(numbers, scale, KIND, LIMIT), mask=heads & elements)


@triton.jit
def _kv_cache_write_kernel(
    k_ptr,
    v_ptr,
    k_cache_ptr,
    v_cache_ptr,
    k_scale_ptr,
    v_scale_ptr,
    k_static_ptr,
    v_static_ptr,
    slots_ptr,
    page_size,
    num_heads,
    k_dim,
    v_dim,
    k_token,
    k_head,
    v_token,
    v_head,
    k_page,
    k_slot,
    k_cache_head,
    v_page,
    v_slot,
    v_cache_head,
    k_scale_page,
    k_scale_slot,
    k_scale_head,
    v_scale_page,
    v_scale_slot,
    v_scale_head,
    stride_slots,
    KIND: tl.constexpr,
    LIMIT: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token * stride_slots)
    if slot < 0:
        return
    page, offset = slot // page_size, slot % page_size
    head = (tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS))[:, None]
    heads = head < num_heads

    element = tl.arange(0, BLOCK_K)[None, :]
    keys = tl.load(k_ptr + token * k_token + head * k_head + element, mask=heads & (element < k_dim), other=0.0)
    store_heads(
        keys,
        k_cache_ptr + page * k_page + offset * k_slot + head * k_cache_head + element,
        k_scale_ptr + page * k_scale_page + offset * k_scale_slot + head * k_scale_head,
        k_static_ptr,
        heads,
        element < k_dim,
        KIND,
        LIMIT,
    )
    if v_ptr is None:
        return
    element = tl.arange(0, BLOCK_V)[None, :]
    values = tl.load(v_ptr + token * v_token + head * v_head + element, mask=heads & (element < v_dim), other=0.0)
    store_heads(
        values,
        v_cache_ptr + page * v_page + offset * v_slot + head * v_cache_head + element,
        v_scale_ptr + page * v_scale_page + offset * v_scale_slot + head * v_scale_head,
        v_static_ptr,
        heads,
        element < v_dim,
        KIND,
        LIMIT,
    )


@impl("kv_cache_write", "triton", priority=20, requires=("triton",), flags=Flags(batch_invariant=True), options={"block_heads": 8})
class TritonKVCacheWrite:
    takes = ("k_scale", "v_scale")

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor | None], params: object, *, block_heads: int) -> None:
        self.block_heads = block_heads
        self.static = weights.get("k_scale"), weights.get("v_scale")
        self.launch = Launch(_kv_cache_write_kernel, num_warps=4, enable_fp_fusion=False)

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        return cache_reasons(spec.fact("kv_dtype", spec.dtype))

    def __call__(self, k: torch.Tensor, v: torch.Tensor | None, kv: LayerKV, slot_mapping: torch.Tensor) -> None:
        (num_tokens, num_heads, k_dim), v_dim = k.shape, kv.v.shape[3]
        if num_tokens == 0:
            return
        k_cache, v_cache, k_scale, v_scale = cache_bits(kv)
        k_token, k_head, k_element = k.stride()
        v_token, v_head, v_element = (0, 0, 1) if v is None else v.stride()
        *k_strides, k_cache_element = k_cache.stride()
        *v_strides, v_cache_element = v_cache.stride()
        assert k_element == v_element == k_cache_element == v_cache_element == 1, "head elements must be contiguous"
        block_heads = min(self.block_heads, next_power_of_2(num_heads))
        self.launch(
            (num_tokens, cdiv(num_heads, block_heads)),
            k,
            v,
            k_cache,
            v_cache,
            k_scale,
            v_scale,
            *self.static,
            slot_mapping,
            kv.page_size,
            num_heads,
            k_dim,
            v_dim,
            k_token,
            k_head,
            v_token,
            v_head,
            *k_strides,
            *v_strides,
            *k_scale.stride()[:3],
            *v_scale.stride()[:3],
            slot_mapping.stride(0),
            **cache_constants(kv),
            BLOCK_HEADS=block_heads,
            BLOCK_K=next_power_of_2(k_dim),
            BLOCK_V=next_power_of_2(v_dim),
        )
