"""Many steps at once, for simulated engines: where the next steps can do nothing but decode, their times are all there is to know.

The scheduler says how many such steps there are, the executor when each ends; no step input is made, and nobody is asked again
until a request comes, ends, or needs a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol, cast, runtime_checkable

from .executor import Handle
from .kv_cache.manager import NEVER

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
        if not (count := _num_plain_decodes(engine)) or not all(request.sample.is_silent for request in scheduler.running):
            return None
        in_flight = [handle for _, handle in engine.in_flight]
        seats = [request.seat for request in scheduler.running]
        executor = cast(RunsAhead, engine.executor)
        steps = executor.steps_ahead(in_flight, seats, count, enough, until_s)
        return None if steps is None else cls(engine, steps)

    def take(self, count: int) -> None:
        """Leaves the engine as ``count`` calls of ``step`` would have; what is left of this object is of no use then."""
        engine, scheduler = self._engine, self._engine.scheduler
        tokens, handles = self._steps.take(count)
        done_s = self.done_s[:count]
        for request, new in zip(scheduler.running, tokens):
            request.token_ids += new
            request.num_tokens += count
            request.num_computed += count
            request.sample.times += done_s
        steps = [scheduled for scheduled, _ in engine.in_flight]
        for step in steps:
            step.step_input.step_id += count
        scheduler.counters.num_steps += count
        scheduler.counters.num_output_tokens += count * len(tokens)
        engine.in_flight.clear()
        engine.in_flight.extend(zip(steps, handles))
        engine.clock.advance_to(done_s[-1])


def _num_plain_decodes(engine: Engine) -> int:
    """How many of the next steps can do nothing but decode one token of every running request, if none is added: nobody waits, and
    until then nobody can end, needs a block or fills one. 0 if they are less than FEWEST_STEPS."""
    scheduler, running = engine.scheduler, engine.scheduler.running
    settled = len(scheduler.requests) == scheduler.num_running == len(running)
    if (
        not settled
        or scheduler.released
        or scheduler.speculation is not None
        or scheduler.denoising is not None
        or not 0 < len(running) <= scheduler.config.max_num_batched_tokens
    ):
        return 0
    if any(step.chunks or step.decodes != running for step, _ in engine.in_flight):
        return 0
    count = NEVER
    for request in running:
        if request.num_tokens - request.num_computed != 1 or len(request.stop_ids) > 1:
            return 0
        known = len(request.token_ids)
        count = min(
            count,
            request.max_total - max(request.num_tokens, known + 1),
            request.capacity - request.num_computed,
            request.next_event - known,
        )
        if count < FEWEST_STEPS:
            return 0
    return count
