"""``kv_cache_write`` and ``copy_blocks``: what writes the paged cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..attention_meta import LayerKV
from ..cases.kv_cache import COPY_BLOCKS_CASES, KV_CACHE_WRITE_CASES
from ..op import Cost, Op, Tolerance


def kv_cache_write_reference(k: torch.Tensor, v: torch.Tensor, kv: LayerKV, slot_mapping: torch.Tensor) -> None:
    """Writes k [T, Hk, Dk] and v [T, Hk, Dv] to the slots int64 [T] of the cache; slot = page * page_size + offset, -1 skips."""
    keep = slot_mapping >= 0
    slots = slot_mapping[keep]
    page, offset = slots // kv.page_size, slots % kv.page_size
    kv.k[page, offset] = k[keep].to(kv.k.dtype)
    kv.v[page, offset] = v[keep].to(kv.v.dtype)


def copy_blocks_reference(kv: LayerKV, src: torch.Tensor, dst: torch.Tensor) -> None:
    """Copies pages src int64 [n] to pages dst int64 [n] of one layer. No page is both a source and a destination."""
    for cache in kv:
        if cache is not None:
            cache[dst] = cache[src]


def kv_cache_write_fake(k, v, kv, slot_mapping):  # type: ignore[no-untyped-def]
    return None


def copy_blocks_fake(kv, src, dst):  # type: ignore[no-untyped-def]
    return None


def kv_cache_write_cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: num_kv_heads, head_dim, act_bytes, kv_bytes."""
    elements = 2 * sum(q_lens) * dims["num_kv_heads"] * dims["head_dim"]
    return Cost(0, elements * (dims.get("act_bytes", 2) + dims.get("kv_bytes", 2)))


def copy_blocks_cost(dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> Cost:
    """dims: num_blocks, page_size, num_kv_heads, head_dim, kv_bytes."""
    elements = 2 * dims["num_blocks"] * dims["page_size"] * dims["num_kv_heads"] * dims["head_dim"]
    return Cost(0, 2 * elements * dims.get("kv_bytes", 2))


kv_cache_write = Op("kv_cache_write", kv_cache_write_reference, kv_cache_write_fake, kv_cache_write_cost,
                    cases=KV_CACHE_WRITE_CASES, mutates=("kv",), tolerance=Tolerance(exact=True))  # fmt: skip
copy_blocks = Op("copy_blocks", copy_blocks_reference, copy_blocks_fake, copy_blocks_cost, cases=COPY_BLOCKS_CASES,
                 mutates=("kv",), tolerance=Tolerance(exact=True))  # fmt: skip
