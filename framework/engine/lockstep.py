"""Several schedulers, each with its own requests and blocks, whose steps are taken together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from ..clock import Clock
from ..config import EngineConfig
from ..lora_request import LoRARequest
from ..outputs import RequestOutput
from ..pooling_params import PoolingParams
from ..sampling_params import RequestOutputKind, SamplingParams
from .adapter_methods import AdapterMethods
from .engine import Engine, Step
from .errors import EngineDeadError
from .inputs import InputProcessor
from .metrics import Buckets, EngineInfo, EngineMetrics, EngineStats, total_stats
from .prompts import EngineInput, Prompt
from .router import Router


class LockstepEngine(AdapterMethods):
    """What ``Engine`` is to its callers. A request is served by one of the engines inside, which the router chooses; a step is
    one of all of them.

    engines  one for each scheduler, over executors that keep a step until ``flush`` sends one of each
    """

    def __init__(self, engines: Sequence[Engine], flush: Callable[[], None], router: Router) -> None:
        self.engines, self._flush, self._router = engines, flush, router
        first = engines[0]
        self.config: EngineConfig = first.config
        self.inputs: InputProcessor = first.inputs
        self.clock: Clock = first.clock
        self.executor, self.pooling, self.in_flight_steps = first.executor, first.pooling, first.in_flight_steps
        self._watched_step: Step | None = None
        self._num_added = 0
        self._adapters = None

    def add_request(
        self,
        request_id: str,
        prompt: EngineInput | Prompt,
        params: SamplingParams | PoolingParams | None = None,
        *,
        arrival_s: float | None = None,
        priority: int = 0,
        output_kind: RequestOutputKind | None = None,
        lora_request: LoRARequest | None = None,
    ) -> None:
        """As ``Engine.add_request``; there are no adapters."""
        self._check_alive()
        if any(request_id in engine.processor.groups for engine in self.engines):
            raise ValueError(f"a request with the id {request_id!r} is running; ids must be unique")
        given = prompt if isinstance(prompt, EngineInput) else self.inputs.prompt(prompt)
        engine = self.engines[self._router.route(given, self.engines)]
        engine.num_added = self._num_added  # a seed is of the request's number among all
        engine.add_request(
            request_id, given, params, arrival_s=arrival_s, priority=priority, output_kind=output_kind, lora_request=lora_request
        )
        self._num_added = engine.num_added

    def step(self) -> list[RequestOutput]:
        """As ``Engine.step``, of all engines."""
        return (self._watched_step or self._step)()

    def watch(self, around: Callable[[Step], Step]) -> None:
        """As ``Engine.watch``."""
        self._watched_step = around(self._watched_step or self._step)

    def _step(self) -> list[RequestOutput]:
        self._check_alive()
        for engine in self.engines:
            engine.begin_step()
        self._flush()
        outputs, interrupted = list[RequestOutput](), None
        for engine in self.engines:
            try:
                outputs += engine.end_step()
            except BaseException as error:  # what the others have is not lost
                interrupted = error
        if interrupted is not None:
            raise interrupted
        if (lost := self.errored) is not None:
            outputs += [output for engine in self.engines if engine.errored is None for output in engine.end_all(lost)]
        return outputs

    def abort(self, request_ids: Iterable[str]) -> list[RequestOutput]:
        """As ``Engine.abort``."""
        ids = list(request_ids)
        return [output for engine in self.engines for output in engine.abort(ids)]

    def has_unfinished(self) -> bool:
        """Whether ``step`` has anything left to do."""
        return any(engine.has_unfinished() for engine in self.engines)

    @property
    def is_waiting(self) -> bool:
        """As ``Engine.is_waiting``: of all that have something left to do."""
        unfinished = [engine for engine in self.engines if engine.has_unfinished()]
        return bool(unfinished) and all(engine.is_waiting for engine in unfinished)

    @property
    def errored(self) -> Exception | None:
        """As ``Engine.errored``."""
        return next((engine.errored for engine in self.engines if engine.errored is not None), None)

    @property
    def num_running(self) -> int:
        """Requests that hold a seat."""
        return sum(engine.num_running for engine in self.engines)

    @property
    def num_waiting(self) -> int:
        """Requests that hold none."""
        return sum(engine.num_waiting for engine in self.engines)

    @property
    def num_queued_tokens(self) -> int:
        """As ``Engine.num_queued_tokens``."""
        return sum(engine.num_queued_tokens for engine in self.engines)

    @property
    def kv_usage(self) -> float:
        """Fraction of the blocks that requests hold."""
        return sum(engine.kv_usage for engine in self.engines) / len(self.engines)

    def info(self) -> EngineInfo:
        """As ``Engine.info``; each scheduler has so many blocks."""
        return self.engines[0].info()

    def stats(self) -> EngineStats:
        """Sums, and the mean of ``kv_usage``."""
        return total_stats([engine.stats() for engine in self.engines])

    def metrics(self) -> EngineMetrics:
        """As ``Engine.metrics``, of all requests."""
        first, *others = (engine.metrics() for engine in self.engines)
        for other in others:
            first = replace(
                first,
                finished={reason: count + other.finished[reason] for reason, count in first.finished.items()},
                corrupted=first.corrupted + other.corrupted,
                histograms={name: _together(found, other.histograms[name]) for name, found in first.histograms.items()},
                structured={name: count + other.structured[name] for name, count in first.structured.items()},
            )
        return replace(first, stats=self.stats())

    def reset_prefix_cache(self) -> bool:
        """As ``Engine.reset_prefix_cache``."""
        if self.kv_usage:
            return False
        found = [engine.reset_prefix_cache() for engine in self.engines]
        return all(found)

    def expert_loads(self) -> dict[int, list[int]]:
        """As ``Engine.expert_loads``."""
        return self.engines[0].expert_loads()

    def rebalance_experts(self) -> tuple[float, float]:
        """As ``Engine.rebalance_experts``."""
        return self.engines[0].rebalance_experts()

    def plan_report(self) -> dict[str, dict[str, Any]]:
        """op -> what ran for it."""
        return self.engines[0].plan_report()

    def shutdown(self) -> None:
        """As ``Engine.shutdown``."""
        self.engines[0].shutdown()

    def _check_alive(self) -> None:
        if (lost := self.errored) is not None:
            raise EngineDeadError(f"the engine's device is lost ({lost}): build a new engine") from lost


def _together(one: Buckets, other: Buckets) -> Buckets:
    found = Buckets(one.bounds)
    found.counts, found.total = one.counts + other.counts, one.total + other.total
    return found
