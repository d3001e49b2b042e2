"""A model placed on simulated devices: its stages, what each of their devices holds, and what its steps cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ..config import EngineConfig
from ..engine.kv_cache.spec import CacheGroup
from ..models.architecture import Architecture
from ..models.ranks import Stage, rank_architecture, read_weight_scheme, stage_weight_bytes
from ..models.read import ModelInfo
from .calls import CallList
from .cost_model import DecodesAhead, OpTime, StageCost, StepWork
from .device_memory import Holding, token_bytes
from .encoders import NO_ENCODERS, Encoders
from .shape import kv_groups, state_bytes
from .timers import Timers


class Placement:
    """Of a model under a configuration.

    rank      the architecture of what one device of ``stages`` computes
    groups    KV groups of one device
    holdings  per stage
    """

    def __init__(
        self,
        model: ModelInfo,
        architecture: Architecture,
        config: EngineConfig,
        stages: Sequence[Stage],
        timers: Timers,
        acceptance_rule: str = "match",
        encoders: Encoders = NO_ENCODERS,
    ) -> None:
        """acceptance_rule: of drafts, if there are any."""
        from ..plan import may_fuse

        self.stages, self.rank = stages, rank_architecture(architecture, config.parallel)
        self.groups: tuple[CacheGroup, ...] = kv_groups(self.rank, model, config)
        scheme, ep = read_weight_scheme(model, config.quant), config.parallel.ep
        self.holdings = [
            Holding(
                stage_weight_bytes(self.rank, stage, ep, scheme, model.dtype) + stage.first * encoders.weight_bytes,
                token_bytes(self.groups, stage),
                state_bytes(self.rank, model, stage.layers),
            )
            for stage in stages
        ]
        calls = CallList(model, architecture, config, may_fuse(config, "qk_norm_rotary_kv_write"))
        equal: dict[frozenset, StageCost] = {}  # stages of the same calls share what was timed
        self._costs = []
        for stage in stages:
            found = calls.stage(stage, acceptance_rule)
            if stage.first:
                found += calls.encoders(encoders.stacks)
            key = frozenset(found.items())
            self._costs.append(equal.setdefault(key, equal.get(key) or StageCost(found, model.dtype, timers)))
        self._distinct = list(equal.values())

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
