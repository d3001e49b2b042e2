"""Numbers to 8-bit codes inside a kernel: division by the scale is IEEE's, and codes are rounded to nearest even by integer
arithmetic on the bits of the f32 quotient, so that results have the same bits on every target, with or without float8
conversions (and in the interpreter, whose conversions round wrongly). Kernels that use it are launched without FP fusion.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

LIMITS = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
_KINDS = {torch.int8: "int8", torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2"}


def code_constants(dtype: torch.dtype) -> dict[str, Any]:
    """KIND and LIMIT of :func:`to_code` for codes of ``dtype``."""
    return {"KIND": _KINDS[dtype], "LIMIT": LIMITS[dtype]}


@triton.jit
def to_code(value, scale, KIND: tl.constexpr, LIMIT: tl.constexpr):
    """The code of value / scale as uint8 bits."""
    quotient = tl.div_rn(value, scale)
    clamped = tl.minimum(tl.maximum(quotient, -LIMIT), LIMIT)
    if KIND == "int8":
        code = (clamped + 12582912.0 - 12582912.0).to(tl.int32)  # adding 1.5 * 2^23 rounds to an integer
    else:
        MANTISSA: tl.constexpr = 3 if KIND == "e4m3" else 2
        BIAS: tl.constexpr = 7 if KIND == "e4m3" else 15
        DROPPED: tl.constexpr = 23 - MANTISSA
        size = tl.abs(clamped)
        bits = size.to(tl.int32, bitcast=True)
        rounded = (bits + ((1 << (DROPPED - 1)) - 1) + ((bits >> DROPPED) & 1)) >> DROPPED
        normal = rounded - ((127 - BIAS) << MANTISSA)
        # Below the smallest normal number codes count multiples of 2^(1 - BIAS - MANTISSA).
        SMALLEST_NORMAL: tl.constexpr = 2.0 ** (1 - BIAS)
        small = tl.minimum(size, SMALLEST_NORMAL) * 2.0 ** (BIAS + MANTISSA - 1)
        subnormal = (small + 12582912.0 - 12582912.0).to(tl.int32)
        code = tl.where(size < SMALLEST_NORMAL, subnormal, normal)
        sign = (clamped.to(tl.int32, bitcast=True) >> 24) & 128
        code = tl.where(quotient != quotient, 127, code | sign)
    return code.to(tl.uint8)
