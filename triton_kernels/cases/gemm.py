"""Cases of the quantized GEMMs and of ``quantize_activation``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from ..op import Case
from . import BENCH, SMALL, TILED, randn, unrounded

_BLOCK = 128


def _integers(generator: torch.Generator, device: torch.device, low: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=generator).to(device)


def _w4a16(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    in_features: int,
    out_features: int,
    group: int = 0,
    zeros: bool = False,
    act_order: bool = False,
    bias: bool = False,
) -> dict[str, Any]:
    groups = in_features // group if group else 1
    words = _integers(generator, device, -(2**31), 2**31, out_features, in_features // 8).int()
    scales = randn(generator, torch.float32, device, out_features, groups).abs().add(0.5) * in_features**-0.5 / 4
    return {
        "x": randn(generator, dtype, device, tokens, in_features),
        "qweight": words,
        "scales": scales.to(dtype),
        "zeros": _integers(generator, device, 0, 16, out_features, groups).to(torch.uint8) if zeros else None,
        "perm": torch.randperm(in_features, generator=generator).int().to(device) if act_order else None,
        "bias": randn(generator, dtype, device, out_features) if bias else None,
    }


def _w8a16(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    in_features: int,
    out_features: int,
    kind: torch.dtype = torch.int8,
    bits: int = 8,
    group: int = 0,
    zeros: bool = False,
    act_order: bool = False,
    bias: bool = False,
) -> dict[str, Any]:
    groups = in_features // group if group else 1
    if kind.is_floating_point:
        weight, size = randn(generator, torch.float32, device, out_features, in_features).to(kind), 1.0
    elif kind == torch.int8:
        weight, size = _integers(generator, device, -128, 128, out_features, in_features).to(kind), 64.0
    else:
        weight, size = _integers(generator, device, 0, 2**bits, out_features, in_features).to(kind), 2.0 ** (bits - 2)
    scales = randn(generator, torch.float32, device, out_features, groups).abs().add(0.5) * in_features**-0.5 / size
    return {
        "x": randn(generator, dtype, device, tokens, in_features),
        "weight": weight,
        "scales": scales.to(dtype),
        "zeros": _integers(generator, device, 0, 2**bits, out_features, groups).to(torch.uint8) if zeros else None,
        "perm": torch.randperm(in_features, generator=generator, device=device).int() if act_order else None,
        "bias": randn(generator, dtype, device, out_features) if bias else None,
    }


def _int8(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    in_features: int,
    out_features: int,
    static: bool = False,
    zero: bool = False,
    bias: bool = False,
) -> dict[str, Any]:
    rows = 1 if static else tokens
    return {
        "x": _integers(generator, device, -128, 128, tokens, in_features).to(torch.int8),
        "x_scale": randn(generator, torch.float32, device, rows, 1).abs() * 0.01 + 0.01,
        "x_zero": _integers(generator, device, -128, 128, rows, 1).int() if zero else None,
        "weight": _integers(generator, device, -127, 128, out_features, in_features).to(torch.int8),
        "scales": randn(generator, torch.float32, device, out_features, 1).abs() * in_features**-0.5 * 0.01 + 1e-4,
        "bias": randn(generator, dtype, device, out_features) if bias else None,
        "out_dtype": dtype,
    }


def _fp8(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    in_features: int,
    out_features: int,
    recipe: str = "channel",
    kind: torch.dtype = torch.float8_e4m3fn,
    static: bool = False,
    bias: bool = False,
) -> dict[str, Any]:
    blocks = -(-in_features // _BLOCK)
    x_shape = {"tensor": (1, 1), "channel": (1 if static else tokens, 1), "block": (tokens, blocks)}[recipe]
    shape = {"tensor": (1, 1), "channel": (out_features, 1), "block": (-(-out_features // _BLOCK), blocks)}[recipe]
    return {
        "x": randn(generator, torch.float32, device, tokens, in_features, scale=16).to(kind),
        "x_scale": randn(generator, torch.float32, device, *x_shape).abs() * 0.05 + 0.05,
        "weight": randn(generator, torch.float32, device, out_features, in_features, scale=16).to(kind),
        "scales": randn(generator, torch.float32, device, *shape).abs() * in_features**-0.5 * 0.05 + 1e-3,
        "bias": randn(generator, dtype, device, out_features) if bias else None,
        "out_dtype": dtype,
    }


def _quantize(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    width: int,
    out_dtype: torch.dtype,
    granularity: str = "token",
    static: float = 0.0,
    zero: int = 0,
    strided: bool = False,
) -> dict[str, Any]:
    x = randn(generator, dtype, device, tokens, width + 8, scale=3)
    x = x[:, 3 : 3 + width] if strided else x[:, :width].contiguous()
    if tokens > 2:
        x[1] = 0  # the smallest scale
        x[2, ::3] *= 1e-4  # subnormal quantized values
    return {
        "x": x,
        "out_dtype": out_dtype,
        "granularity": granularity,
        "static_scale": torch.full((1, 1), static, device=device) if static else None,
        "static_zero": torch.full((1, 1), zero, dtype=torch.int32, device=device) if zero else None,
    }


def _case(make: Any, dims: Mapping[str, float], name: str, tags: frozenset[str], tokens: int, *shape: int, **more: Any) -> Case:
    sizes = dict(zip(("in_features", "out_features") if len(shape) == 2 else ("width",), shape))
    cost = dict(sizes) if len(shape) == 2 else {"hidden_size": shape[0]}
    made = partial(make, tokens=tokens, **sizes, **more)
    return Case(name, made, tags, {**cost, **dims, "group_size": more.get("group", 0)}, (tokens,))


_w4 = partial(_case, _w4a16, {"weight_bits": 4})
_w8 = partial(_case, _w8a16, {"weight_bits": 8})
_i8 = partial(_case, _int8, {"act_bytes": 1, "scale_bytes": 4})
_f8 = partial(_case, _fp8, {"act_bytes": 1, "scale_bytes": 4})
_q8 = partial(_case, _quantize, {})

_LLAMA_8B = {"qkv": (4096, 6144), "o": (4096, 4096), "gate_up": (4096, 28672), "down": (14336, 4096)}
_TOKENS = (1, 16, 64, 2048)
_BENCH = [(f"llama-8b_{layer}_{m}", BENCH, m, *shape) for layer, shape in _LLAMA_8B.items() for m in _TOKENS]

W4A16_CASES = (
    _w4("one_row", SMALL, 1, 128, 48, group=128),
    _w4("odd", SMALL, 5, 40, 53, bias=True),
    _w4("tiled", TILED, 35, 392, 139, zeros=True),
    _w4("group_32", SMALL, 3, 288, 70, group=32, zeros=True),
    _w4("group_64", SMALL, 4, 192, 33, group=64, zeros=True, bias=True),
    _w4("act_order", SMALL, 6, 256, 64, group=128, zeros=True, act_order=True),
    _w4("long_k", SMALL, 2, 1152, 66, group=64),
    _w4("empty", SMALL, 0, 64, 16, group=32),
    unrounded(_w4("tiled", TILED, 35, 392, 139, zeros=True)),
    unrounded(_w4("long_k", SMALL, 2, 1152, 66, group=64)),
    *(_w4(*bench, group=128) for bench in _BENCH),
)
W8A16_CASES = (
    _w8("one_row", SMALL, 1, 64, 48),
    _w8("odd", SMALL, 5, 37, 53, bias=True),
    _w8("tiled", TILED, 35, 200, 139),
    _w8("e4m3", SMALL, 3, 130, 40, kind=torch.float8_e4m3fn, bias=True),
    _w8("e5m2", SMALL, 4, 70, 33, kind=torch.float8_e5m2),
    _w8("two_bits", SMALL, 3, 192, 65, kind=torch.uint8, bits=2, group=32, zeros=True),
    _w8("three_bits", SMALL, 2, 256, 17, kind=torch.uint8, bits=3, group=128, zeros=True),
    _w8("eight_bits", SMALL, 3, 640, 20, kind=torch.uint8, group=64, zeros=True),
    _w8("act_order", SMALL, 6, 256, 40, group=64, act_order=True),
    _w8("empty", SMALL, 0, 32, 16),
    unrounded(_w8("tiled", TILED, 35, 200, 139)),
    unrounded(_w8("act_order", SMALL, 6, 256, 40, group=64, act_order=True)),
    *(_w8(*bench) for bench in _BENCH),
)
INT8_CASES = (
    _i8("one_row", SMALL, 1, 64, 48),
    _i8("odd", SMALL, 5, 37, 53, bias=True),
    _i8("tiled", TILED, 35, 300, 139, zero=True, bias=True),
    _i8("static", SMALL, 6, 64, 40, static=True),
    _i8("static_zero", SMALL, 4, 130, 70, static=True, zero=True),
    _i8("long_k", SMALL, 3, 1100, 20, zero=True),
    _i8("empty", SMALL, 0, 32, 16),
    unrounded(_i8("long_k", SMALL, 3, 1100, 20, zero=True)),
    *(_i8(*bench) for bench in _BENCH),
)
FP8_CASES = (
    _f8("tensor", SMALL, 1, 64, 48, recipe="tensor"),
    _f8("odd", SMALL, 5, 37, 53, bias=True),
    _f8("tiled", TILED, 35, 300, 139),
    _f8("static", SMALL, 6, 64, 40, static=True),
    _f8("long_k", SMALL, 3, 1100, 20),
    _f8("blocks", SMALL, 5, 260, 150, recipe="block", bias=True),
    _f8("long_blocks", SMALL, 3, 1100, 20, recipe="block"),
    _f8("e5m2", SMALL, 4, 160, 33, recipe="tensor", kind=torch.float8_e5m2, bias=True),
    _f8("empty", SMALL, 0, 32, 16),
    unrounded(_f8("long_k", SMALL, 3, 1100, 20)),
    unrounded(_f8("long_blocks", SMALL, 3, 1100, 20, recipe="block")),
    *(
        _f8(*bench, recipe=recipe) if recipe == "channel" else _f8(f"{bench[0]}_blocks", *bench[1:], recipe=recipe)
        for recipe in ("channel", "block")
        for bench in _BENCH
    ),
)
QUANTIZE_CASES = (
    _q8("int8", SMALL, 5, 37, out_dtype=torch.int8),
    _q8("e4m3", TILED, 7, 300, out_dtype=torch.float8_e4m3fn),
    _q8("e5m2", SMALL, 4, 65, out_dtype=torch.float8_e5m2, strided=True),
    _q8("groups", TILED, 5, 700, out_dtype=torch.float8_e4m3fn, granularity="group", strided=True),
    _q8("groups_int8", SMALL, 3, 128, out_dtype=torch.int8, granularity="group"),
    _q8("static", SMALL, 4, 50, out_dtype=torch.float8_e4m3fn, static=0.01),
    _q8("static_int8", SMALL, 4, 50, out_dtype=torch.int8, static=0.03),
    _q8("static_zero", SMALL, 4, 50, out_dtype=torch.int8, static=0.03, zero=-37),
    _q8("empty", SMALL, 0, 32, out_dtype=torch.int8),
    *(
        _q8(f"llama-8b_{tokens}_{granularity}", BENCH, tokens, 4096, out_dtype=torch.float8_e4m3fn, granularity=granularity)
        for tokens in (1, 64, 2048)
        for granularity in ("token", "group")
    ),
)

_QKV = _LLAMA_8B["qkv"]
SERVING_CASES: Mapping[str, tuple[Case, ...]] = {
    "gemm_w4a16": (
        _w4("1 token", BENCH, 1, *_QKV, group=128),
        _w4("1 token, zeros, group 32", BENCH, 1, *_QKV, group=32, zeros=True),
        _w4("2048 tokens", BENCH, 2048, *_QKV, group=128),
    ),
    "gemm_w8a16": (_w8("1 token", BENCH, 1, *_QKV), _w8("2048 tokens, e4m3", BENCH, 2048, *_QKV, kind=torch.float8_e4m3fn)),
    "gemm_int8": (_i8("1 token", BENCH, 1, *_QKV), _i8("2048 tokens", BENCH, 2048, *_QKV)),
    "gemm_fp8": (
        _f8("1 token", BENCH, 1, *_QKV),
        _f8("2048 tokens", BENCH, 2048, *_QKV),
        _f8("2048 tokens, blocks", BENCH, 2048, *_QKV, recipe="block"),
    ),
    "quantize_activation": (
        _q8("rows", BENCH, 64, 4096, out_dtype=torch.float8_e4m3fn),
        _q8("groups", BENCH, 64, 4096, out_dtype=torch.float8_e4m3fn, granularity="group"),
        _q8("static zero", BENCH, 64, 4096, out_dtype=torch.int8, static=0.03, zero=-37),
    ),
}
"""What is compiled ahead of time: the path of few tokens and that of many, and what changes the kernel."""
