"""Many steps at once, for simulated engines: where the next steps can do nothing but decode, their times are all there is to know.

The scheduler says how many such steps there are, the executor when each ends; no step input is made, and nobody is asked again
until a request comes, ends, or needs a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol, cast, runtime_checkable

from .executor import Handle

if TYPE_CHECKING:
    from .engine import Engine

FEWEST_STEPS: Final = 4
"""Fewer are taken one by one as quickly."""


class StepsAhead(Protocol):
    """Steps that an executor has not run yet, and whose ends it knows."""

    done_s: list[float]
    """The clock when each of them has been taken in."""

    def take(self, count: int) -> tuple[list[list[int]], list[Handle]]:
        """Leaves the executor as the first ``count`` steps would have. Returns the tokens that they brought, per row, and the steps
        that are in flight after them."""


@runtime_checkable
class RunsAhead(Protocol):
    """An executor that knows how long steps take before it runs them."""

    def steps_ahead(
        self, in_flight: Sequence[Handle], seats: Sequence[int], count: int, enough: int, until_s: float
    ) -> StepsAhead | None:
        """The next ``count`` steps, if each decodes one token of the rows in ``seats``, as those in flight do; or only the first
        ``enough`` of them, or as many as it takes to ``until_s``, if that is more. None if it cannot tell."""


class RunAhead:
    """The next steps of an engine, as far as they are sure to do no more than decode one token of every running request, and to
    bring no output. Nothing of them has happened yet.

    done_s  the engine's clock after each of these calls of ``Engine.step``
    """

    def __init__(self, engine: Engine, steps: StepsAhead) -> None:
        self._engine, self._steps, self.done_s = engine, steps, steps.done_s

    @classmethod
    def of(cls, engine: Engine, enough: int, until_s: float) -> RunAhead | None:
        """At least ``enough`` steps, and those up to ``until_s`` on the engine's clock, if there are so many; None if they are too
        few to be worth it, or not to be known. The engine's executor is one of RunsAhead."""
        scheduler = engine.scheduler
        if not (count := scheduler.num_plain_decodes(FEWEST_STEPS)):
            return None
        if not all(request.sample.is_silent for request in scheduler.running):
            return None
        in_flight = [handle for _, handle in engine.in_flight]
        seats = [request.seat for request in scheduler.running]
        executor = cast(RunsAhead, engine.executor)
        steps = executor.steps_ahead(in_flight, seats, count, enough, until_s)
        return None if steps is None else cls(engine, steps)

    def take(self, count: int) -> None:
        """Leaves the engine as ``count`` calls of ``step`` would have; what is left of this object is of no use then."""
        engine = self._engine
        tokens, handles = self._steps.take(count)
        done_s = self.done_s[:count]
        for request in engine.scheduler.running:
            request.sample.times += done_s
        engine.scheduler.skip(count, tokens)
        steps = [scheduled for scheduled, _ in engine.in_flight]
        engine.in_flight.clear()
        engine.in_flight.extend(zip(steps, handles))
        engine.clock.advance_to(done_s[-1])
