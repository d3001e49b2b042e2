"""Cases of ``ssd_scan``."""

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
    state_dtype: torch.dtype = torch.float32,
    pooled: bool = False,
    slack: int = 0,
    dt_max: float = float("inf"),
) -> dict[str, Any]:
    num_heads, head_dim, num_groups, size = heads
    meta, tokens = make_meta(generator, device, q_lens, seen, slack), sum(q_lens)
    widths = [num_heads * head_dim, num_groups * size, num_groups * size]
    x, b, c = randn(generator, dtype, device, tokens, sum(widths)).split(widths, dim=1)
    return {
        "x": x.unflatten(1, (num_heads, head_dim)),
        "dt": randn(generator, dtype, device, tokens, num_heads + 8)[:, 8:],
        "b": b.unflatten(1, (num_groups, size)),
        "c": c.unflatten(1, (num_groups, size)),
        "state": make_state(generator, state_dtype, meta, num_heads, head_dim, size, pooled=pooled),
        "meta": meta,
        "a_log": randn(generator, torch.float32, device, num_heads),
        "dt_bias": randn(generator, torch.float32, device, num_heads) - 2,
        "d": randn(generator, torch.float32, device, num_heads),
        "dt_min": 0.0,
        "dt_max": dt_max,
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
    """``heads``: their number and size, groups, and the size of the state."""
    dims = dict(zip(("num_heads", "head_dim", "num_groups", "state_size"), heads))
    make = partial(_make, q_lens=q_lens, seen=seen, heads=heads, **more)
    return Case(name, make, tags, dims, q_lens, context_lens(q_lens, seen), relative)


_GRANITE_4_SMALL = (128, 64, 1, 128)
_HALF = dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), 1e-2)
"""Of states in 16 bits, which most impls do not round after each token of a prompt."""

CASES = (
    _case("one_token", SMALL, (1,), (0,), (1, 16, 1, 16)),
    _case("decode", SMALL, (1, 1, 1, 1), (5, 0, -1, 9), (4, 20, 2, 24), pooled=True),
    _case("drafts", SMALL, (3, 1, 2), (5, 0, 9), (2, 16, 2, 16)),
    _case("prompts", SMALL, (5, 33, 18), (0, 0, 0), (2, 16, 1, 32), dt_max=0.3),
    _case("chunks", SMALL, (3, 70, 1, 20), (4, 40, 1, 2), (2, 24, 1, 16), pooled=True),
    _case("mixed", SMALL, (1, 17, 0, 1, 6, 30), (8, 0, 3, 0, -1, 20), (4, 16, 2, 20), slack=7),
    _case("half_state", SMALL, (1, 20, 1), (3, 9, 0), (1, 16, 1, 16), state_dtype=torch.bfloat16, relative=_HALF),
    _case("tiled", TILED, (101, 1, 52), (3, 9, 0), (2, 35, 1, 40)),
    _case("nobody", SMALL, (20, 1), (-1, -1), (1, 16, 1, 16)),
    _case("no_tokens", SMALL, (0, 0), (4, 0), (1, 16, 1, 16)),
    _case("granite-4-small_2048", BENCH, (2048,), (0,), _GRANITE_4_SMALL),
    _case("granite-4-small_chunk", BENCH, (2000, *(1,) * 48), (4096, *(1000,) * 48), _GRANITE_4_SMALL),
    _case("granite-4-small_decode_64", BENCH, (1,) * 64, (1000,) * 64, _GRANITE_4_SMALL),
)
