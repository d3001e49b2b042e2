"""Cases of ``selective_scan``."""

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
    num_channels: int,
    size: int,
    state_dtype: torch.dtype = torch.float32,
    pooled: bool = False,
    slack: int = 0,
) -> dict[str, Any]:
    meta, tokens = make_meta(generator, device, q_lens, seen, slack), sum(q_lens)
    x, z = randn(generator, dtype, device, tokens, 2 * num_channels).chunk(2, dim=1)
    _, b, c = randn(generator, dtype, device, tokens, 8 + 2 * size).split([8, size, size], dim=1)
    return {
        "x": x,
        "dt": randn(generator, dtype, device, tokens, num_channels),
        "b": b,
        "c": c,
        "z": z,
        "state": make_state(generator, state_dtype, meta, num_channels, size, pooled=pooled),
        "meta": meta,
        "a_log": randn(generator, torch.float32, device, num_channels, size),
        "dt_bias": randn(generator, torch.float32, device, num_channels) - 2,
        "d": randn(generator, torch.float32, device, num_channels),
    }


def _case(
    name: str,
    tags: frozenset[str],
    q_lens: tuple[int, ...],
    seen: tuple[int, ...],
    num_channels: int,
    size: int = 16,
    relative: dict[torch.dtype, float] | None = None,
    **more: Any,
) -> Case:
    dims = {"num_channels": num_channels, "state_size": size}
    make = partial(_make, q_lens=q_lens, seen=seen, num_channels=num_channels, size=size, **more)
    return Case(name, make, tags, dims, q_lens, context_lens(q_lens, seen), relative)


_FLOAT16 = {torch.float32: 1e-3, torch.float16: 1e-3, torch.bfloat16: 6e-3}
"""Of states in float16: sums in f32 and in f64 round to neighbours."""
_BFLOAT16 = dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), 4e-2)
"""Of states in bfloat16: the interpreter, unlike a device, truncates them after each token."""

CASES = (
    _case("one_token", SMALL, (1,), (0,), 16),
    _case("decode", SMALL, (1, 1, 1, 1), (5, 0, -1, 9), 37, 12, pooled=True),
    _case("drafts", SMALL, (3, 1, 2), (5, 0, 9), 16),
    _case("prompts", SMALL, (5, 33, 18), (0, 0, 0), 24),
    _case("chunks", SMALL, (3, 70, 1, 20), (4, 40, 1, 2), 21, 8, pooled=True),
    _case("mixed", SMALL, (1, 17, 0, 1, 6, 30), (8, 0, 3, 0, -1, 20), 16, slack=7),
    _case("float16_state", SMALL, (1, 20, 1), (3, 9, 0), 16, state_dtype=torch.float16, relative=_FLOAT16),
    _case("bfloat16_state", SMALL, (1, 20, 1), (3, 9, 0), 16, state_dtype=torch.bfloat16, relative=_BFLOAT16),
    _case("tiled", TILED, (51, 1, 22), (3, 9, 0), 53),
    _case("nobody", SMALL, (20, 1), (-1, -1), 16),
    _case("no_tokens", SMALL, (0, 0), (4, 0), 16),
    _case("jamba-mini_2048", BENCH, (2048,), (0,), 8192),
    _case("jamba-mini_chunk", BENCH, (2000, *(1,) * 48), (4096, *(1000,) * 48), 8192),
    _case("jamba-mini_decode_64", BENCH, (1,) * 64, (1000,) * 64, 8192),
)
