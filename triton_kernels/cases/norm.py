"""Cases of ``rms_norm`` and ``layer_norm``."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

from ..op import Case
from . import BENCH, QUANTIZED_LIMITS, SMALL, TILED, quantized_args, quantized_dims, randn


def _make(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    shape: tuple[int, ...],
    residual: bool = True,
    strided: bool = False,
    quantized_values: torch.dtype | None = None,
    granularity: str = "token",
    static_scale: float = 0.0,
    **static: Any,
) -> dict[str, Any]:
    hidden_size, pad = shape[-1], 16 if strided else 0
    x = randn(generator, dtype, device, *shape[:-1], hidden_size + pad)[..., pad:]
    rest = randn(generator, dtype, device, *shape[:-1], hidden_size + pad, scale=2.0)[..., pad:] if residual else None
    weight = randn(generator, dtype, device, hidden_size, scale=0.3) + 1
    args = {"x": x, "residual": rest, "weight": weight, "eps": 1e-5}
    if "offset" in static:
        return {**args, "offset": static["offset"], **quantized_args(device, quantized_values, granularity, static_scale)}
    return {**args, "bias": randn(generator, dtype, device, hidden_size) if static["bias"] else None}


def _case(name: str, tags: frozenset[str], *shape: int, residual: bool = True, **more: Any) -> Case:
    make = partial(_make, shape=shape, residual=residual, **more)
    tokens, quantized = math.prod(shape[:-1]), "quantized_values" in more
    dims = {"hidden_size": shape[-1], "residual": int(residual), **(quantized_dims(shape[-1], **more) if quantized else {})}
    return Case(name, make, tags, dims, (tokens,), relative=QUANTIZED_LIMITS if quantized else None)


_INT8, _E4M3, _E5M2 = torch.int8, torch.float8_e4m3fn, torch.float8_e5m2

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
    _case("quantized_one_row", SMALL, 1, 640, offset=0.0, quantized_values=_INT8),
    _case("quantized_tiled", TILED, 19, 131, offset=1.0, quantized_values=_E4M3),
    _case("quantized_no_residual", SMALL, 41, 300, residual=False, strided=True, offset=0.0, quantized_values=_E5M2),
    _case("quantized_static", SMALL, 6, 100, strided=True, offset=0.0, quantized_values=_INT8, static_scale=0.03),
    _case("quantized_groups", TILED, 3, 400, offset=0.0, quantized_values=_E4M3, granularity="group"),
    _case("quantized_narrow_group", SMALL, 19, 40, offset=0.0, quantized_values=_INT8, granularity="group"),
    _case(
        "quantized_heads", SMALL, 5, 3, 160, residual=False, strided=True, offset=0.0, quantized_values=_E4M3, granularity="group"
    ),
    _case("quantized_wide", SMALL, 2, 3000, offset=0.0, quantized_values=_INT8),
    _case("quantized_empty", SMALL, 0, 16, offset=0.0, quantized_values=_E4M3),
    *(_case(f"llama-8b_{tokens}", BENCH, tokens, 4096, offset=0.0) for tokens in (64, 8192)),
    *(
        _case(f"llama-8b_{tokens}_{granularity}", BENCH, tokens, 4096, offset=0.0, quantized_values=_E4M3, granularity=granularity)
        for tokens in (64, 8192)
        for granularity in ("token", "group")
    ),
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
