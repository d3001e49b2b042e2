"""Figures of a kernel's main loops: what a warp executes in one turn, what a program loads, and how far ahead it asks for it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import ttgir
from .machine_code import MATRIX, Code, Instruction, disassemble, is_load, load_bytes, matrix_family

Pipes = tuple[tuple[str, str], ...]

PIPES = ("tensor", "lsu", "mufu", "convert", "half", "fma", "alu", "uniform", "control")
_CUDA_PIPES: Pipes = (
    ("tensor", "|".join(MATRIX) + "|DMMA|OMMA"),
    ("lsu", r"LDG|STG|LDGSTS|LDS|STS|LDSM|STSM|MOVM|LDL|STL|LD|ST|LDTM|STTM|ATOM\w*|RED\w*|SHFL"),
    ("mufu", "MUFU"),
    ("convert", r"F2F|F2FP|F2I|F2IP|I2F|I2FP|I2IP|FRND|POPC|FLO|BREV"),
    ("half", r"HFMA2|HADD2|HMUL2|HSET2|HSETP2|HMNMX2|VHMNMX"),
    ("fma", r"FFMA2?|FMUL2?|FADD2?|IMAD|IMUL|FSWZADD"),
    ("uniform", r"U(?!TC)\w+|R2UR|S2UR|REDUX|SYNCS|ELECT|VOTEU"),
    ("control", r"BRA|BRX|BSSY|BSYNC|BREAK|EXIT|NOP|BAR|DEPBAR|LDGDEPBAR|MEMBAR|FENCE|ERRBAR|CCTL|ARRIVES|WARPSYNC"),
    ("control", r"WARPGROUP|WARPGROUPSET|YIELD|S2R|CS2R|LDC|NANOSLEEP|CALL|RET|JMP|UTCBAR|UTCATOMSWS"),
    ("alu", r"\w+"),
)
_AMD_PIPES: Pipes = (
    ("tensor", r"v_mfma\w*|v_smfmac\w*"),
    ("lsu", r"(ds|global|buffer|flat|scratch)_\w+"),
    ("mufu", r"v_(exp|log|rcp|rsq|sqrt|sin|cos)_\w+"),
    ("convert", r"v_(cvt|pack|fract|rndne)_\w+"),
    ("half", r"v_(pk_)?(fma|mul|add|sub|max|min|mad|fmac)_(f16|bf16|u16|i16)\w*"),
    ("fma", r"v_(pk_)?(fma|fmac|mul|add|sub|mad|mul_lo|mad_u64)_(f32|f64|u32|u64)\w*|v_dot\w+"),
    ("control", r"s_(waitcnt|barrier|branch|cbranch|nop|setprio|sleep|endpgm)\w*"),
    ("uniform", r"s_\w+"),
    ("alu", r"\w+"),
)


@dataclass(frozen=True)
class LoopFigures:
    """One main loop: an innermost loop that loads from memory or multiplies tiles. Per turn of Triton's loop:

    instructions  that a warp issues, by pipe (``PIPES``; one that is not there has none): "tensor", "lsu" (memory, shared memory
                  and shuffles), "mufu" (exp2, rcp), "convert" (between formats, at a fraction of the rate), "half" (16 bits, two
                  at once), "fma" (f32, and integers through it), "alu" (the others), "uniform" (for a warp as a whole, TMA among
                  them), "control"
    loaded_bytes  that one program loads from memory
    buffers       how many tiles of a load lie in shared memory at once, of the load with the fewest; 0: they go to registers only
    wait          loads that are still under way behind the one that is waited for, at the wait with the fewest (the num of
                  ``async_wait``; tiles of TMA); None where no load is asynchronous
    cover         on AMD, where loads go through registers: matrix instructions between asking for a tile and waiting for it, of
                  the tile with the fewest; None elsewhere
    tensor_flops  of the tensor unit, per program; format: that of its first factor, as Triton writes it ("bf16", "f8E4M3FN")
    """

    instructions: dict[str, int]
    loaded_bytes: int
    buffers: int
    wait: int | None
    cover: int | None
    tensor_flops: int
    format: str = ""


def main_loops(asm: Mapping[str, Any], code: Code | None = None) -> list[LoopFigures]:
    """The main loops of what Triton compiled (``CompiledKernel.asm``), in the order of the program. ``code``: its machine code,
    where that was read already (the disassembler takes the better part of a second)."""
    code = code or disassemble(asm)
    loops = ttgir.main_loops(asm["ttgir"])
    pipes = _CUDA_PIPES if "cubin" in asm else _AMD_PIPES
    return [_figures(loop, body, pipes) for loop, body in zip(loops, _matching(loops, code), strict=True)]


def _matching(loops: list[ttgir.Loop], code: Code) -> list[list[Instruction]]:
    """The machine code of each loop. Both keep the order of the program; where a compiler made more loops of one (a rest behind an
    unrolled one) or none, those are paired that have products both or neither."""
    bodies = code.bodies(lambda opcode: bool(matrix_family(opcode) or is_load(opcode)))
    if len(bodies) == len(loops):
        return bodies
    kinds = {kind: iter([body for body in bodies if _multiplies(body) == kind]) for kind in (False, True)}
    return [next(kinds[bool(loop.products)], []) for loop in loops]


def _multiplies(body: list[Instruction]) -> bool:
    return any(matrix_family(i.opcode) for i in body)


def _figures(loop: ttgir.Loop, body: list[Instruction], pipes: Pipes) -> LoopFigures:
    instructions = Counter(_pipe(i.opcode, pipes) for i in body)
    on_tensor_unit = _multiplies(body)
    return LoopFigures(
        instructions=dict(instructions),
        loaded_bytes=sum(op.bytes for op in loop.loads),
        buffers=loop.buffers,
        wait=loop.wait,
        cover=_cover(body) if pipes is _AMD_PIPES and on_tensor_unit else None,
        tensor_flops=sum(op.flops for op in loop.products) if on_tensor_unit else 0,
        format=loop.products[0].format if on_tensor_unit and loop.products else "",
    )


def _pipe(opcode: str, pipes: Pipes) -> str:
    base = opcode.partition(".")[0]
    return next(pipe for pipe, pattern in pipes if re.fullmatch(pattern, base))


def _cover(body: list[Instruction]) -> int | None:
    """Loads come back in their order; ``s_waitcnt vmcnt(n)`` waits until n are under way. Two turns are walked: a load of the first
    may be waited for in the second."""
    widest = max((load_bytes(i.opcode) for i in body), default=0)
    under_way: list[int | None] = []  # per load: the products ahead of it; None for one that is no tile
    covers, num_products = [], 0
    for instruction in body * 2:
        num_products += bool(matrix_family(instruction.opcode))
        if is_load(instruction.opcode):
            under_way.append(num_products if load_bytes(instruction.opcode) == widest else None)
        elif wait := re.search(r"vmcnt\((\d+)\)", instruction.operands):
            done = len(under_way) - int(wait[1])
            covers += [num_products - ahead for ahead in under_way[: max(done, 0)] if ahead is not None]
            del under_way[: max(done, 0)]
    return min(covers, default=None)
