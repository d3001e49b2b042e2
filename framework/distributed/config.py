"""How an engine is spread over devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config_checks import require
from .kinds import LAUNCHERS

if TYPE_CHECKING:
    from ..executor.kinds import ExecutorKind

PLACEMENTS = ("pack", "spread")
MAX_RANKS = 4096
MAX_TIMEOUT_S = 1e6
"""Eleven days: the system's calls that wait count milliseconds in 31 bits."""


@dataclass
class ParallelConfig:
    """Ranks per kind of parallelism, ``MAX_RANKS`` at most.

    tp, pp  a tensor is cut among tp devices, the layers among pp stages; an engine takes tp * pp devices
    dp      engines beside each other, each on devices of its own; ``router`` says which of them serves a request
    ep      1, or as many as tp: experts are spread over these devices, whole, instead of being cut. Or as many as tp * dp: over all
            of them, which are one engine then, whose dp schedulers take their steps together

    first_device    number of the GPU that the first rank takes; the others, and the engines beside it, take those after it, counted
                    around
    step_timeout_s  a step that takes longer has a rank that hangs, and the engine is ended; so is one of several engines that is
                    silent for so long while it has work

    Of executor.kind=distributed:
    start_timeout_s    ranks that are not ready after so long are ended
    redundant_experts  of each layer, beside one of each expert: replicas that share their load
    expert_loads       a file of how often experts were chosen (``write_loads``), by which they are replicated and packed at the
                       start
    eplb               count how often experts are chosen, so that ``Engine.rebalance_experts`` can move them
    eplb_steps         steps after which it is done by itself; 0 = never
    backend            what its workers are: processes (of this machine), threads (of this process, for tests), ray (its actors)
    port               of this machine, where they find each other; 0 = any that is free. Of several engines each takes the next one
    placement          of backend=ray: pack (as few nodes as hold the ranks) or spread (over as many as there are)
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1
    first_device: int = 0
    step_timeout_s: float = 300.0
    start_timeout_s: float = 600.0
    redundant_experts: int = 0
    expert_loads: str | None = None
    eplb: bool = False
    eplb_steps: int = 0
    backend: str = "processes"
    port: int = 0
    placement: str = "pack"

    @property
    def num_schedulers(self) -> int:
        """Of one engine: ``dp`` where their ranks share the experts, and so take every step together."""
        return self.dp if self.ep > self.tp else 1

    @property
    def num_engines(self) -> int:
        """Beside each other, in processes of their own if they have a device: ``dp``, unless that is the schedulers of one."""
        return self.dp // self.num_schedulers

    @property
    def num_ranks(self) -> int:
        """Of one engine."""
        return self.tp * self.pp * self.num_schedulers

    def validate(self, executor: str, kinds: Mapping[str, ExecutorKind]) -> None:
        """executor: its kind, one of ``kinds``. Raises ValueError for values that cannot work."""
        kind = kinds[executor]
        for name in ("tp", "pp", "dp", "ep"):
            require(1 <= getattr(self, name) <= MAX_RANKS, f"parallel.{name}", getattr(self, name), f"from 1 to {MAX_RANKS}")
        expected = f"1, or {self.tp} as parallel.tp" + (
            f", or {self.tp * self.dp} as parallel.tp * parallel.dp" if self.dp > 1 else ""
        )
        require(self.ep in (1, self.tp, self.tp * self.dp), "parallel.ep", self.ep, expected)
        require(self.redundant_experts >= 0, "parallel.redundant_experts", self.redundant_experts, "0 (none) or more")
        require(self.eplb_steps >= 0, "parallel.eplb_steps", self.eplb_steps, "0 (never) or more")
        require(self.eplb or not self.eplb_steps, "parallel.eplb_steps", self.eplb_steps, "0 without parallel.eplb=true")
        for name in ("redundant_experts", "expert_loads", "eplb"):
            expected = f"{getattr(ParallelConfig, name)} without parallel.ep"
            require(self.ep > 1 or not getattr(self, name), f"parallel.{name}", getattr(self, name), expected)
        require(self.backend in LAUNCHERS, "parallel.backend", self.backend, "one of " + ", ".join(LAUNCHERS))
        require(
            self.port == 0 or 0 < self.port <= 2**16 - self.num_engines,
            "parallel.port",
            self.port,
            "0 (any) or a port's number, one for each engine",
        )
        require(self.first_device >= 0, "parallel.first_device", self.first_device, "0 or more")
        for name in ("step_timeout_s", "start_timeout_s"):
            expected = f"from 0.001 to {MAX_TIMEOUT_S:.0f}"
            require(0.001 <= getattr(self, name) <= MAX_TIMEOUT_S, f"parallel.{name}", getattr(self, name), expected)
        readers = {"first_device": kind.has_device, "step_timeout_s": self.dp > 1}
        readers |= dict.fromkeys(
            ("start_timeout_s", "redundant_experts", "expert_loads", "eplb", "backend", "port", "placement"), False
        )
        if not kind.has_workers:
            able = ", ".join(name for name, other in kinds.items() if other.has_workers)
            require(self.ep in (1, self.tp), "parallel.ep", self.ep, f"1, or {self.tp} as parallel.tp (executor.kind={executor})")
            for name in [name for name, is_read in readers.items() if not is_read]:
                default = getattr(ParallelConfig, name)
                expected = f"{default} (executor.kind={executor} does not read it; {able} does)"
                require(getattr(self, name) == default, f"parallel.{name}", getattr(self, name), expected)
            return
        require(self.placement in PLACEMENTS, "parallel.placement", self.placement, "one of " + ", ".join(PLACEMENTS))
        expected = f"pack (parallel.backend={self.backend} does not read it; ray does)"
        require(self.placement == "pack" or self.backend == "ray", "parallel.placement", self.placement, expected)
        if (reason := LAUNCHERS[self.backend].reason) is not None:
            raise ValueError(f"parallel.backend={self.backend} cannot work: {reason}")
