"""Cases of ``gated_delta_rule``."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..op import Case
from . import BENCH, SMALL, TILED, randn
from .states import context_lens, make_meta, make_state


def _make(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    q_lens: tuple[int, ...],
    seen: tuple[int, ...],
    heads: tuple[int, int, int, int],
    alike: float = 0.0,
    state_dtype: torch.dtype = torch.float32,
    pooled: bool = False,
    slack: int = 0,
) -> dict[str, Any]:
    """``alike``: how much keys resemble each other, and how little is forgotten: corrections that do not fade."""
    num_k_heads, num_v_heads, k_dim, v_dim = heads
    meta, tokens = make_meta(generator, device, q_lens, seen, slack), sum(q_lens)
    keys, values = num_k_heads * k_dim, num_v_heads * v_dim
    qkv = randn(generator, dtype, device, tokens, 2 * keys + values)
    qkv[:, keys : 2 * keys] += alike * randn(generator, dtype, device, 1, keys)
    q, k, v = (x.unflatten(1, (-1, size)) for x, size in zip(qkv.split([keys, keys, values], 1), (k_dim, k_dim, v_dim)))
    a, b = randn(generator, dtype, device, tokens, 2 * num_v_heads).chunk(2, dim=1)
    return {
        "q": q,
        "k": k,
        "v": v,
        "a": a,
        "b": b + alike,
        "state": make_state(generator, state_dtype, meta, num_v_heads, k_dim, v_dim, pooled=pooled, scale=k_dim**-0.5),
        "meta": meta,
        "a_log": randn(generator, torch.float32, device, num_v_heads) - 2 * alike,
        "dt_bias": randn(generator, torch.float32, device, num_v_heads),
        "scale": k_dim**-0.5,
    }


def _case(
    name: str,
    tags: frozenset[str],
    q_lens: tuple[int, ...],
    seen: tuple[int, ...],
    heads: tuple[int, int, int, int],
    relative: dict[torch.dtype, float] | None = None,
    **more: Any,
) -> Case:
    """``heads``: of keys and of values, and their sizes."""
    dims = dict(zip(("num_k_heads", "num_v_heads", "k_dim", "v_dim"), heads))
    make = partial(_make, q_lens=q_lens, seen=seen, heads=heads, **more)
    return Case(name, make, tags, dims, q_lens, context_lens(q_lens, seen), relative)


_QWEN3_NEXT = (16, 32, 128, 128)
_HALF = dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), 2e-2)
"""Of states in 16 bits, which most impls do not round after each token of a prompt."""

CASES = (
    _case("one_token", SMALL, (1,), (0,), (1, 1, 16, 16)),
    _case("decode", SMALL, (1, 1, 1, 1), (5, 0, -1, 9), (1, 2, 24, 20), pooled=True),
    _case("drafts", SMALL, (3, 1, 2), (5, 0, 9), (2, 2, 16, 16)),
    _case("prompts", SMALL, (5, 33, 18), (0, 0, 0), (1, 2, 32, 16)),
    _case("chunks", SMALL, (3, 70, 1, 20), (4, 40, 1, 2), (1, 2, 16, 24), pooled=True),
    _case("mixed", SMALL, (1, 17, 0, 1, 6, 30), (8, 0, 3, 0, -1, 20), (2, 4, 20, 16), slack=7),
    _case("keys_alike", SMALL, (90,), (0,), (1, 1, 16, 16), alike=2.0),
    _case("half_state", SMALL, (1, 20, 1), (3, 9, 0), (1, 1, 16, 16), state_dtype=torch.bfloat16, relative=_HALF),
    _case("tiled", TILED, (101, 1, 52), (3, 9, 0), (1, 2, 40, 35)),
    _case("nobody", SMALL, (20, 1), (-1, -1), (1, 1, 16, 16)),
    _case("no_tokens", SMALL, (0, 0), (4, 0), (1, 1, 16, 16)),
    _case("qwen3-next_2048", BENCH, (2048,), (0,), _QWEN3_NEXT),
    _case("qwen3-next_chunk", BENCH, (2000, *(1,) * 48), (4096, *(1000,) * 48), _QWEN3_NEXT),
    _case("qwen3-next_decode_64", BENCH, (1,) * 64, (1000,) * 64, _QWEN3_NEXT),
)
