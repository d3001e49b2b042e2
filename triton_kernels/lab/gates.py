"""Gates: what the machine code of a kernel must look like, checked without a GPU. The rules are data, in ``gates.json``.

A rule names what it applies to - glob patterns over ``kernel`` (``op:impl/kernel``), ``case``, ``dtype`` (of the
activations), ``target`` and ``triton`` (version), all optional - and sets limits; of all rules that apply, the last one
that sets a limit wins. ``why`` is for the reader. Limits:
matrix             a family of matrix instructions (a glob pattern) that must occur inside a loop ("" = none)
max_spills         as ``MachineCode.spills`` counts them: bytes of stack, or vector registers
max_scalar_spills  as ``MachineCode.scalar_spills`` counts them: AMD's scalar registers, which cost no memory access
max_registers      per thread
min_wide_loads     loads of 16 bytes per thread, or of tiles
wide_arguments     arguments whose tiles must all be loaded by 16 bytes per thread: loads of tables must not stand for theirs
min_tile_loads     loads of a box by the copy engine (TMA)
max_loop_load_bytes  as ``MachineCode.loop_load_bytes`` counts them: with the tile's size it says that nothing is loaded twice,
                   and packed weights only packed
min_programs_per_sm  programs that fit on a multiprocessor at once
explicit_fusion    the launch must say whether multiplications and additions may be fused
min_buffers, min_wait, min_cover  as ``LoopFigures`` counts them, in every loop with matrix instructions: that loads of coming
                   tiles are under way while this one is multiplied
Shared memory must fit the device always.

Options other than an impl's own (``op:impl@key:value``) are held to ``matrix``, spills and shared memory alone: the other limits
describe the tiles that were chosen, and must not veto faster ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from operator import attrgetter
from pathlib import Path
from typing import Any

from ..devices import by_arch
from .aot import Artifact
from .loops import LoopFigures

_SELECTORS = ("kernel", "case", "dtype", "target", "triton")
_OF_KERNELS: dict[str, tuple[Callable[[Artifact], int], str]] = {
    "max_spills": (attrgetter("spills"), "spills"),
    "max_scalar_spills": (attrgetter("scalar_spills"), "spills of scalar registers"),
    "max_registers": (attrgetter("registers"), "registers"),
    "min_wide_loads": (attrgetter("wide_loads"), "wide loads"),
    "min_tile_loads": (attrgetter("tile_loads"), "loads of tiles (TMA)"),
    "max_loop_load_bytes": (attrgetter("loop_load_bytes"), "bytes loaded per thread and turn of the loop"),
    "min_programs_per_sm": (attrgetter("programs_per_sm"), "programs per multiprocessor"),
}
_OF_LOOPS: dict[str, tuple[Callable[[LoopFigures], int | None], str]] = {
    "min_buffers": (attrgetter("buffers"), "buffers per tile"),
    "min_wait": (attrgetter("wait"), "loads under way behind the one waited for"),
    "min_cover": (attrgetter("cover"), "matrix instructions between a tile's load and the wait for it"),
}
_LIMITS = ("matrix", *_OF_KERNELS, *_OF_LOOPS, "wide_arguments", "explicit_fusion")
_WIDE = 16
_OF_CANDIDATES = ("matrix", "max_spills", "max_scalar_spills")

Rule = Mapping[str, Any]


def load_rules(path: Path | None = None) -> list[Rule]:
    """The rules of this tree, or of a file. Raises ValueError for keys that are neither selector nor limit."""
    rules: list[Rule] = json.loads((path or Path(__file__).with_name("gates.json")).read_text())
    for rule in rules:
        unknown = sorted(set(rule) - {*_SELECTORS, *_LIMITS, "why"})
        if unknown:
            raise ValueError(f"gate {rule} has unknown keys {unknown}; selectors: {_SELECTORS}, limits: {_LIMITS}, and why")
    return rules


def limits(artifact: Artifact, rules: Sequence[Rule]) -> dict[str, Any]:
    """The limits that hold for one artifact."""
    impl, _, options = artifact.impl.partition("@")
    names = {"kernel": f"{artifact.op}:{impl}/{artifact.kernel}", "case": artifact.case}
    names |= {"dtype": artifact.dtype, "target": artifact.target, "triton": artifact.triton}
    found: dict[str, Any] = {}
    for rule in rules:
        if all(fnmatchcase(names[key], rule[key]) for key in _SELECTORS if key in rule):
            found |= {key: rule[key] for key in (_OF_CANDIDATES if options else _LIMITS) if key in rule}
    return found


def violations(artifact: Artifact, rules: Sequence[Rule]) -> list[str]:
    """What is wrong with one artifact; empty when it passes."""
    limit, device = limits(artifact, rules), by_arch(artifact.target)
    found = [_exceeded(key, limit, number(artifact), what) for key, (number, what) in _OF_KERNELS.items()]
    if artifact.shared_bytes > device.shared_bytes:
        found.append(f"{artifact.shared_bytes} bytes of shared memory, {device.name} has {device.shared_bytes}")
    if limit.get("matrix") and not any(fnmatchcase(family, limit["matrix"]) for family in artifact.matrix_in_loop):
        found.append(f"no {limit['matrix']} inside a loop (matrix instructions: {artifact.matrix or 'none'})")
    if limit.get("explicit_fusion") and not artifact.explicit_fusion:
        found.append("enable_fp_fusion is not set in the launch")
    for name in limit.get("wide_arguments", ()):
        width = artifact.load_widths.get(name, 0)
        found.append(f"{name} is loaded by {width} bytes per thread, not by {_WIDE}" if width < _WIDE else "")
    for number_of_loop, loop in enumerate(artifact.loops, 1):
        if loop.tensor_flops:
            where = f" in loop {number_of_loop} of {len(artifact.loops)}"
            found += [_exceeded(key, limit, number(loop) or 0, what + where) for key, (number, what) in _OF_LOOPS.items()]
    return list(filter(None, found))


def _exceeded(key: str, limit: Mapping[str, Any], number: int, what: str) -> str:
    """The complaint about a number below its "min_" or above its "max_" limit; "" where there is none."""
    if key not in limit:
        return ""
    if key.startswith("min_"):
        return f"{number} {what}, at least {limit[key]}" if number < limit[key] else ""
    return f"{number} {what}, at most {limit[key]}" if number > limit[key] else ""


def check_gates(artifacts: Iterable[Artifact], rules: Sequence[Rule] | None = None) -> list[str]:
    """Every violation, as text that names kernel, case and target."""
    rules = load_rules() if rules is None else rules
    return [
        f"{a.op}:{a.impl}/{a.kernel} ({a.case}) for {a.target}: {problem}" for a in artifacts for problem in violations(a, rules)
    ]
