"""What a compiled kernel consists of, read from its machine code: registers, spills, matrix instructions, wide loads."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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


def read(asm: Mapping[str, Any]) -> MachineCode:
    """Reads what Triton compiled (``CompiledKernel.asm``): a cubin, or AMD assembly."""
    return _read_cubin(asm["cubin"]) if "cubin" in asm else _read_amdgcn(asm["amdgcn"])


def _read_cubin(cubin: bytes) -> MachineCode:
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
        code.append((at, opcode))
        if opcode == "EXIT" and not predicate:
            ends.append(at)
        target = re.search(r"0x([0-9a-f]+)", rest) if opcode.startswith("BRA") else None
        first = at if target is None else int(target[1], 16)
        # Waits for barriers stand behind the end of the program and jump back into it: those are no loops.
        if first < at and not any(first <= end <= at for end in ends):
            loops.append((first, at))
    return _summarize(code, loops, int(usage[1]), int(usage[2]), 0)


def _read_amdgcn(text: str) -> MachineCode:
    code, labels, loops = [], {}, []
    for match in _ASM_LINE.finditer(text):
        label, opcode, rest = match.groups()
        if label:
            labels[label] = match.start()
            continue
        code.append((match.start(), opcode))
        target = rest.split()[0] if opcode.startswith(("s_cbranch", "s_branch")) and rest.split() else ""
        if target in labels:
            loops.append((labels[target], match.start()))

    def number(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", text)
        return int(found[1]) if found else 0

    return _summarize(code, loops, number("vgpr_count"), number("vgpr_spill_count"), number("sgpr_spill_count"))


def _summarize(
    code: list[tuple[int, str]], loops: list[tuple[int, int]], registers: int, spills: int, scalar_spills: int
) -> MachineCode:
    matrix: Counter[str] = Counter()
    in_loop: Counter[str] = Counter()
    for at, opcode in code:
        family = next((name for name in MATRIX if opcode.split(".")[0] == name or opcode.startswith(name + "_")), None)
        if family is not None:
            matrix[family] += 1
            in_loop[family] += any(first <= at <= last for first, last in loops)
    wide = sum(_WIDE_LOAD.match(opcode) is not None for _, opcode in code)
    tiles = sum(_TILE_LOAD.match(opcode) is not None for _, opcode in code)
    return MachineCode(registers, spills, scalar_spills, dict(matrix), dict(+in_loop), wide, tiles, _loop_load_bytes(code, loops))


def _loop_load_bytes(code: list[tuple[int, str]], loops: list[tuple[int, int]]) -> int:
    weights = [(0, 0)]
    for first, last in loops:
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in loops):
            body = [opcode for at, opcode in code if first <= at <= last]
            weights.append((sum(opcode.startswith(MATRIX) for opcode in body), sum(map(_load_bytes, body))))
    return max(weights)[1]


def _load_bytes(opcode: str) -> int:
    """Bytes per thread of a load from global memory, 0 for any other instruction."""
    if not _LOAD.match(opcode):
        return 0
    if opcode.startswith("LDG"):
        bits = _LOAD_BITS.search(opcode)
        return int(bits[1].lstrip("US")) // 8 if bits else 4
    return next((size for name, size in _AMD_LOAD_BYTES.items() if f"_load_{name}" in opcode), 0)
