"""Time, injected: nothing in the engine sleeps or reads time elsewhere."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds since an arbitrary start."""

    def now(self) -> float: ...

    def advance_to(self, time_s: float) -> None:
        """Returns when ``now()`` is at least ``time_s``."""


class WallClock:
    """Real time."""

    def now(self) -> float:
        return time.perf_counter()

    def advance_to(self, time_s: float) -> None:
        if (wait := time_s - self.now()) > 0:
            time.sleep(wait)


class VirtualClock:
    """Time that passes only when told: by a simulated executor, or by a driver that waits for the next arrival."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        return self._now

    def advance_to(self, time_s: float) -> None:
        self._now = max(self._now, time_s)
