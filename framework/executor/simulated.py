"""A device that only takes time: steps cost what a roofline model says, under a virtual clock."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..clock import Clock, VirtualClock
from ..config import EngineConfig
from ..engine.kv_cache.spec import ELEMENT_BYTES
from ..engine.step import StepInput, StepOutput
from ..models.architecture import ModelInfo
from ..op_times import OpTimes
from .cost_model import CostModel
from .pseudo import PseudoTokens
from .shape import ModelShape


class SimulatedStep:
    """A step that is done at ``end_s``; waiting for it moves the clock there."""

    __slots__ = ("_clock", "_end_s", "_output")

    def __init__(self, output: StepOutput, end_s: float, clock: VirtualClock) -> None:
        self._output, self._end_s, self._clock = output, end_s, clock

    def result(self) -> StepOutput:
        self._clock.advance_to(self._end_s)
        return self._output


class SimulatedExecutor:
    """The configured model on ``executor.device``. Submitting takes the host ``step_overhead_s``; the device works off steps
    one after the other, so that with several steps in flight the host's time hides behind the device's. Tokens are pseudo-random.
    """

    in_flight_steps, num_drafts = 2, 0
    weight_bytes = nominal_weight_bytes = 0
    call_times: OpTimes | None = None

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
        self._device_name, self._overhead_s, self._clock = device.name, config.executor.step_overhead_s, clock
        self._tokens = PseudoTokens(config.scheduler.max_num_seqs, self.vocab_size)
        self._lengths = np.zeros(config.scheduler.max_num_seqs, dtype=np.int64)
        self._idle_from_s = clock.now()

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
        self._clock.advance_to(self._clock.now() + self._overhead_s)
        self._idle_from_s = max(self._idle_from_s, self._clock.now()) + time_s
        return SimulatedStep(self._tokens.apply(step), self._idle_from_s, self._clock)

    def plan_report(self) -> dict[str, dict[str, Any]]:
        """Nothing ran; the device that was assumed."""
        return {
            "simulated": {"impl": self._device_name, "chosen": "executor.device", "origin": "cost model", "version": "", "calls": 0}
        }

    def shutdown(self) -> None:
        """There is nothing to free."""
