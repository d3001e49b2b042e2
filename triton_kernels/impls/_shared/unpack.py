"""Quantized values of 4 or 8 bits, several in a 16-bit word, to the numbers that a matrix instruction takes.

On NVIDIA two adjacent words lie in one register, and a part of both becomes the pair of 16-bit numbers of two adjacent columns by
a few operations on the register (:func:`pair_code`). Elsewhere, and in the interpreter, each word is unpacked alone, through the
bits of a float32. Neither needs fp8 instructions: those give float16, and a pair of bfloat16 takes as many operations through it.
Both ways are exact and give the same numbers: q - zero, and every finite value of an 8-bit float, are numbers of 16-bit types.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...spec import Spec

PART = 32
"""Words of a row of a tile, and columns of one part of them."""


def unpacks_pairs(spec: Spec) -> bool:
    """Whether :func:`pair_code` runs here."""
    return spec.dtype.itemsize == 2 and spec.arch.startswith("sm_") and not spec.interpret


@triton.constexpr_function
def pair_code(kind, part, dtype):  # type: ignore[no-untyped-def]
    """PTX from $1, two words, to $0, the pair of ``dtype`` of one part; $2 is :func:`pair_zero` (for uint8 in bfloat16 an f32 for
    each of the pair: $2, $3)."""
    half = str(dtype) == "fp16"
    pair = "f16x2" if half else "bf16x2"
    if kind == "int4":
        # 128 + q is 0x4300 | q in bfloat16, 1024 + q is 0x6400 | q in float16: one logical operation makes both numbers, and one
        # multiply-add by 1 takes off the base and the zero point (no addition, which sm_80 lacks for bfloat16).
        base, one = ("0x64006400", "0x3c003c00") if half else ("0x43004300", "0x3f803f80")
        code = f"shr.u32 a, $1, {4 * part}; lop3.b32 a, a, 0x000f000f, {base}, 0xea; mov.b32 b, {one}; fma.rn.{pair} $0, a, b, $2;"
    elif kind == "uint8" and half:
        code = f"prmt.b32 a, $1, 0x64646464, 0x4{2 + part}4{part}; mov.b32 b, 0x3c003c00; fma.rn.f16x2 $0, a, b, $2;"
    elif kind == "uint8":  # beside a base 8 bits do not fit in bfloat16's mantissa: 2^23 + q in two float32
        code = (
            f"prmt.b32 a, $1, 0x4b000000, 0x754{part}; prmt.b32 b, $1, 0x4b000000, 0x754{2 + part}; "
            "add.rn.f32 a, a, $2; add.rn.f32 b, b, $3; cvt.rn.bf16x2.f32 $0, b, a;"
        )
    else:
        # The bits at the right place in a 16-bit number, whose exponent has another bias: times a power of two, less 0.
        places = {
            ("e4m3", "bf16"): (4, "0x07f007f0", "0x7b807b80"),
            ("e5m2", "bf16"): (5, "0x0fe00fe0", "0x77807780"),
            ("e4m3", "fp16"): (7, "0x3f803f80", "0x5c005c00"),
            ("e5m2", "fp16"): (8, "0x7f007f00", "0x3c003c00"),
        }
        first_bit, mask, power = places[kind, str(dtype)]
        up, down = max(first_bit - 8 * part, 0), max(8 * part - first_bit, 0)
        code = (
            f"shl.b32 a, $1, {up}; shr.u32 a, a, {down}; and.b32 a, a, {mask}; "
            f"shl.b32 b, $1, {8 - 8 * part}; lop3.b32 a, b, 0x80008000, a, 0xea; "
            f"mov.b32 b, {power}; mov.b32 c, 0x80008000; fma.rn.{pair} $0, a, b, c;"
        )
    return f"{{ .reg .b32 a, b, c; {code} }}"


@triton.jit
def pair_zero(zero, KIND: tl.constexpr, dtype: tl.constexpr):
    """What is added to a number that :func:`pair_code` has made: minus its base and zero point."""
    if KIND == "uint8" and dtype == tl.bfloat16:
        return -8388608.0 - zero
    else:
        base: tl.constexpr = 1024.0 if dtype == tl.float16 else 128.0
        return (-base - zero).to(dtype)


@triton.jit
def unpack_part(words, zero, part: tl.constexpr, KIND: tl.constexpr, PAIRS: tl.constexpr, dtype: tl.constexpr):
    """One part of int16 ``words`` [ROWS, 32] as ``dtype``: integer q - zero (f32 [ROWS]), or the value of the fp8 bits."""
    if PAIRS:
        if KIND == "int4" or KIND == "uint8":
            zeros = tl.broadcast_to(pair_zero(zero, KIND, dtype)[:, None], words.shape)
            operands: tl.constexpr = "=r,r,f,f" if KIND == "uint8" and dtype == tl.bfloat16 else "=r,r,r"
            bits = tl.inline_asm_elementwise(pair_code(KIND, part, dtype), operands, [words, zeros], tl.int16, is_pure=True, pack=2)
        else:
            bits = tl.inline_asm_elementwise(pair_code(KIND, part, dtype), "=r,r", [words], tl.int16, is_pure=True, pack=2)
        return bits.to(dtype, bitcast=True)
    if KIND == "int4":
        values = ((words >> (4 * part)) & 15).to(tl.float32) - zero[:, None]
    else:
        value_bits = (words.to(tl.int32) >> (8 * part)) & 255
        if KIND == "uint8":  # 2^23 + q, made by bits, without an instruction that converts
            values = (value_bits | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + zero[:, None])
        else:
            shift: tl.constexpr = 20 if KIND == "e4m3" else 21
            bias: tl.constexpr = 2.0**120 if KIND == "e4m3" else 2.0**112
            float_bits = ((value_bits & 127) << shift) | ((value_bits & 128) << 24)
            values = float_bits.to(tl.float32, bitcast=True) * bias
    return values.to(dtype)


@triton.jit
def unpack(words, zero, FIRST: tl.constexpr, PARTS: tl.constexpr, KIND: tl.constexpr, PAIRS: tl.constexpr, dtype: tl.constexpr):
    """Parts FIRST .. FIRST + PARTS - 1 (one, two or four) of ``words`` side by side: [ROWS, 32 * PARTS]. It stays in the registers
    of the threads that hold the words."""
    tile = unpack_part(words, zero, FIRST, KIND, PAIRS, dtype)
    if PARTS > 1:
        second = unpack_part(words, zero, FIRST + 1, KIND, PAIRS, dtype)
        if PARTS == 2:
            tile = tl.permute(tl.join(tile, second), (0, 2, 1))
        else:
            third = unpack_part(words, zero, FIRST + 2, KIND, PAIRS, dtype)
            fourth = unpack_part(words, zero, FIRST + 3, KIND, PAIRS, dtype)
            tile = tl.permute(tl.join(tl.join(tile, third), tl.join(second, fourth)), (0, 2, 3, 1))  # part = 2 * i + j
    return tl.reshape(tile, (words.shape[0], PARTS * 32))
