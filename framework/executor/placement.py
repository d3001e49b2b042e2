"""A model placed on simulated devices: its stages, what each of their devices holds, and what its steps cost."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from ..config import EngineConfig
from ..engine.kv_cache.spec import CacheGroup
from ..models.architecture import Architecture
from ..models.ranks import Stage, rank_architecture, read_weight_scheme, stage_weight_bytes
from ..models.read import ModelInfo
from .calls import Call, CallList
from .cost_model import DecodesAhead, OpTime, StageCost, StepWork
from .device_memory import Holding, activation_bytes, token_bytes
from .encoders import NO_ENCODERS, Encoders
from .shape import kv_groups, state_bytes
from .timers import Timers


class Placement:
    """Of a model under a configuration.

    groups      KV groups of one device
    vocab_size  of the whole model
    holdings    per stage
    activations  bytes that the largest step holds at once on a device beside weights and cache
    canvas_window  where canvases attend to copies of what layers with windows let them see: the window
    """

    canvas_window: int | None = None

    def __init__(
        self,
        groups: tuple[CacheGroup, ...],
        vocab_size: int,
        holdings: Sequence[Holding],
        calls: Sequence[Counter[Call]],
        activations: int,
        dtype: str,
        timers: Timers,
    ) -> None:
        """calls: per stage; dtype: of the activations."""
        self.groups, self.vocab_size, self.holdings, self.activations = groups, vocab_size, holdings, activations
        equal: dict[frozenset, StageCost] = {}  # stages of the same calls share what was timed
        self._costs = []
        for found in calls:
            key = frozenset(found.items())
            self._costs.append(equal.setdefault(key, equal.get(key) or StageCost(found, dtype, timers)))
        self._distinct = list(equal.values())

    @classmethod
    def of_native(
        cls,
        model: ModelInfo,
        architecture: Architecture,
        config: EngineConfig,
        stages: Sequence[Stage],
        timers: Timers,
        acceptance_rule: str = "match",
        encoders: Encoders = NO_ENCODERS,
    ) -> Placement:
        """Of a native model. acceptance_rule: of drafts, if there are any."""
        from ..plan import may_fuse

        rank = rank_architecture(architecture, config.parallel)
        groups = kv_groups(rank, model, config)
        scheme, ep = read_weight_scheme(model, config.quant), config.parallel.ep
        holdings = [
            Holding(
                stage_weight_bytes(rank, stage, ep, scheme, model.dtype) + stage.first * encoders.weight_bytes,
                token_bytes(groups, stage),
                state_bytes(rank, model, stage.layers),
            )
            for stage in stages
        ]
        calls = CallList(model, architecture, config, may_fuse(config, "qk_norm_rotary_kv_write"))
        found = [
            calls.stage(stage, acceptance_rule) + (calls.encoders(encoders.stacks) if stage.first else Counter())
            for stage in stages
        ]
        activations = activation_bytes(rank, config, model.dtype)
        return cls(groups, architecture.vocab_size, holdings, found, activations, model.dtype, timers)

    def step(self, work: StepWork, counted: bool = True) -> list[tuple[float, int]]:
        """Per stage: seconds on its devices, launches. counted: as of ``StageCost.step``."""
        return [cost.step(work, counted) for cost in self._costs]

    @property
    def stage_costs(self) -> Sequence[StageCost]:
        """Of each stage."""
        return self._costs

    def ahead(self, work: StepWork) -> DecodesAhead:
        """Of the only stage: see ``StageCost.ahead``."""
        (cost,) = self._costs
        return cost.ahead(work)

    def op_times(self) -> dict[str, OpTime]:
        """What every op took so far, on one device of each stage."""
        found: dict[str, OpTime] = defaultdict(OpTime)
        for cost in self._distinct:
            cost.add_op_times(found)
        return found
