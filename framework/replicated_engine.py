"""Several engines as one: what ``LLM`` drives in place of an Engine."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .build import input_processor, pooling_rules
from .clock import WallClock
from .config import EngineConfig
from .engine.errors import EngineDeadError
from .engine.inputs import check_tokens, request_seed
from .engine.kv_cache.manager import KVCacheManager
from .engine.limits import Limits
from .engine.metrics import EngineInfo, EngineMetrics, EngineStats, total_stats
from .engine.pooling import generates
from .engine.prompts import EngineInput, Prompt
from .engine_process import Add, Call, Method, Report
from .lora_request import LoRARequest, check_lora_request
from .models.read import read_model
from .outputs import RequestOutput
from .pooling_params import PoolingParams
from .replicas import Replicas, of_the_living
from .sampling_params import RequestOutputKind, SamplingParams
from .settling import settle_pooling

STEP_S = 0.005
"""How long a step waits for an output: a driver may have something to add meanwhile."""


class Inbox:
    """Where callbacks wait until their thread asks: what an event loop is to an AsyncEngine."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[Any], None], Any]] = queue.SimpleQueue()

    def call_soon_threadsafe(self, callback: Callable[[Any], None], argument: Any) -> None:
        self._calls.put((callback, argument))

    def run(self, timeout_s: float | None) -> None:
        """Makes all calls that wait; if none does, waits for one."""
        try:
            callback, argument = self._calls.get(timeout=timeout_s)
            while True:
                callback(argument)
                callback, argument = self._calls.get_nowait()
        except queue.Empty:
            return


@dataclass(eq=False)
class _Waiting:
    """For what comes under one key."""

    loop: Inbox
    items: deque[Any]
    request_id: str = ""
    prompt: EngineInput | None = None
    key: str = ""

    def put(self, item: Any) -> None:
        if isinstance(item, RequestOutput):
            assert self.prompt is not None
            item.request_id, item.prompt, item.prompt_token_ids = self.request_id, self.prompt.text, self.prompt.token_ids
        self.items.append(item if self.prompt is None else (self, item))


class ReplicatedEngine:
    """As many engines as ``parallel.dp`` says, each in a process of its own, see Replicas. Has those methods of Engine that say
    nothing of a single one's insides, with these differences: steps are theirs, and ``step`` hands out what they brought; what is
    aborted brings no last output. One thread drives it, as an Engine.

    What a request brings does not depend on the replica that serves it, nor on how many there are.

    places  request id -> number of the replica, of what the last step handed out
    """

    is_waiting = False

    def __init__(self, config: EngineConfig, kernels: Mapping[str, str] | None = None) -> None:
        """kernels: as of ``build_engine``."""
        from .plan import fold_choices

        config.validate()
        self.config = config = fold_choices(config, kernels)
        model = read_model(config.model)
        if model.pooling is not None:
            config = settle_pooling(config, model.pooling)
        self.inputs, self.clock = input_processor(config.model, model, config), WallClock()
        self.pooling = pooling_rules(config, model, self.inputs.tokenizer)
        self.replicas = Replicas(self.config, start_timeout_s=None)
        info, pools = self.replicas.info, self.pooling is not None
        scheduling = replace(config.scheduler, in_flight_steps=info.in_flight_steps)
        manager = KVCacheManager(info.groups, info.num_blocks, info.block_size)
        self._limits = Limits(scheduling, manager, info.max_model_len + pools)
        self._inbox = Inbox()
        self._arrived: deque[tuple[_Waiting, RequestOutput | Exception]] = deque()
        self._running: dict[str, _Waiting] = {}
        self.places: dict[str, int] = {}
        self._num_added = 0

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
        """As of an Engine. Raises EngineDeadError once no replica is left."""
        if request_id in self._running:
            raise ValueError(f"a request with the id {request_id!r} is running; ids must be unique")
        check_lora_request(lora_request, self.config.lora.enabled)
        given = prompt if isinstance(prompt, EngineInput) else self.inputs.prompt(prompt)
        complete = self._complete(given, params, output_kind)
        late_s = 0.0 if arrival_s is None else self.clock.now() - arrival_s
        add = Add(given, complete, priority, time.time() - late_s, lora_request)
        waiting = _Waiting(self._inbox, self._arrived, request_id, given)
        waiting.key = self.replicas.open(waiting, lambda: add)
        self._num_added += 1
        self._running[request_id] = waiting

    def step(self) -> list[RequestOutput]:
        """What came of the requests, waiting for it no longer than STEP_S. Raises EngineDeadError if one of them ran on a replica
        that died; that one has ended."""
        self._inbox.run(STEP_S)
        outputs = []
        self.places.clear()
        while self._arrived:
            waiting, item = self._arrived.popleft()
            if self._running.get(waiting.request_id) is not waiting:
                continue  # it was aborted
            if (place := self.replicas.place(waiting.key)) is not None:
                self.places[waiting.request_id] = place
            if isinstance(item, Exception) or item.finished:
                del self._running[waiting.request_id]
                self.replicas.close(waiting.key)
            if isinstance(item, Exception):
                raise item
            outputs.append(item)
        return outputs

    def abort(self, request_ids: Iterable[str]) -> None:
        """Ends requests; ids that are not running are passed over."""
        for request_id in request_ids:
            if (waiting := self._running.pop(request_id, None)) is not None:
                self.replicas.close(waiting.key, abort=True)

    def has_unfinished(self) -> bool:
        """Whether ``step`` has anything left to bring."""
        return bool(self._running)

    def info(self) -> EngineInfo:
        """Of one replica."""
        return self.replicas.info

    def stats(self) -> EngineStats:
        """Of all replicas together."""
        return total_stats([report.stats for report in self._reports()])

    def metrics(self) -> dict[int, EngineMetrics]:
        """By the number of the replica, of those that live."""
        return self._ask("metrics")

    def plan_report(self) -> dict[str, dict[str, Any]]:
        """op -> what ran for it, on the first replica."""
        return self._reports()[0].plan

    def reset_prefix_cache(self) -> bool:
        """As of an Engine, on all replicas."""
        return not self._running and all(self._ask("reset_prefix_cache").values())

    def add_lora(self, request: LoRARequest) -> bool:
        """As of an Engine, on all replicas."""
        check_lora_request(request, self.config.lora.enabled)
        return all(self._ask("add_lora", request).values())

    def remove_lora(self, lora_id: int) -> bool:
        """As of an Engine, on all replicas."""
        return any(self._ask("remove_lora", lora_id).values())

    def pin_lora(self, lora_id: int) -> bool:
        """As of an Engine, on all replicas."""
        return all(self._ask("pin_lora", lora_id).values())

    def list_loras(self) -> set[int]:
        """Ids of the adapters that a replica holds."""
        return set().union(*self._ask("list_loras").values())

    def shutdown(self) -> None:
        """Ends the processes; the engine is of no use afterwards."""
        self.replicas.shutdown()

    def _reports(self) -> list[Report]:
        return list(self._ask("report").values())

    def _complete(
        self, prompt: EngineInput, params: SamplingParams | PoolingParams | None, output_kind: RequestOutputKind | None
    ) -> SamplingParams | PoolingParams:
        """A request's own parameters. Raises ValueError for what an engine would refuse."""
        info, num_tokens = self.replicas.info, len(prompt.token_ids)
        if self.pooling is not None:
            pooling = self.pooling.complete(params)
            check_tokens(prompt.token_ids, pooling.sampling(), info.vocab_size)
            self.pooling.check_prompt(num_tokens, info.max_model_len)
            self._limits.longest_total(num_tokens, pooling.sampling().max_tokens)
            return pooling
        if isinstance(params, PoolingParams):
            raise ValueError(generates(self.config.model.name))
        complete = self.inputs.params(params, output_kind)
        check_tokens(prompt.token_ids, complete, info.vocab_size, self.inputs.placeholder)
        self._limits.longest_total(num_tokens, complete.max_tokens)
        if complete.seed is None:
            complete.seed = request_seed(self.config.seed, self._num_added)
        return complete

    def _ask(self, method: Method, *arguments: Any) -> dict[int, Any]:
        """The answers of the replicas that live, by their number."""
        answers: dict[int, deque[Any]] = {}
        asked = []
        for index, client in self.replicas.living.items():
            answers[index] = deque()
            try:
                asked.append((client, client.open(_Waiting(self._inbox, answers[index]), lambda: Call(method, arguments))))
            except EngineDeadError as error:  # just now
                answers[index].append(error)
        while not all(answers.values()):
            self._inbox.run(None)
        for client, key in asked:
            client.close(key)
        return of_the_living({index: answer for index, (answer,) in answers.items()}, self.replicas.dead_error)
