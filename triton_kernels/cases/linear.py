"""Cases of ``linear``."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..op import Case
from . import BENCH, SMALL, TILED, randn, unrounded


def _make(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    in_features: int,
    out_features: int,
    bias: bool = False,
    strided: bool = False,
) -> dict[str, Any]:
    pad = 24 if strided else 0
    x = randn(generator, dtype, device, tokens, in_features + pad)[:, pad // 2 : pad // 2 + in_features]
    weight = randn(generator, dtype, device, out_features, in_features, scale=in_features**-0.5)
    return {"x": x, "weight": weight, "bias": randn(generator, dtype, device, out_features) if bias else None}


def _case(name: str, tags: frozenset[str], tokens: int, in_features: int, out_features: int, **more: Any) -> Case:
    make = partial(_make, tokens=tokens, in_features=in_features, out_features=out_features, **more)
    return Case(name, make, tags, {"in_features": in_features, "out_features": out_features}, (tokens,))


_LLAMA_8B = {"qkv": (4096, 6144), "o": (4096, 4096), "gate_up": (4096, 28672), "down": (14336, 4096), "logits": (4096, 128256)}

CASES = (
    _case("one_row", SMALL, 1, 64, 48),
    _case("odd", SMALL, 5, 37, 53, bias=True),
    _case("tiled", TILED, 67, 98, 101),
    _case("strided", SMALL, 6, 40, 33, bias=True, strided=True),
    _case("long_k", SMALL, 3, 300, 20),
    _case("empty", SMALL, 0, 32, 16),
    unrounded(_case("tiled", TILED, 67, 98, 101)),
    unrounded(_case("empty", SMALL, 0, 32, 16)),
    *(
        _case(f"llama-8b_{layer}_{tokens}", BENCH, tokens, *shape)
        for layer, shape in _LLAMA_8B.items()
        for tokens in (1, 64, 2048)
        if layer != "logits" or tokens <= 64
    ),
)
