"""A device that only takes time: steps cost what a roofline model says, under a virtual clock."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..clock import VirtualClock
from ..config import EngineConfig
from ..engine.kv_cache.spec import ELEMENT_BYTES
from ..engine.step import StepInput, StepOutput
from ..models.architecture import read_model
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

    def __init__(self, config: EngineConfig, clock: VirtualClock) -> None:
        from ..plan import device_model, fusion_wish, op_costs

        shape, info = ModelShape.read(config), read_model(config.model)
        self.groups, self.vocab_size, self.max_model_len = shape.groups, shape.vocab_size, shape.max_model_len
        self.num_blocks = shape.num_blocks(config)
        assert info.architecture is not None, "ModelShape.read refuses such models"
        device = device_model(config.executor.device)
        replaced = ("rotary", "kv_cache_write", *(["rms_norm"] if info.architecture.family.qk_norm else []))
        self.cost_model = CostModel(
            info.architecture,
            info.dtype,
            op_costs(),
            device,
            config.executor,
            ELEMENT_BYTES.get(config.cache.dtype),
            fused=fusion_wish(config.kernels, "qk_norm_rotary_kv_write", replaced) is not False,
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
        return {"simulated": {"impl": self._device_name, "origin": "cost model", "version": "", "calls": 0}}

    def shutdown(self) -> None:
        """There is nothing to free."""
