"""The PTX that unpacks weights, run by an emulator of its few instructions: the interpreter has no inline assembly, so that its
tests take another way from words to numbers."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

import triton.language as tl

from triton_kernels.impls._shared.unpack import pair_code

_WORDS = np.arange(2**16, dtype=np.uint32)
_WORDS = _WORDS | _WORDS[::-1] << 16  # the second word of a register differs from the first
_FLOAT8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
_HALVES = {"f16x2": torch.float16, "bf16x2": torch.bfloat16}


def bits_of(numbers: torch.Tensor) -> np.ndarray:
    """The bits of 16-bit numbers [..., 2] as registers, the first number in the lower half."""
    halves = numbers.contiguous().view(torch.int16).numpy().astype(np.uint16).astype(np.uint32)
    return halves[..., 0] | halves[..., 1] << 16


def pair_of(register: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """The 16-bit numbers [..., 2] of registers."""
    halves = np.stack((register & 0xFFFF, register >> 16), axis=-1).astype(np.uint16)
    return torch.from_numpy(halves.view(np.int16)).view(dtype)


def emulate(code: str, operands: dict[str, np.ndarray]) -> np.ndarray:
    """$0 after the instructions of ``code``, each of them as the PTX ISA says, on registers uint32 of any shape."""
    registers = dict(operands)

    def value(name: str) -> np.ndarray:
        return registers[name] if name in registers else np.uint32(int(name, 0))

    for line in code.strip("{} ").split(";"):
        opcode, _, rest = line.strip().partition(" ")
        if not opcode or opcode == ".reg":
            continue
        target, *sources = [name.strip() for name in rest.split(",")]
        a, b, c, table = ([value(name) for name in sources] + [np.uint32(0)] * 4)[:4]
        family, kind = opcode.split(".")[0], opcode.split(".")[-1]
        if family == "mov":
            result = a
        elif family in ("shl", "shr"):
            result = a << b if family == "shl" else a >> b
        elif family == "and":
            result = a & b
        elif family == "lop3":  # bit i of the table is the result for the inputs (a, b, c) = the bits of i
            result = np.uint32(0)
            for i in range(8):
                if int(table) >> i & 1:
                    result = result | (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        elif family == "prmt":
            both = [a >> 8 * i & 255 for i in range(4)] + [b >> 8 * i & 255 for i in range(4)]
            result = sum(np.uint32(0) + both[int(c) >> 4 * i & 7] << 8 * i for i in range(4))
        elif family == "add":
            result = (a.view(np.float32) + b.view(np.float32)).view(np.uint32)
        elif family == "cvt":  # the first source becomes the upper half
            numbers = np.stack((b.view(np.float32), a.view(np.float32)), axis=-1)
            result = bits_of(torch.from_numpy(numbers).to(torch.bfloat16))
        else:
            assert family == "fma", opcode
            x, y, z = (pair_of(source, _HALVES[kind]).double() for source in (a, b, c))
            result = bits_of((x * y + z).to(_HALVES[kind]))
        registers[target] = np.asarray(result, dtype=np.uint32)
    return registers["$0"]


def quantized(part: int, bits: int) -> torch.Tensor:
    """The quantized values [65536, 2] that a part of both words holds."""
    words = np.stack((_WORDS & 0xFFFF, _WORDS >> 16), axis=-1)
    return torch.from_numpy((words >> bits * part & (2**bits - 1)).astype(np.int64))


def test_the_emulator_knows_the_instructions() -> None:
    a = np.array([0x3C004000], dtype=np.uint32)  # (2, 1) in float16
    assert emulate("{ prmt.b32 $0, $1, 0x64646464, 0x4341; }", {"$1": np.array([0x44332211], np.uint32)})[0] == 0x64446422
    assert emulate("{ lop3.b32 $0, $1, 0xff00, 0x11, 0xea; }", {"$1": np.array([0xABCD], np.uint32)})[0] == 0xAB11
    numbers = pair_of(emulate("{ fma.rn.f16x2 $0, $1, $1, $1; }", {"$1": a}), torch.float16)
    assert numbers.tolist() == [[6.0, 2.0]]


@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
@pytest.mark.parametrize("zero", [0, 7, 8, 15])
def test_four_bits_become_q_minus_zero(dtype: torch.dtype, zero: int) -> None:
    base = -1024.0 if dtype == torch.float16 else -128.0
    zeros = bits_of(torch.full((1, 2), base - zero, dtype=dtype))
    for part in range(4):
        code = pair_code("int4", part, _DTYPES[dtype])
        got = pair_of(emulate(code, {"$1": _WORDS, "$2": zeros}), dtype)
        assert torch.equal(got.double(), (quantized(part, 4) - zero).double())


@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
@pytest.mark.parametrize("zero", [0, 128, 255])
def test_eight_bits_become_q_minus_zero(dtype: torch.dtype, zero: int) -> None:
    if dtype == torch.float16:
        operands = {"$2": bits_of(torch.full((1, 2), -1024.0 - zero, dtype=dtype))}
    else:
        zeros = np.array([-8388608.0 - zero], dtype=np.float32).view(np.uint32)
        operands = {"$2": zeros, "$3": zeros}
    for part in range(2):
        got = pair_of(emulate(pair_code("uint8", part, _DTYPES[dtype]), {"$1": _WORDS, **operands}), dtype)
        assert torch.equal(got.double(), (quantized(part, 8) - zero).double())


@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
@pytest.mark.parametrize("kind", _FLOAT8)
def test_eight_bit_floats_keep_their_values_and_signs(dtype: torch.dtype, kind: str) -> None:
    for part in range(2):
        got = pair_of(emulate(pair_code(kind, part, _DTYPES[dtype]), {"$1": _WORDS}), dtype).double()
        expected = quantized(part, 8).to(torch.uint8).view(_FLOAT8[kind]).double()
        finite = expected.isfinite()
        assert torch.equal(got[finite], expected[finite])
        assert torch.equal(got[finite].signbit(), expected[finite].signbit())


def test_every_instruction_of_the_code_is_one_that_all_of_nvidia_has() -> None:
    """sm_80 adds no pairs of bfloat16, and only the multiply-add of both types exists there."""
    for dtype in _DTYPES.values():
        for kind, parts in (("int4", 4), ("uint8", 2), ("e4m3", 2), ("e5m2", 2)):
            for part in range(parts):
                opcodes = set(re.findall(r"([a-z0-9]+(?:\.[a-z0-9]+)+) ", pair_code(kind, part, dtype)))
                assert opcodes <= {"mov.b32", "shl.b32", "shr.u32", "and.b32", "lop3.b32", "prmt.b32", "fma.rn.f16x2"} | {
                    "fma.rn.bf16x2",
                    "add.rn.f32",
                    "cvt.rn.bf16x2.f32",
                }
