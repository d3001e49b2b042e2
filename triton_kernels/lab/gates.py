"""Gates: what the machine code of a kernel must look like, checked without a GPU. The rules are data, in ``gates.json``.

A rule names what it applies to - glob patterns over ``kernel`` (``op:impl/kernel``), ``case``, ``dtype`` (of the
activations), ``target`` and ``triton`` (version), all optional - and sets limits; of all rules that apply, the last one
that sets a limit wins. ``why`` is for the reader. Limits:
matrix             a family of matrix instructions (a glob pattern) that must occur inside a loop ("" = none)
max_spills         as ``MachineCode.spills`` counts them: bytes of stack, or vector registers
max_scalar_spills  as ``MachineCode.scalar_spills`` counts them: AMD's scalar registers, which cost no memory access
max_registers      per thread
min_wide_loads     loads of 16 bytes per thread, or of tiles
min_tile_loads     loads of a box by the copy engine (TMA)
max_loop_load_bytes  as ``MachineCode.loop_load_bytes`` counts them: with the tile's size it says that nothing is loaded twice,
                   and packed weights only packed
min_programs_per_sm  programs that fit on a multiprocessor at once
explicit_fusion    the launch must say whether multiplications and additions may be fused
Shared memory must fit the device always.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..devices import by_arch
from .aot import Artifact

_SELECTORS = ("kernel", "case", "dtype", "target", "triton")
_LIMITS = (
    "matrix",
    "max_spills",
    "max_scalar_spills",
    "max_registers",
    "min_wide_loads",
    "min_tile_loads",
    "max_loop_load_bytes",
    "min_programs_per_sm",
    "explicit_fusion",
)

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
    impl = artifact.impl.partition("@")[0]  # without the options of a choice
    names = {"kernel": f"{artifact.op}:{impl}/{artifact.kernel}", "case": artifact.case}
    names |= {"dtype": artifact.dtype, "target": artifact.target, "triton": artifact.triton}
    found: dict[str, Any] = {}
    for rule in rules:
        if all(fnmatchcase(names[key], rule[key]) for key in _SELECTORS if key in rule):
            found |= {key: rule[key] for key in _LIMITS if key in rule}
    return found


def violations(artifact: Artifact, rules: Sequence[Rule]) -> list[str]:
    """What is wrong with one artifact; empty when it passes."""
    limit, found = limits(artifact, rules), []
    device = by_arch(artifact.target)
    if artifact.shared_bytes > device.shared_bytes:
        found.append(f"{artifact.shared_bytes} bytes of shared memory, {device.name} has {device.shared_bytes}")
    if artifact.spills > limit.get("max_spills", artifact.spills):
        found.append(f"spills {artifact.spills}, at most {limit['max_spills']}")
    if artifact.scalar_spills > limit.get("max_scalar_spills", artifact.scalar_spills):
        found.append(f"spills {artifact.scalar_spills} scalar registers, at most {limit['max_scalar_spills']}")
    if artifact.registers > limit.get("max_registers", artifact.registers):
        found.append(f"{artifact.registers} registers, at most {limit['max_registers']}")
    if artifact.wide_loads < limit.get("min_wide_loads", 0):
        found.append(f"{artifact.wide_loads} wide loads, at least {limit['min_wide_loads']}")
    if artifact.tile_loads < limit.get("min_tile_loads", 0):
        found.append(f"{artifact.tile_loads} loads of tiles (TMA), at least {limit['min_tile_loads']}")
    if limit.get("matrix") and not any(fnmatchcase(family, limit["matrix"]) for family in artifact.matrix_in_loop):
        found.append(f"no {limit['matrix']} inside a loop (matrix instructions: {artifact.matrix or 'none'})")
    if artifact.loop_load_bytes > limit.get("max_loop_load_bytes", artifact.loop_load_bytes):
        found.append(f"{artifact.loop_load_bytes} bytes loaded per turn of the loop, at most {limit['max_loop_load_bytes']}")
    if artifact.programs_per_sm < limit.get("min_programs_per_sm", 0):
        found.append(f"{artifact.programs_per_sm} programs per multiprocessor, at least {limit['min_programs_per_sm']}")
    if limit.get("explicit_fusion") and not artifact.explicit_fusion:
        found.append("enable_fp_fusion is not set in the launch")
    return found


def check_gates(artifacts: Iterable[Artifact], rules: Sequence[Rule] | None = None) -> list[str]:
    """Every violation, as text that names kernel, case and target."""
    rules = load_rules() if rules is None else rules
    return [
        f"{a.op}:{a.impl}/{a.kernel} ({a.case}) for {a.target}: {problem}" for a in artifacts for problem in violations(a, rules)
    ]
