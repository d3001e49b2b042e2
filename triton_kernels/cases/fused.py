"""Cases of ``qk_norm_rotary_kv_write``: with and without norms, whole and partial rotation, both styles, skipped tokens."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..op import Case
from . import BENCH, SMALL, TILED, randn
from .kv_cache import cache_dims, empty_cache


def _make(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    rot_dim: int,
    style: str = "neox",
    norms: str = "qk",
    offset: float = 0.0,
    page_size: int = 16,
    interleaved: bool = False,
    strided: bool = False,
    skipped: int = 0,
    kv_dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """``norms``: which of q and k are normalized; ``kv_dtype``: of the cache, if not that of qkv."""
    num_pages, max_position = -(-tokens // page_size) + 3, 97
    width, pad = (num_heads + 2 * num_kv_heads) * head_dim, 16 * strided
    slots = torch.randperm((num_pages - 1) * page_size, generator=generator)[:tokens] + page_size
    slots[torch.randperm(tokens, generator=generator)[:skipped]] = -1
    angles = torch.arange(max_position)[:, None] * 100.0 ** -(torch.arange(0, rot_dim, 2) / rot_dim)
    weights = {
        f"{part}_weight": randn(generator, dtype, device, head_dim, scale=0.3) + 1 if part in norms else None for part in "qk"
    }
    return {
        "qkv": randn(generator, dtype, device, tokens, width + pad)[:, pad:],
        "positions": torch.randint(0, max_position, (tokens,), generator=generator).to(device),
        "kv": empty_cache(num_pages, page_size, num_kv_heads, head_dim, kv_dtype or dtype, device, interleaved=interleaved),
        "slot_mapping": slots.to(device),
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "cos_sin": torch.cat([angles.cos(), angles.sin()], dim=-1).to(device),
        "style": style,
        **weights,
        "eps": 1e-5,
        "offset": offset,
    }


def _case(
    name: str, tags: frozenset[str], tokens: int, num_heads: int, num_kv_heads: int, head_dim: int, rot_dim: int, **more: Any
) -> Case:
    make = partial(_make, tokens=tokens, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, rot_dim=rot_dim, **more)
    dims = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim, **cache_dims(**more)}
    limits = _QUANTIZED if dims.get("kv_bytes") == 1 else None
    return Case(name, make, tags, dims, (1,) * tokens, (1,) * tokens, limits)


# Of a number that lies between two quantized values a last bit decides; rounding all of them the wrong way would be an error above
# 1e-2.
_QUANTIZED = dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), 6e-3)

CASES = (
    _case("one_row", SMALL, 1, 4, 2, 32, 32),
    _case("tiled", TILED, 9, 7, 3, 80, 80, skipped=2),
    _case("no_norm", SMALL, 6, 4, 1, 48, 48, norms="", interleaved=True),
    _case("partial", SMALL, 7, 3, 1, 48, 20, offset=1.0),
    _case("only_k_norm", SMALL, 5, 2, 2, 32, 32, norms="k", strided=True, skipped=1),
    _case("gptj", SMALL, 5, 3, 1, 32, 32, style="gptj", norms=""),
    _case("gptj_partial", SMALL, 6, 3, 2, 40, 24, style="gptj", page_size=64, skipped=2),
    _case("all_skipped", SMALL, 2, 2, 1, 16, 16, skipped=2),
    _case("empty", SMALL, 0, 2, 1, 16, 16),
    _case("e4m3", SMALL, 9, 7, 3, 80, 80, skipped=2, kv_dtype=torch.float8_e4m3fn),
    _case("e5m2_gptj_partial", SMALL, 6, 3, 2, 40, 24, style="gptj", norms="", kv_dtype=torch.float8_e5m2),
    _case("int8_partial", SMALL, 7, 3, 1, 48, 20, offset=1.0, interleaved=True, skipped=1, kv_dtype=torch.int8),
    _case("int8_empty", SMALL, 0, 2, 1, 16, 16, kv_dtype=torch.int8),
    _case("wider_cache", SMALL, 5, 2, 2, 32, 32, kv_dtype=torch.float32),
    *(_case(f"qwen3-8b_{tokens}", BENCH, tokens, 32, 8, 128, 128) for tokens in (64, 2048)),
    _case("llama-8b_64", BENCH, 64, 32, 8, 128, 128, norms=""),
    _case("qwen3-8b_2048_e4m3", BENCH, 2048, 32, 8, 128, 128, kv_dtype=torch.float8_e4m3fn),
)
