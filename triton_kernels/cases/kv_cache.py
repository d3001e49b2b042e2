"""Cases of ``kv_cache_write`` and ``copy_blocks``, and the paged caches that attention cases read."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..attention_meta import LayerKV
from ..op import Case
from . import BENCH, SMALL, TILED, randn


def empty_cache(
    num_pages: int,
    page_size: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    value_dim: int | None = None,
    interleaved: bool = False,
    aliased: bool = False,
) -> LayerKV:
    """A cache full of NaN: whatever a kernel reads that was not written shows.

    interleaved   keys and values of a page lie side by side in memory
    aliased       values are the first value_dim elements of the keys (latent attention)
    """
    shape = (num_pages, 2 if interleaved else 1, page_size, num_kv_heads, head_dim)
    memory = torch.full(shape, torch.nan, dtype=dtype, device=device)
    if interleaved:
        return LayerKV(memory[:, 0], memory[:, 1])
    k = memory[:, 0]
    if aliased:
        return LayerKV(k, k[..., : value_dim or head_dim])
    value_shape = (num_pages, page_size, num_kv_heads, value_dim or head_dim)
    return LayerKV(k, torch.full(value_shape, torch.nan, dtype=dtype, device=device))


def _write(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    num_kv_heads: int,
    head_dim: int,
    page_size: int = 16,
    value_dim: int | None = None,
    interleaved: bool = False,
    skipped: int = 0,
) -> dict[str, Any]:
    num_pages = -(-tokens // page_size) + 3
    kv = empty_cache(num_pages, page_size, num_kv_heads, head_dim, dtype, device, value_dim, interleaved)
    if value_dim is None:  # as the slices of a fused projection
        both = randn(generator, dtype, device, tokens, 2 * num_kv_heads, head_dim)
        k, v = both[:, :num_kv_heads], both[:, num_kv_heads:]
    else:
        k = randn(generator, dtype, device, tokens, num_kv_heads, head_dim)
        v = randn(generator, dtype, device, tokens, num_kv_heads, value_dim)
    slots = torch.randperm((num_pages - 1) * page_size, generator=generator)[:tokens] + page_size
    slots[torch.randperm(tokens, generator=generator)[:skipped]] = -1
    return {"k": k, "v": v, "kv": kv, "slot_mapping": slots.to(device)}


def _write_case(name: str, tags: frozenset[str], tokens: int, num_kv_heads: int, head_dim: int, **more: Any) -> Case:
    make = partial(_write, tokens=tokens, num_kv_heads=num_kv_heads, head_dim=head_dim, **more)
    return Case(name, make, tags, {"num_kv_heads": num_kv_heads, "head_dim": head_dim}, (tokens,))


def _copy(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    num_blocks: int,
    page_size: int,
    num_kv_heads: int,
    head_dim: int,
    interleaved: bool = False,
) -> dict[str, Any]:
    num_pages = 2 * num_blocks + 3
    kv = empty_cache(num_pages, page_size, num_kv_heads, head_dim, dtype, device, interleaved=interleaved)
    pages = torch.randperm(num_pages - 1, generator=generator) + 1
    src, dst = pages[:num_blocks].to(device), pages[num_blocks : 2 * num_blocks].to(device)
    for cache in (kv.k, kv.v):
        cache[src] = randn(generator, dtype, device, num_blocks, page_size, num_kv_heads, head_dim)
    return {"kv": kv, "src": src, "dst": dst}


def _copy_case(name: str, tags: frozenset[str], num_blocks: int, page_size: int, heads: int, dim: int, **more: Any) -> Case:
    make = partial(_copy, num_blocks=num_blocks, page_size=page_size, num_kv_heads=heads, head_dim=dim, **more)
    dims = {"num_blocks": num_blocks, "page_size": page_size, "num_kv_heads": heads, "head_dim": dim}
    return Case(name, make, tags, dims, (1,) if num_blocks else ())


KV_CACHE_WRITE_CASES = (
    _write_case("one_row", SMALL, 1, 2, 32),
    _write_case("tiled", TILED, 101, 5, 80, skipped=7),
    _write_case("interleaved", SMALL, 19, 3, 40, interleaved=True, skipped=2),
    _write_case("page64", SMALL, 9, 2, 64, page_size=64),
    _write_case("value_dim", SMALL, 7, 1, 96, value_dim=64, skipped=1),
    _write_case("all_skipped", SMALL, 3, 1, 16, skipped=3),
    _write_case("empty", SMALL, 0, 2, 16),
    *(_write_case(f"llama-8b_{tokens}", BENCH, tokens, 8, 128) for tokens in (64, 8192)),
)

COPY_BLOCKS_CASES = (
    _copy_case("one", SMALL, 1, 16, 2, 32),
    _copy_case("tiled", TILED, 5, 16, 3, 80),
    _copy_case("interleaved", SMALL, 3, 16, 3, 40, interleaved=True),
    _copy_case("page64", SMALL, 2, 64, 1, 24),
    _copy_case("empty", SMALL, 0, 16, 1, 16),
    _copy_case("llama-8b", BENCH, 256, 16, 8, 128),
)
