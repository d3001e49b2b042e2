"""The bit algebra of quantized values that only a GPU runs, by an emulator of the few instructions it needs."""

from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("triton")

from triton_kernels.impls._shared.attention_loop import INT8_TO_HALF


def emulate(program: str, source: int) -> list[float]:
    """Runs the inline assembly on one 32-bit register: the numbers in its two outputs, first element first."""
    registers = {"$2": source}

    def value(name: str) -> int:
        return int(name, 16) if name.startswith("0x") else registers[name]

    def halves(word: int) -> torch.Tensor:
        signed = [half - (half >> 15 << 16) for half in (word & 0xFFFF, word >> 16)]
        return torch.tensor(signed, dtype=torch.int16).view(torch.float16)

    for opcode, text in re.findall(r"(xor\.b32|mov\.b32|prmt\.b32|sub\.f16x2) ([^;]+);", program):
        target, *names = (name.strip() for name in text.split(","))
        operands = [value(name) for name in names]
        if opcode == "mov.b32":
            registers[target] = operands[0]
        elif opcode == "xor.b32":
            registers[target] = operands[0] ^ operands[1]
        elif opcode == "prmt.b32":
            low, high, selector = operands
            chosen = (low | high << 32).to_bytes(8, "little")
            registers[target] = int.from_bytes(bytes(chosen[selector >> 4 * i & 7] for i in range(4)), "little")
        else:
            bits = (halves(operands[0]) - halves(operands[1])).view(torch.int16).tolist()
            registers[target] = (bits[0] & 0xFFFF) | (bits[1] & 0xFFFF) << 16
    return [*halves(registers["$0"]).tolist(), *halves(registers["$1"]).tolist()]


def test_bytes_become_halves_exactly() -> None:
    for first in range(-128, 128, 4):
        expected = [first, first + 1, first + 2, first + 3]
        word = int.from_bytes(bytes(number & 0xFF for number in expected), "little")
        assert emulate(INT8_TO_HALF.value, word) == expected


def test_the_emulator_knows_every_instruction_of_the_program() -> None:
    lines = [line for line in INT8_TO_HALF.value.splitlines() if line.endswith(";") and not line.startswith(".reg")]
    assert len(lines) == len(re.findall(r"(?:xor\.b32|mov\.b32|prmt\.b32|sub\.f16x2) [^;]+;", INT8_TO_HALF.value)) == 6
