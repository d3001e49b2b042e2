"""Cases of ``paged_attention_prefill`` and ``paged_attention_decode``."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..attention_meta import AttentionMeta
from ..op import Case
from . import BENCH, SMALL, TILED, randn
from .kv_cache import cache_dims, empty_cache, quantize_cache

_STATIC: dict[str, Any] = {"causal": True, "window": None, "softcap": None, "return_lse": False, "alibi_scale": None}


def _make(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    q_lens: tuple[int, ...],
    seq_lens: tuple[int, ...],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    page_size: int = 16,
    value_dim: int | None = None,
    layout: str = "separate",
    sharp: float = 1.0,
    slack: int = 0,
    sinks: bool = False,
    alibi: bool = False,
    num_distances: int = 0,
    kv_dtype: torch.dtype | None = None,
    **static: Any,
) -> dict[str, Any]:
    """Pages lie in random order; every slot that holds no token, the null page included, is NaN.

    layout  "separate", "interleaved" or "aliased", see :func:`empty_cache`
    sharp   factor of the queries: how far the scores spread
    slack   by how much the host's upper bounds of lengths exceed them
    kv_dtype   of a quantized cache
    num_distances  of a table of position biases; 0: there is none
    """
    needed = [-(-length // page_size) for length in seq_lens]
    num_pages, max_seq_len = sum(needed) + 3, max(seq_lens) + slack
    kv = empty_cache(
        num_pages, page_size, num_kv_heads, head_dim, dtype, device, value_dim, layout == "interleaved", layout == "aliased"
    )
    block_table = torch.zeros(len(seq_lens), -(-max_seq_len // page_size) + 1, dtype=torch.int32)
    free = (torch.randperm(num_pages - 1, generator=generator) + 1).tolist()
    for r, (length, blocks) in enumerate(zip(seq_lens, needed)):
        pages, free = free[:blocks], free[blocks:]
        block_table[r, :blocks] = torch.tensor(pages, dtype=torch.int32)
        slots = torch.arange(length)
        page, offset = torch.tensor(pages, dtype=torch.int64)[slots // page_size].to(device), (slots % page_size).to(device)
        kv.k[page, offset] = randn(generator, dtype, device, length, num_kv_heads, head_dim)
        if layout != "aliased":
            kv.v[page, offset] = randn(generator, dtype, device, length, num_kv_heads, kv.v.shape[-1])
    qkv = randn(generator, dtype, device, sum(q_lens), num_heads + 2 * num_kv_heads, head_dim, scale=sharp)
    cu_q = torch.tensor([0, *q_lens]).cumsum(0).to(torch.int32)
    meta = AttentionMeta(
        cu_q=cu_q.to(device),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=device),
        block_table=block_table.to(device),
        max_q=max(q_lens),
        max_seq_len=max_seq_len,
    )
    return {
        "q": qkv[:, :num_heads],  # strided, as the slice of a fused projection
        "kv": kv if kv_dtype is None else quantize_cache(kv, kv_dtype),
        "meta": meta,
        "scale": head_dim**-0.5,
        "sinks": randn(generator, torch.float32, device, num_heads) if sinks else None,
        "alibi": torch.logspace(0, -2, num_heads, base=2.0, device=device) if alibi else None,
        "position_bias": randn(generator, torch.float32, device, num_heads, num_distances) if num_distances else None,
        **_STATIC,
        **static,
    }


def _case(
    name: str, tags: frozenset[str], q_lens: tuple[int, ...], seq_lens: tuple[int, ...], heads: tuple[int, int, int], **more: Any
) -> Case:
    """``heads``: query heads, KV heads, head size."""
    num_heads, num_kv_heads, head_dim = heads
    dims = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim, "window": more.get("window") or 0}
    dims |= cache_dims(more.get("kv_dtype"), more.get("value_dim"), more.get("layout") == "aliased")
    make = partial(
        _make, q_lens=q_lens, seq_lens=seq_lens, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, **more
    )
    return Case(name, make, tags, dims, q_lens, seq_lens)


LLAMA_8B, QWEN3_30B, GPT_OSS, GEMMA_2_9B = (32, 8, 128), (32, 4, 128), (64, 8, 64), (16, 8, 256)
DEEPSEEK_V3, DEEPSEEK_V2_LITE = (128, 1, 576), (16, 1, 576)
_LATENT: dict[str, Any] = {"value_dim": 512, "layout": "aliased"}

_QUANTIZED_HEADS = ((80, torch.int8), (96, torch.float8_e4m3fn), (128, torch.float8_e5m2), (256, torch.int8))
_EVERY_FEATURE: dict[str, Any] = {"window": 11, "softcap": 3.0, "sinks": True, "alibi": True, "return_lse": True}

PREFILL_CASES = (
    _case("one_token", SMALL, (1,), (1,), (2, 1, 64)),
    _case("whole", SMALL, (5, 21, 13), (5, 21, 13), (4, 1, 64)),
    _case("chunked_tiled", TILED, (39, 50), (101, 50), (3, 1, 64), slack=9),
    _case("page64", SMALL, (9, 17), (70, 17), (5, 1, 64), page_size=64),
    _case("heads_80", SMALL, (18, 3), (23, 40), (3, 3, 80)),
    _case("heads_96_interleaved", SMALL, (11, 7), (20, 7), (4, 2, 96), layout="interleaved"),
    _case("heads_128", SMALL, (17,), (35,), (8, 1, 128)),
    _case("heads_256", SMALL, (6,), (19,), (2, 1, 256)),
    _case("padding_rows", SMALL, (4, 3, 0, 6), (20, 0, 0, 6), (3, 1, 64)),
    _case("window", SMALL, (37, 5), (37, 44), (4, 2, 64), window=9),
    _case("softcap", SMALL, (7, 19), (25, 19), (4, 2, 64), softcap=2.0, sharp=3.0),
    _case("sinks", SMALL, (7, 19), (25, 19), (6, 2, 64), sinks=True, window=12),
    _case("alibi", SMALL, (7, 19), (25, 19), (4, 4, 64), alibi=True),
    _case("rounded_alibi", SMALL, (7, 19, 5), (25, 19, 300), (4, 2, 64), alibi=True, alibi_scale=0.3, return_lse=True),
    _case("position_bias", SMALL, (7, 19, 3), (60, 19, 0), (4, 2, 64), num_distances=33, return_lse=True),
    _case("position_bias_tiled", TILED, (39, 50), (101, 50), (3, 3, 64), num_distances=80, slack=9),
    _case("lse", SMALL, (7, 3, 19), (25, 0, 19), (4, 1, 64), return_lse=True),
    _case(
        "all_features",
        SMALL,
        (7, 19),
        (40, 19),
        (4, 2, 64),
        window=11,
        softcap=3.0,
        sinks=True,
        alibi=True,
        return_lse=True,
        sharp=2.0,
    ),
    _case("not_causal", SMALL, (7, 19), (25, 19), (4, 2, 64), causal=False),
    _case("not_causal_few_keys", SMALL, (7, 19, 40), (25, 3, 9), (4, 2, 64), causal=False),
    _case("not_causal_window", SMALL, (37, 5), (37, 44), (4, 2, 64), window=9, causal=False),
    _case("not_causal_window_tiled", TILED, (101, 50), (101, 70), (3, 1, 64), window=21, causal=False),
    _case("value_dim", SMALL, (7, 9), (25, 9), (4, 1, 96), value_dim=64),
    _case("aliased_uneven_width", SMALL, (7, 9), (25, 9), (4, 1, 96), value_dim=56, layout="aliased"),
    _case("latent", SMALL, (7, 0, 9), (25, 0, 9), (4, 1, 80), value_dim=64, layout="aliased"),
    _case("latent_tiled", TILED, (39, 50), (101, 50), (3, 1, 72), value_dim=64, layout="aliased", slack=9),
    _case("latent_all_features", SMALL, (7, 11), (40, 11), (6, 2, 80), value_dim=64, layout="aliased", **_EVERY_FEATURE),
    _case("latent_576", SMALL, (6, 3), (40, 19), (16, 1, 576), **_LATENT),
    _case("e4m3", SMALL, (7, 19), (25, 19), (4, 2, 64), kv_dtype=torch.float8_e4m3fn),
    _case("e5m2_page64", SMALL, (18, 3), (23, 70), (3, 3, 80), page_size=64, kv_dtype=torch.float8_e5m2),
    _case(
        "int8_all_features",
        SMALL,
        (7, 0, 19),
        (40, 0, 19),
        (4, 2, 64),
        window=11,
        softcap=3.0,
        sinks=True,
        alibi=True,
        return_lse=True,
        kv_dtype=torch.int8,
    ),
    *(
        _case(f"all_features_heads_{dim}", SMALL, (7, 11), (40, 11), (4, 2, dim), kv_dtype=kv_dtype, **_EVERY_FEATURE)
        for dim, kv_dtype in _QUANTIZED_HEADS
    ),
    _case("page64_chunked", SMALL, (39, 70), (200, 70), (4, 1, 128), page_size=64),
    _case("page64_heads_256", SMALL, (6,), (70,), (2, 1, 256), page_size=64),
    _case(
        "all_features_page64",
        SMALL,
        (7, 0, 19),
        (90, 0, 19),
        (4, 2, 64),
        page_size=64,
        window=40,
        softcap=3.0,
        sinks=True,
        alibi=True,
        return_lse=True,
        sharp=2.0,
    ),
    *(
        _case(f"llama-8b_{q}_of_{length}", BENCH, (q,) * num, (length,) * num, LLAMA_8B, page_size=64)
        for q, length, num in ((512, 512, 8), (2048, 2048, 4), (8192, 8192, 1), (1024, 16384, 1))
    ),
    _case("llama-8b_2048_of_2048_e4m3", BENCH, (2048,) * 4, (2048,) * 4, LLAMA_8B, page_size=64, kv_dtype=torch.float8_e4m3fn),
    _case("llama-8b_2048_of_2048_page16", BENCH, (2048,) * 4, (2048,) * 4, LLAMA_8B),
    _case("qwen3-30b-a3b_2048_of_2048", BENCH, (2048,) * 4, (2048,) * 4, QWEN3_30B, page_size=64),
    _case("deepseek-v3_2048_of_2048", BENCH, (2048,) * 4, (2048,) * 4, DEEPSEEK_V3, page_size=64, **_LATENT),
    _case("deepseek-v2-lite_2048_of_2048", BENCH, (2048,) * 4, (2048,) * 4, DEEPSEEK_V2_LITE, page_size=64, **_LATENT),
    _case("gpt-oss_2048_of_2048", BENCH, (2048,) * 4, (2048,) * 4, GPT_OSS, page_size=64, window=128, sinks=True),
    _case("gemma-2-9b_2048_of_2048", BENCH, (2048,) * 4, (2048,) * 4, GEMMA_2_9B, page_size=64, softcap=50.0),
)

DECODE_CASES = (
    _case("one_token", SMALL, (1,), (1,), (2, 1, 64)),
    _case("uneven", SMALL, (1,) * 5, (1, 16, 17, 90, 33), (4, 1, 64)),
    _case("tiled", TILED, (1, 1), (101, 148), (3, 1, 64), slack=9),
    _case("page64", SMALL, (1, 1, 1), (64, 130, 65), (5, 1, 64), page_size=64),
    _case("ragged_queries", SMALL, (3, 1, 8, 2), (40, 7, 29, 2), (6, 2, 64)),
    _case("heads_80", SMALL, (1, 1), (23, 40), (3, 3, 80)),
    _case("heads_96_interleaved", SMALL, (1, 2), (20, 37), (4, 2, 96), layout="interleaved"),
    _case("heads_128", SMALL, (1, 1), (35, 18), (8, 1, 128)),
    _case("heads_256", SMALL, (1,), (19,), (2, 1, 256)),
    _case("padding_rows", SMALL, (1, 1, 1, 1), (20, 0, 7, 0), (3, 1, 64)),
    _case("rows_without_queries", SMALL, (0, 2, 0, 1, 0), (0, 20, 0, 7, 0), (3, 1, 64)),
    _case("window", SMALL, (1, 5, 1), (37, 44, 3), (4, 2, 64), window=9),
    _case("not_causal", SMALL, (1, 5, 3), (37, 44, 3), (4, 2, 64), causal=False),
    _case("not_causal_few_keys", SMALL, (1, 8, 3), (37, 4, 1), (4, 2, 64), causal=False),
    _case("not_causal_window", SMALL, (1, 5, 3), (37, 44, 3), (4, 2, 64), window=3, causal=False),
    _case("softcap", SMALL, (1, 2), (25, 19), (4, 2, 64), softcap=2.0, sharp=3.0),
    _case("sinks", SMALL, (1, 3), (25, 19), (6, 2, 64), sinks=True, window=12),
    _case("alibi", SMALL, (1, 3), (25, 19), (4, 4, 64), alibi=True),
    _case("rounded_alibi", SMALL, (1, 3, 2), (25, 19, 300), (4, 2, 64), alibi=True, alibi_scale=0.3, return_lse=True),
    _case("position_bias", SMALL, (1, 3, 2), (25, 19, 300), (4, 2, 64), num_distances=33, return_lse=True),
    _case("position_bias_one_query", SMALL, (1, 1), (130, 19), (3, 3, 64), num_distances=128),
    _case("lse", SMALL, (1, 1, 2), (25, 0, 19), (4, 1, 64), return_lse=True),
    _case(
        "all_features",
        SMALL,
        (1, 2),
        (40, 19),
        (4, 2, 64),
        window=11,
        softcap=3.0,
        sinks=True,
        alibi=True,
        return_lse=True,
        sharp=2.0,
    ),
    _case("value_dim", SMALL, (1, 1), (25, 9), (4, 1, 96), value_dim=64),
    _case("aliased_uneven_width", SMALL, (1, 1), (25, 9), (4, 1, 96), value_dim=56, layout="aliased"),
    _case("latent", SMALL, (1, 1, 3), (25, 0, 9), (4, 1, 80), value_dim=64, layout="aliased"),
    _case("latent_tiled", TILED, (1, 1), (101, 148), (3, 1, 72), value_dim=64, layout="aliased", slack=9),
    _case("latent_all_features", SMALL, (1, 8), (40, 19), (6, 2, 80), value_dim=64, layout="aliased", **_EVERY_FEATURE),
    _case("latent_576", SMALL, (1, 2), (40, 19), (20, 1, 576), **_LATENT),
    _case("e4m3", SMALL, (1, 3), (25, 19), (4, 2, 64), kv_dtype=torch.float8_e4m3fn),
    _case("e5m2_page64", SMALL, (1, 1), (23, 130), (3, 3, 80), page_size=64, kv_dtype=torch.float8_e5m2),
    _case(
        "int8_all_features",
        SMALL,
        (1, 1, 2),
        (40, 0, 19),
        (4, 2, 64),
        window=11,
        softcap=3.0,
        sinks=True,
        alibi=True,
        return_lse=True,
        kv_dtype=torch.int8,
    ),
    *(
        _case(f"all_features_heads_{dim}", SMALL, (1, 8), (40, 19), (4, 2, dim), kv_dtype=kv_dtype, **_EVERY_FEATURE)
        for dim, kv_dtype in _QUANTIZED_HEADS
    ),
    *(
        _case(f"llama-8b_{num}x{length}", BENCH, (1,) * num, (length,) * num, LLAMA_8B, page_size=64)
        for num, length in ((1, 2048), (8, 8192), (64, 2048), (256, 512))
    ),
    _case("llama-8b_mixed", BENCH, (1,) * 32, (131072,) + (4096,) * 31, LLAMA_8B, page_size=64),
    _case("llama-8b_64x2048_e4m3", BENCH, (1,) * 64, (2048,) * 64, LLAMA_8B, page_size=64, kv_dtype=torch.float8_e4m3fn),
    _case("llama-8b_32x4096_4_queries", BENCH, (4,) * 32, (4096,) * 32, LLAMA_8B, page_size=64),
    _case("llama-8b_64x2048_page16", BENCH, (1,) * 64, (2048,) * 64, LLAMA_8B),
    _case("llama-8b_8x32768", BENCH, (1,) * 8, (32768,) * 8, LLAMA_8B, page_size=64),
    _case("qwen3-30b-a3b_64x4096", BENCH, (1,) * 64, (4096,) * 64, QWEN3_30B, page_size=64),
    _case("deepseek-v3_64x4096", BENCH, (1,) * 64, (4096,) * 64, DEEPSEEK_V3, page_size=64, **_LATENT),
    _case("deepseek-v2-lite_64x4096", BENCH, (1,) * 64, (4096,) * 64, DEEPSEEK_V2_LITE, page_size=64, **_LATENT),
    _case("gpt-oss_64x4096", BENCH, (1,) * 64, (4096,) * 64, GPT_OSS, page_size=64, window=128, sinks=True),
    _case("gemma-2-9b_32x4096", BENCH, (1,) * 32, (4096,) * 32, GEMMA_2_9B, page_size=64, softcap=50.0),
)
