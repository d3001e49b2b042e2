"""``kv_cache_write`` and ``copy_blocks``: what writes the paged cache.

A quantized cache holds 8-bit quantized values and an f32 scale per token and head: no calibration, and what is written for a token
depends on nothing but the token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..attention_meta import LayerKV
from ..cases.kv_cache import COPY_BLOCKS_CASES, KV_CACHE_WRITE_CASES
from ..op import Cost, Op, Tolerance
from .quantize import reference as quantize_reference


def kv_cache_write_reference(
    k: torch.Tensor,
    v: torch.Tensor | None,
    kv: LayerKV,
    slot_mapping: torch.Tensor,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> None:
    """Writes k [T, Hk, Dk] and v [T, Hk, Dv] to the slots int64 [T] of the cache; slot = page * page_size + offset, -1 skips.

    Numbers are rounded to the cache's dtype. Where kv has scales, a token's head becomes quantized values and a scale as a row does
    in ``quantize_activation``: scale = max|x| / largest quantized value, at least 1e-10; q = x / scale in f32, to nearest even.
    v                 None where the cache's values are the first elements of its keys
    k_scale, v_scale  f32 [1, 1] or None: the scale of all keys and of all values, in place of their own (both or neither)
    """
    keep = slot_mapping >= 0
    slots = slot_mapping[keep]
    page, offset = slots // kv.page_size, slots % kv.page_size
    for new, cache, scales, static in ((k, kv.k, kv.k_scale, k_scale), (v, kv.v, kv.v_scale, v_scale)):
        if new is None:
            continue
        if scales is None:
            cache[page, offset] = new[keep].to(cache.dtype)
        else:
            quantized, scale = quantize_reference(new[keep], cache.dtype, static_scale=static)
            cache[page, offset], scales[page, offset] = quantized, scale[..., 0]


def copy_blocks_reference(kv: LayerKV, src: torch.Tensor, dst: torch.Tensor) -> None:
    """Copies pages src int64 [n] to pages dst int64 [n] of one layer. No page is both a source and a destination."""
    for cache in kv.stored():
        cache[dst] = cache[src]


def kv_cache_write_fake(k, v, kv, slot_mapping, k_scale=None, v_scale=None):  # type: ignore[no-untyped-def]
    return None


def copy_blocks_fake(kv, src, dst):  # type: ignore[no-untyped-def]
    return None


def cached_head_bytes(dims: Mapping[str, float]) -> float:
    """What a head of a token takes in the cache, key and value: quantized values of one byte have an f32 scale. dims: head_dim,
    value_dim (head_dim), aliased (1: the value lies in the key), kv_bytes."""
    kv_bytes = dims.get("kv_bytes", 2)
    own = (dims["head_dim"], *(() if dims.get("aliased") else (value_dim(dims),)))
    return sum(width * kv_bytes + 4 * (kv_bytes == 1) for width in own)


def value_dim(dims: Mapping[str, float]) -> float:
    """As given, or that of the keys."""
    return dims.get("value_dim", dims["head_dim"])


def kv_cache_write_cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: num_kv_heads, head_dim, act_bytes, and as ``cached_head_bytes``."""
    heads = sum(q_lens) * dims["num_kv_heads"]
    numbers = dims["head_dim"] + (0 if dims.get("aliased") else value_dim(dims))
    flops = 3 * heads * numbers * (dims.get("kv_bytes", 2) == 1)
    return Cost(flops, heads * (numbers * dims.get("act_bytes", 2) + cached_head_bytes(dims)))


def copy_blocks_cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: num_blocks, page_size, num_kv_heads, and as ``cached_head_bytes``."""
    heads = dims["num_blocks"] * dims["page_size"] * dims["num_kv_heads"]
    return Cost(0, 2 * heads * cached_head_bytes(dims))


kv_cache_write = Op(
    "kv_cache_write",
    kv_cache_write_reference,
    kv_cache_write_fake,
    kv_cache_write_cost,
    cases=KV_CACHE_WRITE_CASES,
    bind_args=("k_scale", "v_scale"),
    optional=("k_scale", "v_scale"),
    mutates=("kv",),
    tolerance=Tolerance(exact=True),
)
copy_blocks = Op(
    "copy_blocks",
    copy_blocks_reference,
    copy_blocks_fake,
    copy_blocks_cost,
    cases=COPY_BLOCKS_CASES,
    mutates=("kv",),
    tolerance=Tolerance(exact=True),
)
