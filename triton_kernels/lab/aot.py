"""Compiling impls for a target without having one: the impl's own launcher runs, and its kernels are compiled, not launched.

``python -m triton_kernels.lab.aot TARGET OP:IMPL...`` prints one line of JSON per case; callers that must not change their own
process (a driver is replaced) or that run in the interpreter start it as a child.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from ..cases.serving import ServingCase, serving_cases
from ..devices import TARGETS, by_arch
from ..impl import Impl
from ..op import Op
from ..registry import Registry
from ..resolve import Choice, parse_choice
from ..spec import Spec
from . import calls, machine_code
from .loops import LoopFigures, main_loops
from .ttgir import load_widths
from .turns import loop_turns

DTYPES = ("bfloat16", "float16", "float32")
_REGISTERS_PER_SM = 65536
_THREADS_PER_SM = 2048
_REGISTERS_PER_WAVE = 512


@dataclass(frozen=True)
class Artifact:
    """One compiled kernel. Shared memory is that of the metadata (tools do not see dynamic shared memory).

    config             block sizes and other compile-time arguments of the launch
    explicit_fusion    the launch says whether multiplications and additions may be fused, so that its numbers do not change
                       with Triton's default
    loops              figures of the main loops
    turns              how often they turn in the launch's middle program, where its arguments tell
    programs           of the launch
    load_widths        by argument, as ``ttgir.load_widths`` counts them: bytes that a load of a tile brings to a thread
    programs_per_sm    how many fit on a multiprocessor (AMD: compute unit) by registers, shared memory and threads
    waves              how often the programs of the launch fill the device that stands for the target; 0 where none fits
    """

    op: str
    impl: str
    case: str
    dtype: str
    kernel: str
    target: str
    triton: str
    config: str
    num_warps: int
    num_stages: int
    shared_bytes: int
    registers: int
    spills: int
    matrix: dict[str, int]
    matrix_in_loop: dict[str, int]
    wide_loads: int
    programs_per_sm: int
    explicit_fusion: bool
    compile_s: float
    scalar_spills: int = 0
    tile_loads: int = 0
    loop_load_bytes: int = 0
    waves: float = 0.0
    load_widths: dict[str, int] = field(default_factory=dict)
    loops: list[LoopFigures] = field(default_factory=list)
    turns: list[int | None] = field(default_factory=list)
    programs: int = 0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Artifact:
        return cls(**{**values, "loops": [LoopFigures(**loop) for loop in values["loops"]]})


@dataclass(frozen=True)
class Compilation:
    """What came of one impl on one case: artifacts, or the reasons why it refuses the case, or an error."""

    op: str
    impl: str
    case: str
    dtype: str
    target: str
    artifacts: list[Artifact] = field(default_factory=list)
    refused: str = ""
    error: str = ""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Compilation:
        return cls(**{**values, "artifacts": [Artifact.from_dict(artifact) for artifact in values["artifacts"]]})


def compile_impl(
    op: Op,
    impl: Impl,
    target: str,
    dtype: torch.dtype = torch.bfloat16,
    *,
    options: Mapping[str, Any] | None = None,
    cases: Collection[str] = (),
    max_cases: int | None = None,
) -> list[Compilation]:
    """Compiles what ``impl`` would launch on ``target`` for the op's serving cases (or those named in ``cases``), at most
    ``max_cases`` of those it does not refuse; kernels shared by cases appear once. ``options``: those of a choice; they stand in
    the result's name of the impl."""
    compiled: list[Compilation] = []
    seen: set[int] = set()
    name = str(Choice(impl.name, options or {}))
    for case in serving_cases(op.name):
        if cases and case.name not in cases:
            continue
        if sum(not result.refused for result in compiled) == max_cases:
            break
        result = Compilation(op.name, name, case.name, str(dtype).removeprefix("torch."), target)
        spec, args = _spec_and_args(op, case, target, dtype)
        reasons = impl.unsupported(spec, options)
        if reasons:
            compiled.append(replace(result, refused="; ".join(reasons)))
            continue
        try:
            with compile_only(target) as launches:
                calls.call(op, calls.bind(op, impl, spec, args, options), args)
        except Exception as error:  # a kernel that does not compile must not hide the others
            lines = str(error).strip().splitlines() or [""]  # Triton shows the source in between
            message = lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"
            compiled.append(replace(result, error=f"{type(error).__name__}: {message}"))
            continue
        artifacts = []
        for launch in launches:
            if id(launch.kernel) not in seen:
                seen.add(id(launch.kernel))
                artifacts.append(_artifact(result, launch))
        compiled.append(replace(result, artifacts=artifacts))
    return compiled


def _spec_and_args(op: Op, case: ServingCase, target: str, dtype: torch.dtype) -> tuple[Spec, dict[str, Any]]:
    """The arguments lie on the CPU: nothing reads them, and the launcher only looks at shapes, strides and dtypes."""
    args = {**op.defaults, **case.make(dtype)}
    assert set(args) == set(op.parameters), f"serving case {case.name!r} of {op.name} gives {sorted(args)}"
    spec = calls.make_spec(op, args, dtype, torch.device("cpu"))
    return replace(spec, device="cuda", arch=target), args


@dataclass
class Launch:
    """A launch that was compiled: Triton's compiled kernel, the keywords of the launch, all arguments by name, its grid, and how
    long it took."""

    kernel: Any
    keywords: dict[str, Any]
    arguments: dict[str, Any]
    grid: tuple[int, int, int]
    compile_s: float


class _OfflineDriver:
    """Stands in for a GPU driver. Each target is a device of its own, because the JIT keeps its binaries by device."""

    def __init__(self, target: str) -> None:
        from triton.backends.compiler import GPUTarget

        self.device = 1000 + TARGETS.index(target)
        if target.startswith("sm_"):
            self.target = GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
        else:
            self.target = GPUTarget("hip", target, 64)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextlib.contextmanager
def compile_only(target: str) -> Iterator[list[Launch]]:
    """Inside, launches of Triton kernels compile for ``target`` and do nothing else; what they compiled is listed."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    if target not in TARGETS:
        raise ValueError(f"cannot compile for {target!r}; the targets are {', '.join(TARGETS)}")
    launches: list[Launch] = []
    run, active, offline = JITFunction.run, driver._active, _OfflineDriver(target)

    def compile_instead(self: Any, *args: Any, grid: Any, warmup: bool, **keywords: Any) -> Any:
        start = time.perf_counter()
        kernel = run(self, *args, grid=grid, warmup=True, **keywords)
        assert kernel.metadata.target == offline.target, f"compiled for {kernel.metadata.target}, not for {target}"
        seconds = time.perf_counter() - start
        named = {**dict(zip(self.arg_names, args)), **keywords}
        x, y, z = (*(grid(named) if callable(grid) else grid), 1, 1)[:3]
        launches.append(Launch(kernel, keywords, named, (x, y, z), seconds))
        return kernel

    driver.set_active(offline)
    JITFunction.run = compile_instead
    try:
        yield launches
    finally:
        JITFunction.run = run
        driver._active = active


def _artifact(result: Compilation, launch: Launch) -> Artifact:
    import triton

    meta, asm = launch.kernel.metadata, launch.kernel.asm
    disassembled = machine_code.disassemble(asm)
    code = machine_code.read(disassembled)
    config = " ".join(f"{key}={value}" for key, value in launch.keywords.items() if key.isupper())
    per_sm = _programs_per_sm(result.target, meta.num_warps, code.registers, meta.shared)
    num_at_once = per_sm * by_arch(result.target).num_sms
    return Artifact(
        op=result.op,
        impl=result.impl,
        case=result.case,
        dtype=result.dtype,
        kernel=meta.name,
        target=result.target,
        triton=triton.__version__,
        config=config,
        num_warps=meta.num_warps,
        num_stages=meta.num_stages,
        shared_bytes=meta.shared,
        explicit_fusion="enable_fp_fusion" in launch.keywords,
        programs_per_sm=per_sm,
        waves=round(math.prod(launch.grid) / num_at_once, 3) if num_at_once else 0.0,
        compile_s=round(launch.compile_s, 3),
        load_widths=load_widths(asm["ttgir"]),
        loops=main_loops(asm, disassembled),
        turns=loop_turns(asm["ttgir"], launch.arguments, launch.grid),
        programs=math.prod(launch.grid),
        **asdict(code),
    )


def _programs_per_sm(target: str, num_warps: int, registers: int, shared_bytes: int) -> int:
    aligned = -(-max(registers, 1) // 8) * 8
    if not target.startswith("sm_"):  # four units of 8 waves each, and registers for them
        waves = 4 * min(8, _REGISTERS_PER_WAVE // aligned)
        return min(waves // num_warps, by_arch(target).shared_bytes // max(shared_bytes, 1))
    threads = 32 * num_warps
    by_registers = _REGISTERS_PER_SM // (aligned * threads)
    by_shared = (by_arch(target).shared_bytes + 1024) // (shared_bytes + 1024)  # 1 KiB per program is the system's
    return min(by_registers, by_shared, _THREADS_PER_SM // threads, 32)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m triton_kernels.lab.aot", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("impls", nargs="+", metavar="OP:IMPL[@key:value]")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--case", action="append", default=[])
    parser.add_argument("--max-cases", type=int)
    parser.add_argument("--plugin", action="append", default=[])
    arguments = parser.parse_args(argv)
    registry = Registry.load(arguments.plugin)
    for name in arguments.impls:
        op, _, text = name.partition(":")
        choice, dtype = parse_choice(text), getattr(torch, arguments.dtype)
        for result in compile_impl(
            registry.ops[op],
            registry.impls(op)[choice.name],
            arguments.target,
            dtype,
            options=choice.options,
            cases=arguments.case,
            max_cases=arguments.max_cases,
        ):
            print(json.dumps(asdict(result)), flush=True)


if __name__ == "__main__":
    main()
