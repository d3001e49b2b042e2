"""The table of main loops that ``kernelswap kernels compile`` prints: what a turn costs, and the time that the launch implies."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triton_kernels.lab.aot import Compilation
    from triton_kernels.registry import Registry


def loop_rows(registry: Registry, results: Iterable[Compilation]) -> list[dict[str, Any]]:
    """One row per main loop. instructions: per warp and turn, by pipe; cap: the longest time that one unit of the device needs for
    the loop; limits: every unit's time. See ``triton_kernels/lab/time_model.py``."""
    from triton_kernels.cases.serving import serving_cases
    from triton_kernels.lab.time_model import loop_estimate

    rows = []
    for result in results:
        case = next(case for case in serving_cases(result.op) if case.name == result.case)
        cost = registry.ops[result.op].cost(case.dims, case.batch.q_lens, case.batch.ctx_lens)
        for artifact in result.artifacts:
            for i, loop in enumerate(artifact.loops):
                found = loop_estimate(artifact, i, cost)
                rows.append(
                    {
                        "kernel": f"{artifact.op}:{artifact.impl}/{artifact.kernel}",
                        "case": artifact.case,
                        "dtype": artifact.dtype,
                        "target": artifact.target,
                        "triton": artifact.triton,
                        "loop": i,
                        "instructions": " ".join(f"{pipe} {count}" for pipe, count in sorted(loop.instructions.items())),
                        "warps": artifact.num_warps,
                        "kflop": round(loop.tensor_flops / 1e3, 1),
                        "loaded_bytes": loop.loaded_bytes,
                        "buffers": loop.buffers,
                        "wait": "-" if loop.wait is None else loop.wait,
                        "registers": artifact.registers,
                        "per_sm": artifact.programs_per_sm,
                        "programs": artifact.programs,
                        "turns": "?" if artifact.turns[i] is None else artifact.turns[i],
                        "waves": f"{float(found.waves):.0f}",
                        "cap_us": f"{found.cap * 1e6:.2f}",
                        "bound_by": found.bound_by,
                        "limits_us": " ".join(f"{unit} {float(s) * 1e6:.2f}" for unit, s in found.limits.items()),
                    }
                )
    return rows


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The rows as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0] if rows else ["kernel"])
        writer.writeheader()
        writer.writerows(rows)
