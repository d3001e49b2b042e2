"""Cases of ``silu_and_mul`` and ``gelu_and_mul``."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..op import Case
from . import BENCH, QUANTIZED_LIMITS, SMALL, TILED, quantized_args, quantized_dims, randn


def _make(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    size: int,
    strided: bool = False,
    quantized_values: torch.dtype | None = None,
    granularity: str = "token",
    static_scale: float = 0.0,
    **static: Any,
) -> dict[str, Any]:
    pad = 8 if strided else 0
    x = randn(generator, dtype, device, tokens, 2 * size + pad, scale=2.0)[:, pad:]
    return {"x": x, **static, **quantized_args(device, quantized_values, granularity, static_scale)}


def _case(name: str, tags: frozenset[str], tokens: int, size: int, **more: Any) -> Case:
    quantized = "quantized_values" in more
    suffix = f"_{more['approximate']}" if "approximate" in more else ""
    dims = {"intermediate_size": size, **(quantized_dims(size, **more) if quantized else {})}
    make = partial(_make, tokens=tokens, size=size, **more)
    return Case(name + suffix, make, tags, dims, (tokens,), relative=QUANTIZED_LIMITS if quantized else None)


def _cases(**static: Any) -> tuple[Case, ...]:
    return (
        _case("one_row", SMALL, 1, 64, **static),
        _case("odd", SMALL, 5, 37, **static),
        _case("tiled", TILED, 37, 101, **static),
        _case("strided", SMALL, 6, 40, strided=True, **static),
        _case("empty", SMALL, 0, 16, **static),
        *(_case(f"llama-8b_{tokens}", BENCH, tokens, 14336, **static) for tokens in (64, 8192)),
    )


def _quantized_cases(**static: Any) -> tuple[Case, ...]:
    int8, e4m3, e5m2 = torch.int8, torch.float8_e4m3fn, torch.float8_e5m2
    return (
        _case("quantized_one_row", SMALL, 1, 640, quantized_values=int8, **static),
        _case("quantized_tiled", TILED, 4, 101, quantized_values=e4m3, **static),
        _case("quantized_wide", SMALL, 2, 3000, strided=True, quantized_values=e5m2, **static),
        _case("quantized_groups", TILED, 3, 400, strided=True, quantized_values=e4m3, granularity="group", **static),
        _case("quantized_static", SMALL, 6, 70, quantized_values=int8, static_scale=0.05, **static),
        _case("quantized_empty", SMALL, 0, 16, quantized_values=int8, granularity="group", **static),
        *(
            _case(
                f"llama-8b_{tokens}_{granularity}", BENCH, tokens, 14336, quantized_values=e4m3, granularity=granularity, **static
            )
            for tokens in (64, 8192)
            for granularity in ("token", "group")
        ),
    )


SILU_CASES = (*_cases(), *_quantized_cases())
GELU_CASES = (*_cases(approximate="tanh"), *_cases(approximate="none"), *_quantized_cases(approximate="tanh"))
