"""Steps of a simulated executor before they are run: their times, and the leap over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..engine.step import StepOutput

if TYPE_CHECKING:
    from .simulated import SimulatedExecutor, SimulatedStep


class SimulatedSteps:
    """The next steps of an executor with one stage, given that an engine submits each before it takes in the oldest in flight, and
    that each decodes one token of the rows in ``seats`` (int64 [R]).

    done_s  when each has been taken in
    """

    def __init__(self, executor: SimulatedExecutor, in_flight: Sequence[SimulatedStep], seats: np.ndarray) -> None:
        self._executor, self._in_flight, self._seats = executor, in_flight, seats
        self._ends_s = [step.end_s for step in in_flight]
        self._cost = executor.decodes_ahead(seats)
        self.done_s: list[float] = []

    def look(self, count: int, enough: int, until_s: float) -> None:
        """Finds ``done_s`` of so many steps, as ``RunsAhead.steps_ahead`` says."""
        executor, cost, ends_s, now_s = self._executor, self._cost, self._ends_s, self._executor.clock.now()
        idle_from_s = list(executor.idle_from_s)
        for i in range(count):
            now_s, end_s = executor.advance(((cost.next_s(), cost.launches),), 0.0, now_s, idle_from_s, executor.noise_ahead(i))
            ends_s.append(end_s)
            if now_s < ends_s[i]:
                now_s = ends_s[i]
            self.done_s.append(now_s)
            if i + 1 >= enough and now_s >= until_s:
                break

    def take(self, count: int) -> tuple[list[list[int]], list[SimulatedStep]]:
        """As StepsAhead has it."""
        num_in_flight, ends_s = len(self._in_flight), self._ends_s
        self._cost.take(count)
        tokens = self._executor.skip(self._seats, num_in_flight, count, ends_s[num_in_flight + count - 1])
        steps = [
            step.later(StepOutput(step.output.step_id + count, tokens[:, i].tolist()), ends_s[i])
            for i, step in enumerate(self._in_flight, count)
        ]
        return tokens[:, :count].tolist(), steps
