"""Main loops of compiled kernels as rows of a table: what ``kernelswap kernels compile`` prints, and writes with ``--table``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .aot import Artifact
from .loops import PIPES


@dataclass(frozen=True)
class LoopRow:
    """One main loop. ``kernel``: op:impl/kernel; ``loop``: which of the kernel's, from 1; ``config``: the launch's compile-time
    arguments. A column per pipe has what a warp issues there per turn, ``instructions`` all of it; the figures of a loop are those
    of ``LoopFigures``, those of the kernel are ``Artifact``'s."""

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


def loop_rows(artifacts: Iterable[Artifact]) -> list[LoopRow]:
    """A row per main loop, in the order of the artifacts."""
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
        )
        for a in artifacts
        for number, loop in enumerate(a.loops, 1)
    ]
