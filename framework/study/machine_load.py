"""What else the machine did while a run was measured: it explains an outlier, and makes a noisy sweep known."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_STAT = Path("/proc/stat")


@dataclass(frozen=True)
class _Snapshot:
    """CPU seconds so far: of all processes of the machine, taken by its hypervisor, and of this process with its children that
    ended."""

    wall_s: float
    busy_s: float
    stolen_s: float
    own_s: float

    @classmethod
    def take(cls) -> _Snapshot | None:
        """None where the system does not say."""
        try:
            line = _STAT.read_text(encoding="ascii").partition("\n")[0]
            user, nice, system, _, _, irq, softirq, steal = (int(ticks) for ticks in line.split()[1:9])
        except (OSError, ValueError):
            return None
        tick_s = 1.0 / os.sysconf("SC_CLK_TCK")
        busy_s, own = (user + nice + system + irq + softirq) * tick_s, os.times()
        return cls(time.monotonic(), busy_s, steal * tick_s, own.user + own.system + own.children_user + own.children_system)


@contextmanager
def machine_load() -> Iterator[dict[str, float]]:
    """The ``env.*`` columns of the time inside, filled in at its end:

    load_1min_start, load_1min_end   the system's load average over the last minute
    cpus_busy_elsewhere              how many CPUs other processes kept busy, on average
    cpus_stolen                      how many CPUs the hypervisor gave to others, on average

    A column is absent where the system does not say."""
    columns: dict[str, float] = {}
    _put_load_average(columns, "start")
    start = _Snapshot.take()
    yield columns
    _put_load_average(columns, "end")
    end = _Snapshot.take()
    if start and end and (wall_s := end.wall_s - start.wall_s) > 0:
        others_s = (end.busy_s - start.busy_s) - (end.own_s - start.own_s)
        columns["env.cpus_busy_elsewhere"] = round(max(0.0, others_s) / wall_s, 3)  # the two clocks tick apart
        columns["env.cpus_stolen"] = round((end.stolen_s - start.stolen_s) / wall_s, 3)


def _put_load_average(columns: dict[str, float], moment: str) -> None:
    if hasattr(os, "getloadavg"):
        columns[f"env.load_1min_{moment}"] = round(os.getloadavg()[0], 2)
