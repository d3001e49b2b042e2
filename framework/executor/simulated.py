"""A device that only takes time: steps cost what a roofline model says, under a virtual clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..clock import Clock, VirtualClock
from ..config import EngineConfig
from ..engine.kv_cache.spec import ELEMENT_BYTES
from ..engine.step import StepInput, StepOutput
from ..models.architecture import ModelInfo
from .cost_model import CostModel
from .pseudo import PseudoTokens
from .shape import ModelShape


class SimulatedStep:
    """A step that is done at ``end_s``; waiting for it moves the clock there."""

    __slots__ = ("_clock", "end_s", "output")

    def __init__(self, output: StepOutput, end_s: float, clock: VirtualClock) -> None:
        self.output, self.end_s, self._clock = output, end_s, clock

    def result(self) -> StepOutput:
        self._clock.advance_to(self.end_s)
        return self.output


class SimulatedSteps:
    """The next steps of a simulated executor, each of which decodes one token of every row: their ends, in the order of submission,
    those in flight included, and when the engine has taken in each, given that it submits one before it takes one."""

    def __init__(
        self,
        executor: SimulatedExecutor,
        in_flight: Sequence[SimulatedStep],
        seats: np.ndarray,
        count: int,
        enough: int,
        until_s: float,
    ) -> None:
        self._executor, self._in_flight, self._seats = executor, in_flight, seats
        self._ends_s = [step.end_s for step in in_flight]
        self.done_s: list[float] = []
        now_s, idle_from_s = executor.clock.now(), executor.idle_from_s
        for i, time_s in enumerate(executor.decode_times_s(seats, count)):
            now_s += executor.overhead_s
            idle_from_s = max(idle_from_s, now_s) + time_s
            self._ends_s.append(idle_from_s)
            now_s = max(now_s, self._ends_s[i])
            self.done_s.append(now_s)
            if i + 1 >= enough and now_s >= until_s:
                break

    def take(self, count: int) -> tuple[list[list[int]], list[SimulatedStep]]:
        tokens = self._executor.skip(self._seats, len(self._in_flight), count, self._ends_s[len(self._in_flight) + count - 1])
        steps = [
            SimulatedStep(StepOutput(step.output.step_id + count, tokens[:, i].tolist()), self._ends_s[i], self._executor.clock)
            for i, step in enumerate(self._in_flight, count)
        ]
        return tokens[:, :count].tolist(), steps


class SimulatedExecutor:
    """The configured model on ``executor.device``. Submitting takes the host ``step_overhead_s``; the device works off steps
    one after the other, so that with several steps in flight the host's time hides behind the device's. Tokens are pseudo-random.
    """

    in_flight_steps, num_drafts = 2, 0
    weight_bytes = nominal_weight_bytes = 0

    @classmethod
    def open(cls, config: EngineConfig, model: ModelInfo, clock: Clock) -> SimulatedExecutor:
        assert isinstance(clock, VirtualClock), "the table of executors says so"
        return cls(config, model, clock)

    @staticmethod
    def runs_on(config: EngineConfig) -> tuple[str, str]:
        from ..plan import device_model

        return f"simulated {config.executor.device}", device_model(config.executor.device).arch

    def __init__(self, config: EngineConfig, model: ModelInfo, clock: VirtualClock) -> None:
        from ..plan import device_model, may_fuse, op_costs

        shape = ModelShape.of(model, config)
        self.groups, self.vocab_size, self.max_model_len = shape.groups, shape.vocab_size, shape.max_model_len
        self.num_blocks = shape.num_blocks(config)
        assert model.architecture is not None, "ModelShape refuses such models"
        device = device_model(config.executor.device)
        self.cost_model = CostModel(
            model.architecture,
            model.dtype,
            op_costs(),
            device,
            config.executor,
            ELEMENT_BYTES.get(config.cache.dtype),
            fused=may_fuse(config, "qk_norm_rotary_kv_write"),
        )
        self._device_name, self.overhead_s, self.clock = device.name, config.executor.step_overhead_s, clock
        self._tokens = PseudoTokens(config.scheduler.max_num_seqs, self.vocab_size)
        self._lengths = np.zeros(config.scheduler.max_num_seqs, dtype=np.int64)
        self.idle_from_s = clock.now()

    def submit(self, step: StepInput) -> SimulatedStep:
        for request in step.new:
            self._lengths[request.seat] = request.num_computed_tokens
        seats, counts = np.array(step.seats), np.array(step.num_tokens)
        self._lengths[seats] += counts
        lengths = self._lengths[seats]
        one = counts == 1
        time_s = self.cost_model.step_time_s(
            lengths[one].tolist(), counts[~one].tolist(), lengths[~one].tolist(), sum(step.samples)
        )
        self.clock.advance_to(self.clock.now() + self.overhead_s)
        self.idle_from_s = max(self.idle_from_s, self.clock.now()) + time_s
        return SimulatedStep(self._tokens.apply(step), self.idle_from_s, self.clock)

    def steps_ahead(
        self, in_flight: Sequence[SimulatedStep], seats: Sequence[int], count: int, enough: int, until_s: float
    ) -> SimulatedSteps:
        return SimulatedSteps(self, in_flight, np.array(seats), count, enough, until_s)

    def decode_times_s(self, seats: np.ndarray, count: int) -> Iterator[float]:
        """Of the next ``count`` steps, if each decodes one token of these rows."""
        lengths = self._lengths[seats]
        return (self.cost_model.step_time_s((lengths + i).tolist(), [], [], len(seats)) for i in range(1, count + 1))

    def skip(self, seats: np.ndarray, num_in_flight: int, count: int, idle_from_s: float) -> np.ndarray:
        """int64 [R, num_in_flight + count]: tokens of the steps in flight and of ``count`` more, which decode a token of every row
        and which the device has worked off at ``idle_from_s``."""
        self._lengths[seats] += count
        self.idle_from_s = idle_from_s
        return self._tokens.ahead(seats, num_in_flight, count)

    def plan_report(self) -> dict[str, dict[str, Any]]:
        """Nothing ran; the device that was assumed."""
        return {
            "simulated": {"impl": self._device_name, "chosen": "executor.device", "origin": "cost model", "version": "", "calls": 0}
        }

    def shutdown(self) -> None:
        """There is nothing to free."""
