"""Integers in the order of floats, for searching and selecting in Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def float_key(values):
    """int32 keys in the order of f32 values (no NaN); both zeros have key 0. No value has the key -2^31."""
    bits = tl.where(values == 0, 0.0, values).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def key_float(keys):
    """The f32 values of int32 keys."""
    return (keys ^ ((keys >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
