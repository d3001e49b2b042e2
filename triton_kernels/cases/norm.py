"""Cases of ``rms_norm`` and ``layer_norm``."""

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
    shape: tuple[int, ...],
    residual: bool = True,
    strided: bool = False,
    **static: Any,
) -> dict[str, Any]:
    hidden_size, pad = shape[-1], 16 if strided else 0
    x = randn(generator, dtype, device, *shape[:-1], hidden_size + pad)[..., pad:]
    rest = randn(generator, dtype, device, *shape[:-1], hidden_size + pad, scale=2.0)[..., pad:] if residual else None
    weight = randn(generator, dtype, device, hidden_size, scale=0.3) + 1
    args = {"x": x, "residual": rest, "weight": weight, "eps": 1e-5}
    if "offset" in static:
        return {**args, "offset": static["offset"]}
    return {**args, "bias": randn(generator, dtype, device, hidden_size) if static["bias"] else None}


def _case(name: str, tags: frozenset[str], *shape: int, residual: bool = True, **more: Any) -> Case:
    make = partial(_make, shape=shape, residual=residual, **more)
    tokens = 1
    for size in shape[:-1]:
        tokens *= size
    return Case(name, make, tags, {"hidden_size": shape[-1], "residual": int(residual)}, (tokens,))


RMS_NORM_CASES = (
    _case("one_row", SMALL, 1, 64, offset=0.0),
    _case("odd", SMALL, 5, 37, offset=0.0),
    _case("no_residual", SMALL, 4, 100, residual=False, offset=0.0),
    _case("tiled", TILED, 70, 131, offset=0.0),
    _case("gemma", SMALL, 3, 96, offset=1.0),
    _case("strided", SMALL, 6, 40, strided=True, offset=0.0),
    _case("heads", SMALL, 5, 3, 32, residual=False, strided=True, offset=0.0),
    _case("wide", SMALL, 2, 3000, offset=0.0),
    _case("empty", SMALL, 0, 16, offset=0.0),
    *(_case(f"llama-8b_{tokens}", BENCH, tokens, 4096, offset=0.0) for tokens in (64, 8192)),
)

LAYER_NORM_CASES = (
    _case("one_row", SMALL, 1, 64, bias=True),
    _case("odd", SMALL, 5, 37, bias=True),
    _case("no_residual", SMALL, 4, 100, residual=False, bias=False),
    _case("tiled", TILED, 19, 131, bias=True),
    _case("strided", SMALL, 6, 40, strided=True, bias=True),
    _case("wide", SMALL, 2, 3000, bias=True),
    _case("empty", SMALL, 0, 16, bias=True),
    *(_case(f"opt-6.7b_{tokens}", BENCH, tokens, 4096, bias=True) for tokens in (64, 8192)),
)
