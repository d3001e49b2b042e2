"""The engine: requests in, outputs out, one step at a time."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from ..clock import Clock
from ..config import EngineConfig
from ..outputs import RequestOutput
from ..sampling_params import RequestOutputKind, SamplingParams
from .detokenizer import TokenTexts
from .executor import Executor, Handle
from .inputs import EngineInput, InputProcessor, Prompt
from .kv_cache.manager import KVCacheManager
from .kv_cache.prefix import extra_keys
from .output_processor import OutputProcessor, RequestGroup
from .request import Request, Status
from .scheduler import Scheduler, SchedulerCounters


@dataclass
class EngineStats(SchedulerCounters):
    """The state now, and totals since the start. ``kv_usage``: fraction of the blocks that requests hold."""

    num_running: int = 0
    num_waiting: int = 0
    kv_usage: float = 0.0


class Engine:
    """Schedules requests, runs steps on an executor, and turns tokens into outputs. Single-threaded; never sleeps.

    inputs           of the model: tokenizes prompts, completes parameters, knows the end-of-sequence ids
    in_flight_steps  how many steps may be submitted and not yet committed
    errored          why the engine is dead: its device is lost; None while it serves
    """

    errored: Exception | None = None

    def __init__(self, config: EngineConfig, executor: Executor, inputs: InputProcessor, clock: Clock) -> None:
        config.validate()
        cache = config.cache
        self.config, self.executor, self.inputs, self.clock = config, executor, inputs, clock
        self.manager = KVCacheManager(
            executor.groups, executor.num_blocks, cache.block_size, cache.prefix_caching, cache.check_invariants
        )
        self.in_flight_steps = config.scheduler.in_flight_steps or executor.in_flight_steps
        scheduling = replace(config.scheduler, in_flight_steps=self.in_flight_steps)
        self.scheduler = Scheduler(scheduling, self.manager, executor.max_model_len)
        self.processor = OutputProcessor(None if inputs.tokenizer is None else TokenTexts(inputs.tokenizer))
        self._in_flight: deque[Handle] = deque()
        self._num_added = 0

    def add_request(
        self,
        request_id: str,
        prompt: EngineInput | Prompt,
        params: SamplingParams | None = None,
        *,
        arrival_s: float | None = None,
        priority: int = 0,
        output_kind: RequestOutputKind | None = None,
    ) -> None:
        """Queues a request; smaller ``priority`` goes first under the priority policy; ``output_kind`` replaces the parameters'
        own. Raises ValueError, and changes nothing, for one that could never be served."""
        if request_id in self.processor.groups:
            raise ValueError(f"a request with the id {request_id!r} is running; ids must be unique")
        given = prompt if isinstance(prompt, EngineInput) else self.inputs.prompt(prompt)
        complete = self.inputs.params(params, output_kind)
        if complete.seed is None:
            complete.seed = self._next_seed()
        self._check_tokens(given.token_ids, complete)
        max_total = self.scheduler.longest_total(len(given.token_ids), complete.max_tokens)
        arrival_s = self.clock.now() if arrival_s is None else arrival_s
        group = RequestGroup(request_id, given.text, given.token_ids, complete, arrival_s)
        leader: Request | None = None
        for i in range(complete.n):
            own = complete if i == 0 else _follower_params(complete, i)
            name = request_id if complete.n == 1 else f"{i}_{request_id}"
            request = Request(name, given.token_ids, own, max_total, arrival_s, priority, extra_keys(given.cache_salt))
            request.leader = leader
            group.add(request, self.processor.texts)
            self.scheduler.add(request)
            leader = leader or request
        self.processor.groups[request_id] = group
        self._num_added += 1

    def step(self) -> list[RequestOutput]:
        """Submits steps until enough are in flight, then takes in the oldest. Returns what it brought, finished requests
        included; empty while prompts are computed in parts, or if there is nothing to do."""
        while len(self._in_flight) < self.in_flight_steps and (scheduled := self.scheduler.schedule()):
            self.processor.scheduled(scheduled, self.clock.now())
            self._in_flight.append(self.executor.submit(scheduled.step_input))
        if not self._in_flight:
            assert not self.scheduler.requests, "requests wait, and nothing can be scheduled"
            return []
        committed = self.scheduler.commit(self._in_flight.popleft().result())
        outputs, stopped = self.processor.process(committed, self.clock.now())
        for request in stopped:
            self.scheduler.finish(request, "stop", request.stop_reason)
        return outputs

    def abort(self, request_ids: Iterable[str]) -> list[RequestOutput]:
        """Ends requests now, and returns their last outputs. Ids that are not running are passed over."""
        outputs = []
        for request_id in request_ids:
            if group := self.processor.groups.get(request_id):
                open_requests = [sample.request for sample in group.samples if sample.request.status != Status.FINISHED]
                for request in open_requests:
                    self.scheduler.finish(request, "abort")
                outputs.append(self.processor.aborted(group, open_requests, self.clock.now()))
        return outputs

    def has_unfinished(self) -> bool:
        """Whether ``step`` has anything left to do."""
        return bool(self.scheduler.requests or self._in_flight)

    def stats(self) -> EngineStats:
        scheduler = self.scheduler
        return EngineStats(
            **vars(scheduler.counters),
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            kv_usage=self.manager.pool.usage,
        )

    def reset_prefix_cache(self) -> bool:
        """Forgets all cached prefixes; False, and nothing happens, while requests hold blocks."""
        return self.manager.reset_prefix_cache()

    def plan_report(self) -> dict[str, dict[str, Any]]:
        """op -> what ran for it."""
        return self.executor.plan_report()

    def shutdown(self) -> None:
        """Frees the device; the engine is of no use afterwards."""
        self.executor.shutdown()

    def _next_seed(self) -> int:
        """Of the request that is added now."""
        digest = blake2b(f"{self.config.seed}:{self._num_added}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

    def _check_tokens(self, prompt: list[int], params: SamplingParams) -> None:
        if not prompt:
            raise ValueError("the prompt is empty: a request needs at least one token")
        vocab_size = self.executor.vocab_size
        if min(prompt) < 0 or max(prompt) >= vocab_size:
            wrong = next(token for token in prompt if not 0 <= token < vocab_size)
            raise ValueError(f"the prompt holds token id {wrong}, but the model's ids are 0 to {vocab_size - 1}")
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            wrong_ids = [token for token in getattr(params, name) or () if token >= vocab_size]
            if wrong_ids:
                raise ValueError(
                    f"SamplingParams: {name} holds token id {wrong_ids[0]}, but the model has ids 0 to {vocab_size - 1}"
                )
        for name in ("logprobs", "prompt_logprobs"):
            if (asked := getattr(params, name) or 0) > vocab_size:
                raise ValueError(f"SamplingParams: {name}={asked}, but the model has {vocab_size} tokens; -1 asks for all of them")


def _follower_params(params: SamplingParams, index: int) -> SamplingParams:
    """Of completion ``index``: its own seed; the prompt's log-probabilities come from completion 0."""
    own = copy.copy(params)
    assert params.seed is not None
    own.seed = params.seed + index
    if params.prompt_logprobs is not None:
        own.prompt_logprobs, own.skip_reading_prefix_cache = None, False
    return own
