"""Figures of a kernel's main loops: what a warp executes in one turn, what a program loads, and how far ahead it asks for it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import ttgir
from .machine_code import MATRIX, Code, disassemble, is_load, matrix_family

Pipes = tuple[tuple[str, str], ...]

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

    instructions  that a warp issues, by pipe: "tensor", "lsu" (memory, shared memory and shuffles), "mufu" (exp2, rcp),
                  "convert" (between formats, at a fraction of the rate), "half" (16 bits, two at once), "fma" (f32, and integers
                  through it), "alu" (the others), "uniform" (for a warp as a whole, TMA among them), "control"
    loaded_bytes  that one program loads from memory
    buffers       how many tiles of a load lie in shared memory at once, of the load with the fewest; 0: they go to registers only
    wait          loads that are still under way behind the one that is waited for, at the wait with the fewest (the num of
                  ``async_wait``; tiles of TMA); None where no load is asynchronous
    tensor_flops  of the tensor unit, per program; format: that of its first factor, as Triton writes it ("bf16", "f8E4M3FN")
    """

    instructions: dict[str, int]
    loaded_bytes: int
    buffers: int
    wait: int | None
    tensor_flops: int
    format: str = ""


def main_loops(asm: Mapping[str, Any], code: Code | None = None) -> list[LoopFigures]:
    """The main loops of what Triton compiled (``CompiledKernel.asm``), in the order of the program. ``code``: its machine code,
    where that was read already (the disassembler takes the better part of a second)."""
    code = code or disassemble(asm)
    loops = ttgir.main_loops(asm["ttgir"])
    pipes = _CUDA_PIPES if "cubin" in asm else _AMD_PIPES
    return [_figures(loop, body, pipes) for loop, body in zip(loops, _matching(loops, code), strict=True)]


def _matching(loops: list[ttgir.Loop], code: Code) -> list[list[str]]:
    """The machine code of each loop. Both keep the order of the program; where a compiler made more loops of one (a rest behind an
    unrolled one) or none, those are paired that have products both or neither."""
    bodies = code.bodies(lambda opcode: bool(matrix_family(opcode) or is_load(opcode)))
    if len(bodies) == len(loops):
        return bodies
    kinds = {kind: iter([body for body in bodies if any(map(matrix_family, body)) == kind]) for kind in (False, True)}
    return [next(kinds[bool(loop.products)], []) for loop in loops]


def _figures(loop: ttgir.Loop, body: list[str], pipes: Pipes) -> LoopFigures:
    instructions = Counter(_pipe(opcode, pipes) for opcode in body)
    on_tensor_unit = instructions["tensor"] > 0
    return LoopFigures(
        instructions=dict(instructions),
        loaded_bytes=sum(op.bytes for op in loop.loads),
        buffers=loop.buffers,
        wait=loop.wait,
        tensor_flops=sum(op.flops for op in loop.products) if on_tensor_unit else 0,
        format=loop.products[0].format if on_tensor_unit and loop.products else "",
    )


def _pipe(opcode: str, pipes: Pipes) -> str:
    base = opcode.partition(".")[0]
    return next(pipe for pipe, pattern in pipes if re.fullmatch(pattern, base))
