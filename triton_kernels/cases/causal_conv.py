"""Cases of ``causal_conv1d``."""

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
    width: int,
    pad: int = 0,
    pooled: bool = False,
    bias: bool = True,
    activation: str | None = "silu",
    slack: int = 0,
) -> dict[str, Any]:
    meta = make_meta(generator, device, q_lens, seen, slack)
    return {
        "x": randn(generator, dtype, device, sum(q_lens), num_channels + pad)[:, pad:],  # strided, as in a fused projection
        "state": make_state(generator, dtype, meta, width - 1, num_channels, pooled=pooled),
        "meta": meta,
        "weight": randn(generator, dtype, device, num_channels, width, scale=width**-0.5),
        "bias": randn(generator, dtype, device, num_channels) if bias else None,
        "activation": activation,
    }


def _case(
    name: str, tags: frozenset[str], q_lens: tuple[int, ...], seen: tuple[int, ...], num_channels: int, width: int = 4, **more: Any
) -> Case:
    make = partial(_make, q_lens=q_lens, seen=seen, num_channels=num_channels, width=width, **more)
    dims = {"num_channels": num_channels, "width": width}
    return Case(name, make, tags, dims, q_lens, context_lens(q_lens, seen))


CASES = (
    _case("one_token", SMALL, (1,), (0,), 32),
    _case("decode", SMALL, (1, 1, 1, 1), (5, 0, -1, 9), 37, pad=16, pooled=True),
    _case("prompts", SMALL, (5, 33, 2), (0, 0, 0), 24, bias=False),
    _case("chunks", SMALL, (3, 40, 1, 2), (4, 40, 1, 2), 40, pad=8, pooled=True),
    _case("mixed", SMALL, (1, 17, 0, 1, 6, 3), (8, 0, 3, 0, -1, 20), 21, slack=7),
    _case("narrow_filter", SMALL, (7, 1, 2), (0, 3, 4), 16, width=2, activation=None),
    _case("two_wide_state", SMALL, (1, 2, 3, 4), (1, 2, 0, 5), 16, width=3),
    _case("short_of_the_state", SMALL, (2, 1, 3), (3, 0, 0), 16, width=5),
    _case("tiled", TILED, (101, 70, 1), (3, 0, 9), 131),
    _case("nobody", SMALL, (2, 1), (-1, -1), 16),
    _case("no_tokens", SMALL, (0, 0), (4, 0), 16),
    _case("qwen3-next_2048", BENCH, (2048,), (0,), 8192, bias=False),
    _case("qwen3-next_chunk", BENCH, (2000, *(1,) * 48), (4096, *(1000,) * 48), 8192, bias=False),
    _case("qwen3-next_decode_64", BENCH, (1,) * 64, (1000,) * 64, 8192, bias=False),
)
