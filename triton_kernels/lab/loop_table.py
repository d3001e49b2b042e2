"""Main loops of compiled kernels as rows of a table: what ``kernelswap kernels compile`` prints, and writes with ``--table``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..op import Op
from .aot import Artifact
from .loops import PIPES
from .time_model import loop_estimate, serving_cost


@dataclass(frozen=True)
class LoopRow:
    """One main loop. ``kernel``: op:impl/kernel; ``loop``: which of the kernel's, from 1; ``config``: the launch's compile-time
    arguments. A column per pipe has what a warp issues there per turn, ``instructions`` all of it; the figures of a loop are those
    of ``LoopFigures``, those of the kernel are ``Artifact``'s. ``turns``: None where the launch does not tell; ``cap_us``: the
    longest time that a unit of the device (``bound_by``) needs for the loop, by ``time_model``."""

    kernel: str
    case: str
    dtype: str
    target: str
    triton: str
    config: str
    loop: int
    num_warps: int
    registers: int
    shared_bytes: int
    programs_per_sm: int
    waves: float
    instructions: int
    tensor: int
    lsu: int
    mufu: int
    convert: int
    half: int
    fma: int
    alu: int
    uniform: int
    control: int
    loaded_bytes: int
    buffers: int
    wait: int | None
    cover: int | None
    tensor_flops: int
    format: str
    turns: int | None
    cap_us: float
    bound_by: str


def loop_rows(artifacts: Iterable[Artifact], ops: Mapping[str, Op]) -> list[LoopRow]:
    """A row per main loop, in the order of the artifacts, which are of serving cases of ``ops``."""
    return [
        LoopRow(
            kernel=f"{a.op}:{a.impl}/{a.kernel}",
            case=a.case,
            dtype=a.dtype,
            target=a.target,
            triton=a.triton,
            config=a.config,
            loop=number,
            num_warps=a.num_warps,
            registers=a.registers,
            shared_bytes=a.shared_bytes,
            programs_per_sm=a.programs_per_sm,
            waves=a.waves,
            instructions=sum(loop.instructions.values()),
            **{pipe: loop.instructions.get(pipe, 0) for pipe in PIPES},
            loaded_bytes=loop.loaded_bytes,
            buffers=loop.buffers,
            wait=loop.wait,
            cover=loop.cover,
            tensor_flops=loop.tensor_flops,
            format=loop.format,
            turns=a.turns[number - 1],
            cap_us=round(found.cap * 1e6, 2),
            bound_by=found.bound_by,
        )
        for a in artifacts
        for number, loop in enumerate(a.loops, 1)
        for found in [loop_estimate(a, number - 1, serving_cost(ops[a.op], a.case))]
    ]
