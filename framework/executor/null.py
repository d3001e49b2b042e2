"""Tokens out of thin air: measures the engine alone, and checks that it keeps the protocol."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from ..clock import Clock
from ..config import EngineConfig
from ..engine.executor import LoadedAdapter
from ..engine.step import StepInput, StepOutput
from ..lora_request import LoRARequest
from ..models.read import ModelInfo
from ..op_times import OpTimes
from .canvas_mirror import CanvasMirror
from .mirror import Mirror
from .pseudo import PassPlan, PseudoCanvases, PseudoTokens
from .shape import ModelShape


class DoneStep:
    """A step whose output is known already."""

    __slots__ = ("_output",)

    def __init__(self, output: StepOutput) -> None:
        self._output = output

    def result(self) -> StepOutput:
        return self._output


class NamedAdapter:
    """An adapter of which there is nothing to read: its folder's name stands for its weights."""

    def __init__(self, path: str) -> None:
        self._key = blake2b(path.encode(), digest_size=16).hexdigest()

    def done(self) -> bool:
        return True

    def result(self) -> LoadedAdapter:
        return LoadedAdapter(self._key, 1, 0)


class NullExecutor:
    """No model, no tensors, no time. A token is a function of the request's seed and the token's position, so that it does not
    depend on the batch; so is the pass that settles it, where a model denoises.

    With ``cache.check_invariants`` it keeps a mirror of seats, block tables and cache contents instead: every step is checked
    against the protocol, and a token is a function of all tokens before it as the cache holds them (slow).
    num_drafts  decoding requests have so many made-up guesses checked per step, some of which are right; no token depends on it
    """

    in_flight_steps = num_stages = 1
    weight_bytes = nominal_weight_bytes = 0
    call_times: OpTimes | None = None
    draft_max_model_len: int | None = None
    drafts_read_ahead = False
    has_states: bool

    def __init__(self, config: EngineConfig, shape: ModelShape, num_drafts: int = 0) -> None:
        self.groups, self.vocab_size, self.max_model_len = shape.groups, shape.vocab_size, shape.max_model_len
        self.num_blocks = shape.num_blocks(config)
        self.num_drafts, self.has_states = num_drafts, shape.state_bytes > 0
        num_seats = config.scheduler.max_num_seqs
        self._step: Mirror | PseudoTokens
        plan = None if shape.diffusion is None else PassPlan(shape.diffusion, config.diffusion, config.executor.passes_per_canvas)
        if config.cache.check_invariants:
            slots = config.lora.max_loras if config.lora.enabled else 0
            snapshots = config.cache.state_snapshots if self.has_states else None
            sizes = num_seats, self.num_blocks, config.cache.block_size, shape.vocab_size, shape.groups, slots, snapshots
            images = config.scheduler.encoder_cache, shape.sees_images
            self._step = Mirror(*sizes, *images) if plan is None else CanvasMirror(*sizes, plan=plan)
        elif plan is not None:
            self._step = PseudoCanvases(num_seats, shape.vocab_size, plan)
        else:
            self._step = PseudoTokens(num_seats, shape.vocab_size)

    @classmethod
    def open(cls, config: EngineConfig, model: ModelInfo, clock: Clock) -> NullExecutor:
        return cls(config, ModelShape.of(model, config))

    @staticmethod
    def runs_on(config: EngineConfig) -> tuple[str, str]:
        return "null", ""

    def submit(self, step: StepInput) -> DoneStep:
        return DoneStep(self._step.apply(step))

    def load_adapter(self, request: LoRARequest) -> NamedAdapter:
        return NamedAdapter(request.lora_path)

    def drop_adapter(self, key: str) -> None:
        """There is nothing to free."""

    def plan_report(self) -> dict[str, dict[str, Any]]:
        """Nothing ran."""
        return {}

    def shutdown(self) -> None:
        """There is nothing to free."""
