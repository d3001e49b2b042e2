"""Numbers to 8-bit quantized values inside a kernel: division by the scale is IEEE's, and quantized values are rounded to nearest
even by integer arithmetic on the bits of the f32 quotient, so that results have the same bits on every target, with or without
float8 conversions (and in the interpreter, whose conversions round wrongly). Kernels that use it are launched without FP fusion.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ...attention_meta import LayerKV

LIMITS = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
_KINDS = {torch.int8: "int8", torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2"}


def quantized_constants(dtype: torch.dtype) -> dict[str, Any]:
    """KIND and LIMIT of :func:`to_quantized` for quantized values of ``dtype``."""
    return {"KIND": _KINDS[dtype], "LIMIT": LIMITS[dtype]}


def cache_reasons(kv_dtype: torch.dtype) -> list[str]:
    """Why a kernel cannot write a KV cache of ``kv_dtype``."""
    if kv_dtype.itemsize > 1 or kv_dtype in LIMITS:
        return []
    return [f"writes caches of {', '.join(map(str, LIMITS))} and of wider floats, not of {kv_dtype}"]


def cache_constants(kv: LayerKV) -> dict[str, Any]:
    """KIND and LIMIT of the quantized values that a cache holds; KIND "" without."""
    return {"KIND": "", "LIMIT": 0.0} if kv.k_scale is None else quantized_constants(kv.k.dtype)


def cache_bits(kv: LayerKV) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """k, v and their scales as a kernel writes them: quantized values as bytes; the cache itself where there are no scales."""
    if kv.k_scale is None or kv.v_scale is None:
        return kv.k, kv.v, kv.k, kv.v
    return kv.k.view(torch.uint8), kv.v.view(torch.uint8), kv.k_scale, kv.v_scale


@triton.jit
def scale_of(largest, LIMIT: tl.constexpr):
    """The f32 scale of numbers whose largest magnitude is ``largest``."""
    return tl.maximum(tl.div_rn(largest, LIMIT), 1e-10)


@triton.jit
def to_quantized(value, scale, KIND: tl.constexpr, LIMIT: tl.constexpr):
    """The quantized value of value / scale as uint8 bits."""
    quotient = tl.div_rn(value, scale)
    LOWEST: tl.constexpr = -128.0 if KIND == "int8" else -LIMIT
    clamped = tl.minimum(tl.maximum(quotient, LOWEST), LIMIT)
    if KIND == "int8":
        value_bits = (clamped + 12582912.0 - 12582912.0).to(tl.int32)  # adding 1.5 * 2^23 rounds to an integer
    else:
        MANTISSA: tl.constexpr = 3 if KIND == "e4m3" else 2
        BIAS: tl.constexpr = 7 if KIND == "e4m3" else 15
        DROPPED: tl.constexpr = 23 - MANTISSA
        size = tl.abs(clamped)
        bits = size.to(tl.int32, bitcast=True)
        rounded = (bits + ((1 << (DROPPED - 1)) - 1) + ((bits >> DROPPED) & 1)) >> DROPPED
        normal = rounded - ((127 - BIAS) << MANTISSA)
        # Below the smallest normal number quantized values count multiples of 2^(1 - BIAS - MANTISSA).
        SMALLEST_NORMAL: tl.constexpr = 2.0 ** (1 - BIAS)
        small = tl.minimum(size, SMALLEST_NORMAL) * 2.0 ** (BIAS + MANTISSA - 1)
        subnormal = (small + 12582912.0 - 12582912.0).to(tl.int32)
        value_bits = tl.where(size < SMALLEST_NORMAL, subnormal, normal)
        sign = (clamped.to(tl.int32, bitcast=True) >> 24) & 128
        value_bits = tl.where(quotient != quotient, 127, value_bits | sign)
    return value_bits.to(tl.uint8)
