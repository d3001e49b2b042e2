"""Cases of ``head_linear``."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..op import Case
from . import BENCH, SMALL, TILED, randn


def _make(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    num_heads: int,
    in_features: int,
    out_features: int,
    pad: int = 0,
) -> dict[str, Any]:
    """``pad``: what lies behind each head, as rotated elements of a query do."""
    x = randn(generator, dtype, device, tokens, num_heads, in_features + pad)[..., :in_features]
    return {"x": x, "weight": randn(generator, dtype, device, num_heads, out_features, in_features, scale=in_features**-0.5)}


def _case(name: str, tags: frozenset[str], tokens: int, num_heads: int, in_features: int, out_features: int, **more: Any) -> Case:
    make = partial(_make, tokens=tokens, num_heads=num_heads, in_features=in_features, out_features=out_features, **more)
    dims = {"num_heads": num_heads, "in_features": in_features, "out_features": out_features}
    return Case(name, make, tags, dims, (tokens,))


CASES = (
    _case("one_row", SMALL, 1, 3, 32, 64, pad=16),
    _case("odd", SMALL, 5, 3, 37, 53),
    _case("tiled", TILED, 137, 3, 130, 141),
    _case("strided", SMALL, 6, 2, 40, 33, pad=24),
    _case("empty", SMALL, 0, 2, 32, 16),
    *(
        _case(f"deepseek-v3_{name}_{tokens}", BENCH, tokens, 128, *shape, pad=pad)
        for name, shape, pad in (("absorb", (128, 512), 64), ("values", (512, 128), 0))
        for tokens in (1, 64, 2048)
    ),
)
