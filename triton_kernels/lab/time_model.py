"""A static model of a kernel's time: what the turns of its main loop ask of a multiprocessor, and its launch of the device.

Programs run in waves, as many at once as fit. The main loop needs, on the multiprocessor with the most programs, so many seconds of
the tensor unit, of issue slots, of its share of the L2 cache, and of waiting for tiles that were asked for too late; memory needs
what is read and written once. The slowest of these is the cap: no more than ranks and caps is claimed. All numbers may be NumPy
arrays, of one shape, so that thousands of launches are estimated at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cases.serving import serving_cases
from ..devices import DeviceModel, by_arch
from ..op import Cost, Op
from .aot import Artifact

Number = Any
"""A float, or an array of them."""

MMA_SYNC = 0.62
"""What warps' own products (HMMA) reach of the tensor unit of sm_90, which was made for warp groups' (Luo et al., 2402.13499)."""
SHARPNESS = 4.0
"""Of the soft maximum of loop and memory, which overlap: where both need as long, it takes 1.19 times as long."""
FORMATS = {"f32": "fp32", "tf32": "fp32", "f16": "bf16", "bf16": "bf16", "i8": "int8", "f8E4M3FN": "fp8", "f8E5M2": "fp8"}
"""Triton's names of a product's format -> those of the device table."""


@dataclass(frozen=True)
class Constants:
    """What a device table does not say. Shares are of its figures, so that they may stand in for an architecture without a fit.

    launch_s    from the end of a kernel to the first instruction of the next, in a graph or back to back
    program_s   of a wave, what no turn of the main loop hides: addresses, filling the pipeline, storing the result
    latency_s   from asking for a tile until the next can be asked for in its place
    issue_s     of a multiprocessor, for one instruction of one warp
    l2          bytes per second of the L2 cache, over those of memory
    memory      share of the device table's bytes per second
    tensor      share of the device table's operations per second that a loop of products reaches; fp8: with scales of blocks
    """

    launch_s: Number
    program_s: Number
    latency_s: Number
    issue_s: Number
    l2: Number
    memory: Number
    tensor: Number
    tensor_fp8: Number


FITTED = {"sm_90": Constants(3.86e-06, 2.78e-06, 2.5e-07, 1.42e-10, l2=1.86, memory=1.02, tensor=0.817, tensor_fp8=0.305)}
"""By architecture. ``python -m experiments.moe_time_model fit`` prints them: half of the shapes of vLLM's MoE kernel on an H200."""


@dataclass(frozen=True)
class Work:
    """One launch. flops, bytes, issues: of one program and turn of the main loop (issues: instructions of all its warps); ahead:
    turns whose tiles are on their way; peak: operations per second of the device table; tensor: share of it that a loop reaches."""

    programs: Number
    turns: Number
    per_sm: Number
    flops: Number
    bytes: Number
    issues: Number
    ahead: Number
    peak: Number
    tensor: Number
    memory_bytes: Number


@dataclass(frozen=True)
class Estimate:
    """Seconds. limits: what each unit alone needs: "tensor", "issue", "l2", "wait", "memory"; total: with launch and waves."""

    limits: Mapping[str, Number]
    waves: Number
    total: Number

    @property
    def cap(self) -> float:
        """The longest of the limits of one launch."""
        return float(max(self.limits.values()))

    @property
    def bound_by(self) -> str:
        return max(self.limits, key=lambda unit: float(self.limits[unit]))


def estimate(work: Work, device: DeviceModel, constants: Constants) -> Estimate:
    """How long one launch takes."""
    full, rest = np.divmod(work.programs, device.num_sms * work.per_sm)
    waves, most = full + (rest > 0), full * work.per_sm + np.ceil(rest / device.num_sms)
    per_sm_turns, bytes_s = work.turns * most, constants.memory * device.copy_bytes_s
    limits = {
        "tensor": per_sm_turns * work.flops * device.num_sms / (work.peak * work.tensor),
        "issue": per_sm_turns * work.issues * constants.issue_s,
        "l2": per_sm_turns * work.bytes * device.num_sms / (constants.l2 * device.copy_bytes_s),
        "wait": work.turns * waves * constants.latency_s / work.ahead,
        "memory": work.memory_bytes / bytes_s,
    }
    loop = np.maximum.reduce([limits[unit] for unit in ("tensor", "issue", "l2", "wait")]) + waves * constants.program_s
    total = constants.launch_s + (loop**SHARPNESS + limits["memory"] ** SHARPNESS) ** (1 / SHARPNESS)
    return Estimate(limits, waves, total)


def constants_for(arch: str) -> Constants:
    """The fitted ones; of an architecture without a fit those of sm_90, whose shares then apply to its own figures."""
    return FITTED.get(arch, FITTED["sm_90"])


def serving_cost(op: Op, name: str) -> Cost:
    """Of the serving case with that name."""
    case = next(case for case in serving_cases(op.name) if case.name == name)
    return op.cost(case.dims, case.batch.q_lens, case.batch.ctx_lens)


def loop_estimate(artifact: Artifact, index: int, cost: Cost) -> Estimate:
    """Of one main loop of a compiled kernel, as if it were the only one. cost: of the case, which bounds what memory moves, and
    stands in for the turns where the launch does not tell them."""
    loop, device, constants = artifact.loops[index], by_arch(artifact.target), constants_for(artifact.target)
    format = FORMATS.get(loop.format, "bf16")
    warps_product = artifact.target in ("sm_90", "sm_100") and set(artifact.matrix_in_loop) == {"HMMA"}
    turns = _turns(artifact, index, cost)
    work = Work(
        programs=artifact.programs,
        turns=turns,
        per_sm=max(artifact.programs_per_sm, 1),
        flops=loop.tensor_flops / (MMA_SYNC if warps_product else 1.0),
        bytes=loop.loaded_bytes,
        issues=sum(loop.instructions.values()) * artifact.num_warps,
        ahead=max(loop.buffers - 1, 1),
        peak=device.flops_s.get(format, math.inf),
        tensor=constants.tensor_fp8 if format == "fp8" else constants.tensor,
        memory_bytes=min(cost.bytes, artifact.programs * turns * loop.loaded_bytes),
    )
    return estimate(work, device, constants)


def _turns(artifact: Artifact, index: int, cost: Cost) -> int:
    """What the launch tells; else the fewest turns in which all programs do what the cost counts. Loops that multiply share it, and
    one beside them that does not (a search for the request) counts as one turn."""
    if (known := artifact.turns[index]) is not None:
        return known
    unknown = [loop for loop, turns in zip(artifact.loops, artifact.turns) if turns is None]
    working = [loop for loop in unknown if loop.tensor_flops] or unknown
    if artifact.loops[index] not in working:
        return 1
    flops, bytes = sum(loop.tensor_flops for loop in working), sum(loop.loaded_bytes for loop in working)
    least = [total / (artifact.programs * per_turn) for total, per_turn in ((cost.flops, flops), (cost.bytes, bytes)) if per_turn]
    return math.ceil(max(least, default=1))


def case_seconds(artifacts: Sequence[Artifact], cost: Cost) -> float:
    """The predicted time of all kernels of a case, one after the other; the loops of a kernel share its launch."""
    total = 0.0
    for artifact in artifacts:
        launch_s = float(constants_for(artifact.target).launch_s)
        loops = [float(loop_estimate(artifact, i, cost).total) - launch_s for i in range(len(artifact.loops))]
        total += launch_s + sum(loops)
    return total
