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
    """A cache full of NaN: whatever a kernel reads that was not written shows. Of a quantized one (``dtype`` of one byte) the
    scales are NaN, and those of a page lie side by side.

    interleaved   keys and values of a page lie side by side in memory
    aliased       values are the first value_dim elements of the keys (latent attention)
    """
    shape = (num_pages, 2 if interleaved else 1, page_size, num_kv_heads, head_dim)
    memory = _unwritten(shape, dtype, device)
    if aliased:
        k = memory[:, 0]
        return LayerKV(k, k[..., : value_dim or head_dim])
    value_shape = (num_pages, page_size, num_kv_heads, value_dim or head_dim)
    v = memory[:, 1] if interleaved else _unwritten(value_shape, dtype, device)
    if dtype.itemsize > 1:
        return LayerKV(memory[:, 0], v)
    scales = _unwritten((num_pages, 2, page_size, num_kv_heads), torch.float32, device)
    return LayerKV(memory[:, 0], v, scales[:, 0], scales[:, 1])


def _unwritten(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.full(shape, torch.nan if dtype.is_floating_point else torch.iinfo(dtype).max, dtype=dtype, device=device)


def quantize_cache(kv: LayerKV, dtype: torch.dtype) -> LayerKV:
    """The cache in quantized values of ``dtype``, with a scale per token and head; what was not written (NaN) has NaN scales."""
    top = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    scales = [cache.float().abs().amax(-1) / top for cache in kv[:2]]
    quantized = [(cache.float() / scale[..., None]).clamp(-top, top).nan_to_num(top) for cache, scale in zip(kv[:2], scales)]
    if dtype == torch.int8:
        quantized = [values.round() for values in quantized]
    return LayerKV(*(values.to(dtype) for values in quantized), *scales)


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
    aliased: bool = False,
    kv_dtype: torch.dtype | None = None,
    static: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """``kv_dtype``: of the cache, if not that of k and v; ``static``: scales of all keys and of all values."""
    num_pages = -(-tokens // page_size) + 3
    kv = empty_cache(num_pages, page_size, num_kv_heads, head_dim, kv_dtype or dtype, device, value_dim, interleaved, aliased)
    if value_dim is None:  # as the slices of a fused projection
        both = randn(generator, dtype, device, tokens, 2 * num_kv_heads, head_dim)
        k, v = both[:, :num_kv_heads], both[:, num_kv_heads:]
    else:
        k = randn(generator, dtype, device, tokens, num_kv_heads, head_dim)
        v = randn(generator, dtype, device, tokens, num_kv_heads, value_dim)
    if kv_dtype is not None and tokens > 1:  # scales from the smallest to large
        k[0], v[0], k[1] = 0, v[0] * 100, k[1] / 1000
    slots = torch.randperm((num_pages - 1) * page_size, generator=generator)[:tokens] + page_size
    slots[torch.randperm(tokens, generator=generator)[:skipped]] = -1
    scales = [None, None] if static is None else [torch.full((1, 1), scale, device=device) for scale in static]
    return {
        "k": k,
        "v": None if aliased else v,
        "kv": kv,
        "slot_mapping": slots.to(device),
        "k_scale": scales[0],
        "v_scale": scales[1],
    }


def _write_case(name: str, tags: frozenset[str], tokens: int, num_kv_heads: int, head_dim: int, **more: Any) -> Case:
    make = partial(_write, tokens=tokens, num_kv_heads=num_kv_heads, head_dim=head_dim, **more)
    dims = {"num_kv_heads": num_kv_heads, "head_dim": head_dim, **cache_dims(**more)}
    return Case(name, make, tags, dims, (tokens,))


def cache_dims(
    kv_dtype: torch.dtype | None = None, value_dim: int | None = None, aliased: bool = False, **_: Any
) -> dict[str, float]:
    """Size of a cache's elements where it is not that of the activations, and of its values where it is not that of the keys."""
    dims: dict[str, float] = {} if kv_dtype is None else {"kv_bytes": kv_dtype.itemsize}
    dims |= {} if value_dim is None else {"value_dim": value_dim}
    return {**dims, "aliased": 1} if aliased else dims


def _copy(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    num_blocks: int,
    page_size: int,
    num_kv_heads: int,
    head_dim: int,
    interleaved: bool = False,
    kv_dtype: torch.dtype | None = None,
    value_dim: int | None = None,
    aliased: bool = False,
) -> dict[str, Any]:
    num_pages = 2 * num_blocks + 3
    kv = empty_cache(num_pages, page_size, num_kv_heads, head_dim, kv_dtype or dtype, device, value_dim, interleaved, aliased)
    pages = torch.randperm(num_pages - 1, generator=generator) + 1
    src, dst = pages[:num_blocks].to(device), pages[num_blocks : 2 * num_blocks].to(device)
    for cache in (kv.k, kv.v):
        cache[src] = randn(generator, dtype, device, num_blocks, *cache.shape[1:], scale=30).to(cache.dtype)
    for scales in (kv.k_scale, kv.v_scale):
        if scales is not None:
            scales[src] = randn(generator, torch.float32, device, num_blocks, page_size, num_kv_heads)
    return {"kv": kv, "src": src, "dst": dst}


def _copy_case(name: str, tags: frozenset[str], num_blocks: int, page_size: int, heads: int, dim: int, **more: Any) -> Case:
    make = partial(_copy, num_blocks=num_blocks, page_size=page_size, num_kv_heads=heads, head_dim=dim, **more)
    dims = {"num_blocks": num_blocks, "page_size": page_size, "num_kv_heads": heads, "head_dim": dim, **cache_dims(**more)}
    return Case(name, make, tags, dims, (1,) if num_blocks else ())


KV_CACHE_WRITE_CASES = (
    _write_case("one_row", SMALL, 1, 2, 32),
    _write_case("tiled", TILED, 101, 5, 80, skipped=7),
    _write_case("interleaved", SMALL, 19, 3, 40, interleaved=True, skipped=2),
    _write_case("page64", SMALL, 9, 2, 64, page_size=64),
    _write_case("value_dim", SMALL, 7, 1, 96, value_dim=64, skipped=1),
    _write_case("aliased", SMALL, 7, 1, 80, value_dim=64, aliased=True, skipped=1),
    _write_case("all_skipped", SMALL, 3, 1, 16, skipped=3),
    _write_case("empty", SMALL, 0, 2, 16),
    _write_case("e4m3_tiled", TILED, 53, 5, 80, kv_dtype=torch.float8_e4m3fn, skipped=5),
    _write_case("e4m3_value_dim", SMALL, 7, 1, 96, value_dim=64, kv_dtype=torch.float8_e4m3fn),
    _write_case("e5m2_interleaved", SMALL, 19, 3, 40, interleaved=True, kv_dtype=torch.float8_e5m2, skipped=2),
    _write_case("e4m3_static", SMALL, 19, 3, 40, kv_dtype=torch.float8_e4m3fn, static=(0.01, 0.03), skipped=2),
    _write_case("int8_tiled", TILED, 53, 5, 80, kv_dtype=torch.int8, skipped=5),
    _write_case("int8_interleaved_page64", SMALL, 9, 2, 24, page_size=64, interleaved=True, kv_dtype=torch.int8),
    _write_case("int8_all_skipped", SMALL, 3, 1, 16, kv_dtype=torch.int8, skipped=3),
    _write_case("e4m3_empty", SMALL, 0, 2, 16, kv_dtype=torch.float8_e4m3fn),
    _write_case("deepseek-v3_8192", BENCH, 8192, 1, 576, value_dim=512, aliased=True),
    *(_write_case(f"llama-8b_{tokens}", BENCH, tokens, 8, 128) for tokens in (64, 8192)),
    _write_case("llama-8b_8192_e4m3", BENCH, 8192, 8, 128, kv_dtype=torch.float8_e4m3fn),
    _write_case("llama-8b_8192_int8", BENCH, 8192, 8, 128, kv_dtype=torch.int8),
)

COPY_BLOCKS_CASES = (
    _copy_case("one", SMALL, 1, 16, 2, 32),
    _copy_case("tiled", TILED, 5, 16, 3, 80),
    _copy_case("interleaved", SMALL, 3, 16, 3, 40, interleaved=True),
    _copy_case("page64", SMALL, 2, 64, 1, 24),
    _copy_case("aliased", SMALL, 3, 16, 1, 80, value_dim=64, aliased=True),
    _copy_case("empty", SMALL, 0, 16, 1, 16),
    _copy_case("e4m3", SMALL, 3, 16, 3, 40, kv_dtype=torch.float8_e4m3fn),
    _copy_case("e5m2_interleaved", SMALL, 2, 16, 3, 40, interleaved=True, kv_dtype=torch.float8_e5m2),
    _copy_case("int8", SMALL, 3, 16, 2, 24, kv_dtype=torch.int8),
    _copy_case("llama-8b", BENCH, 256, 16, 8, 128),
)
