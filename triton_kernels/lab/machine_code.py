"""What a compiled kernel consists of, read from its machine code: registers, spills, matrix instructions, wide loads."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

MATRIX = ("HMMA", "HGMMA", "IMMA", "IGMMA", "QMMA", "QGMMA", "UTCHMMA", "UTCIMMA", "UTCQMMA", "v_mfma", "v_smfmac")
"""Families of matrix instructions: per warp (HMMA, IMMA), per warp group (HGMMA, IGMMA, QGMMA: sm_90), of the tensor memory
(UTC*: sm_100), and AMD's."""

_WIDE_LOAD = re.compile(r"(LDG|LDGSTS)\..*128|UTMALDG|UBLKCP|(global|buffer|flat)_load_dwordx4")
_TILE_LOAD = re.compile(r"UTMALDG|UBLKCP")
_LOAD = re.compile(r"(?:LDG|LDGSTS)\b|(?:global|buffer|flat)_load_")
_LOAD_BITS = re.compile(r"\.(128|64|U?16|[US]8)\b")
_AMD_LOAD_BYTES = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "short": 2, "ushort": 2, "sbyte": 1, "ubyte": 1}
_SASS_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);", re.M)
_ASM_LINE = re.compile(r"^(?:(\.L\w+):|\s+([a-z][a-z0-9_]+)\b(.*))", re.M)


class Instruction(NamedTuple):
    address: int
    opcode: str
    operands: str


@dataclass(frozen=True)
class Code:
    """A kernel's instructions and its loops, (first, last address); the rest as in ``MachineCode``."""

    instructions: list[Instruction]
    loops: list[tuple[int, int]]
    registers: int
    spills: int
    scalar_spills: int = 0

    def bodies(self, wanted: Callable[[str], bool]) -> list[list[Instruction]]:
        """The loops with a wanted opcode that hold no other such loop, in the order of the program."""
        bodies = {(a, b): [i for i in self.instructions if a <= i.address <= b] for a, b in sorted(set(self.loops))}
        bodies = {span: body for span, body in bodies.items() if any(wanted(i.opcode) for i in body)}
        return [b for (x, y), b in bodies.items() if not any(x <= u and v <= y and (u, v) != (x, y) for u, v in bodies)]


@dataclass(frozen=True)
class MachineCode:
    """Numbers of one kernel.

    registers       32-bit registers per thread (AMD: vector registers, accumulation registers included)
    spills          what goes to memory. NVIDIA: bytes of stack per thread; AMD: spilled vector registers
    scalar_spills   AMD: spilled scalar registers, which go to lanes of vector registers
    matrix          matrix instructions by family
    matrix_in_loop  those of them that lie inside a loop
    wide_loads      instructions that load 16 bytes per thread, or a tile, from global memory
    tile_loads      those of them that the copy engine does: a box of a tensor (TMA)
    loop_load_bytes what a thread loads from global memory in one turn of the main loop: of the innermost loops the one with
                    the most matrix instructions, then with the most loads. Tiles of the copy engine (UTMALDG) do not count
    """

    registers: int
    spills: int
    scalar_spills: int
    matrix: dict[str, int]
    matrix_in_loop: dict[str, int]
    wide_loads: int
    tile_loads: int
    loop_load_bytes: int


def disassemble(asm: Mapping[str, Any]) -> Code:
    """The machine code in what Triton compiled (``CompiledKernel.asm``): a cubin, or AMD assembly."""
    return _disassemble_cubin(asm["cubin"]) if "cubin" in asm else _parse_amdgcn(asm["amdgcn"])


def read(code: Code) -> MachineCode:
    """What the gates look at."""
    matrix: Counter[str] = Counter()
    in_loop: Counter[str] = Counter()
    for at, opcode, _ in code.instructions:
        family = matrix_family(opcode)
        if family:
            matrix[family] += 1
            in_loop[family] += any(first <= at <= last for first, last in code.loops)
    loads = [i.opcode for i in code.instructions if is_load(i.opcode)]
    return MachineCode(
        registers=code.registers,
        spills=code.spills,
        scalar_spills=code.scalar_spills,
        matrix=dict(matrix),
        matrix_in_loop=dict(+in_loop),
        wide_loads=sum(_WIDE_LOAD.match(opcode) is not None for opcode in loads),
        tile_loads=sum(_TILE_LOAD.match(opcode) is not None for opcode in loads),
        loop_load_bytes=_loop_load_bytes(code),
    )


def matrix_family(opcode: str) -> str:
    """Which of ``MATRIX`` an instruction belongs to; "" for any other."""
    return next((name for name in MATRIX if opcode.split(".")[0] == name or opcode.startswith(name + "_")), "")


def is_load(opcode: str) -> bool:
    """Whether an instruction loads from global memory."""
    return bool(_LOAD.match(opcode) or _TILE_LOAD.match(opcode))


def _disassemble_cubin(cubin: bytes) -> Code:
    import triton  # the disassembler comes with it

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", "--dump-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert usage is not None, "cuobjdump gave no resource usage"
    code, loops, ends = [], [], []
    for position, predicate, opcode, rest in _SASS_LINE.findall(text):
        at = int(position, 16)
        code.append(Instruction(at, opcode, rest))
        if opcode == "EXIT" and not predicate:
            ends.append(at)
        target = re.search(r"0x([0-9a-f]+)", rest) if opcode.startswith("BRA") else None
        first = at if target is None else int(target[1], 16)
        # Waits for barriers stand behind the end of the program and jump back into it: those are no loops.
        if first < at and not any(first <= end <= at for end in ends):
            loops.append((first, at))
    return Code(code, loops, int(usage[1]), int(usage[2]))


def _parse_amdgcn(text: str) -> Code:
    code, labels, loops = [], {}, []
    for match in _ASM_LINE.finditer(text):
        label, opcode, rest = match.groups()
        if label:
            labels[label] = match.start()
            continue
        code.append(Instruction(match.start(), opcode, rest))
        target = rest.split()[0] if opcode.startswith(("s_cbranch", "s_branch")) and rest.split() else ""
        if target in labels:
            loops.append((labels[target], match.start()))

    def number(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", text)
        return int(found[1]) if found else 0

    return Code(code, loops, number("vgpr_count"), number("vgpr_spill_count"), number("sgpr_spill_count"))


def _loop_load_bytes(code: Code) -> int:
    bodies = [[i.opcode for i in body] for body in code.bodies(lambda opcode: True)]
    return max(((sum(map(bool, map(matrix_family, body))), sum(map(load_bytes, body))) for body in bodies), default=(0, 0))[1]


def load_bytes(opcode: str) -> int:
    """Bytes per thread of a load from global memory, 0 for any other instruction."""
    if not _LOAD.match(opcode):
        return 0
    if opcode.startswith("LDG"):
        bits = _LOAD_BITS.search(opcode)
        return int(bits[1].lstrip("US")) // 8 if bits else 4
    return next((size for name, size in _AMD_LOAD_BYTES.items() if f"_load_{name}" in opcode), 0)
