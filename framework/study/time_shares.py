"""Where the time of an engine's steps went: into drafting, verifying, sampling, or what is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ..engine.engine import Engine

PARTS = ("drafting", "verifying", "sampling")
_REST = "rest"
"""Schedules, commits, makes outputs."""

Call = TypeVar("Call", bound=Callable[..., Any])


class TimeShares:
    """Takes the time of the parts of a step, on the host, from now on.

    drafting   what guesses the next tokens, be it text or a model
    verifying  the executor's step without the others: the model's pass over the last tokens and the drafts
    sampling   from logits to tokens, with the decision which drafts stand

    A part that another one calls counts there alone."""

    def __init__(self, engine: Engine) -> None:
        self._inner_s = 0.0
        self.clear()
        engine.watch(lambda step: self._timed(_REST, step))
        executor: Any = engine.executor
        executor.submit = self._timed("verifying", executor.submit)
        executor.watch(self._timed)
        if (speculation := engine.scheduler.speculation) is not None and (proposer := speculation.proposer) is not None:
            for method in ("start", "propose", "stop"):
                setattr(proposer, method, self._timed("drafting", getattr(proposer, method)))

    @classmethod
    def of(cls, engine: Engine) -> TimeShares | None:
        """None for an engine without speculation, or whose executor gives steps to a device: what the host sees of those is not
        what they take."""
        here = hasattr(engine.executor, "watch") and engine.executor.in_flight_steps == 1
        return cls(engine) if here and engine.scheduler.speculation is not None else None

    def clear(self) -> None:
        """Forgets the steps so far."""
        self._seconds = dict.fromkeys((*PARTS, _REST), 0.0)

    def metrics(self) -> dict[str, float]:
        """drafting_share, verifying_share, sampling_share: fractions of the time of all steps."""
        total_s = sum(self._seconds.values())
        return {f"{part}_share": self._seconds[part] / total_s for part in PARTS if total_s}

    def _timed(self, part: str, call: Call) -> Call:
        def timed(*args: Any) -> Any:
            outer_s, self._inner_s = self._inner_s, 0.0
            start_s = time.perf_counter()
            try:
                return call(*args)
            finally:
                took_s = time.perf_counter() - start_s
                self._seconds[part] += took_s - self._inner_s
                self._inner_s = outer_s + took_s

        return timed  # type: ignore[return-value]
