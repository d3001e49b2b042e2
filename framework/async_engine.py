"""The engine for servers: its loop runs in a process of its own, so that tokenizing and streaming never hold up a step."""

from __future__ import annotations

import asyncio
import itertools
import time
import weakref
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .config import EngineConfig, ModelConfig
from .engine.errors import EngineDeadError
from .engine.inputs import check_priority, request_seed
from .engine.metrics import total_stats
from .engine.pooling import PoolingInputs, generates
from .engine.prompts import EngineInput, Prompt
from .engine_client import EngineClient, connect
from .engine_process import Add, Call, Method, Report
from .lora_request import LoRARequest, check_lora_request
from .metrics import Metric, engine_metrics
from .pooling_outputs import PoolingOutput, PoolingRequestOutput, pooling_output
from .pooling_params import PoolingParams
from .replicas import Replicas, of_the_living
from .sampling_params import SamplingParams
from .streams import Reply, Stream

if TYPE_CHECKING:
    from .outputs import RequestOutput


class AsyncEngine:
    """Requests in, streams out. Build it anywhere; use it from any event loop, and from several; no method blocks one, but for
    ``shutdown``.

    config: or the name of a model. The engine process is started with ``spawn``, so a script that builds one needs the guard
    ``if __name__ == "__main__"``. ``info`` is what the engine was built as, and ``pooling``
    what its model takes if that pools (else None). Once that process is gone, or after
    ``shutdown``, methods raise EngineDeadError, which says why.

    Several engines (``parallel.num_engines``) serve each in a process of its own, behind ``router``: see Replicas. A request's
    tokens do not depend on which of them it gets.
    """

    def __init__(self, config: EngineConfig | str | None = None, *, start_timeout_s: float | None = None) -> None:
        """start_timeout_s: None = a minute more than ``parallel.start_timeout_s``, whose errors say more."""
        from .build import input_processor, pooling_rules
        from .models.read import read_model
        from .plan import fold_choices

        given = EngineConfig(ModelConfig(config)) if isinstance(config, str) else config or EngineConfig()
        given.validate()
        self.config = fold_choices(given)
        model = read_model(self.config.model)
        self.inputs = input_processor(self.config.model, model, self.config)
        several = self.config.parallel.num_engines > 1
        if start_timeout_s is None:
            start_timeout_s = self.config.parallel.start_timeout_s + 60.0
        self._client: EngineClient | Replicas = (Replicas if several else connect)(self.config, start_timeout_s)
        self.info = self._client.info
        rules = pooling_rules(self.config, model, self.inputs.tokenizer)
        self.pooling = None if rules is None else PoolingInputs(self.inputs, rules, self.info.max_model_len)
        weakref.finalize(self, self._client.stop)  # an engine that is dropped gives its device back
        # By the user's ids. Weak: what a closed event loop leaves behind is not running.
        self._streams: weakref.WeakValueDictionary[str, Stream] = weakref.WeakValueDictionary()
        self._num_requests = 0
        self._num_asked = itertools.count()

    @property
    def errored(self) -> bool:
        """Whether no request can be served any more."""
        return self._client.dead_error is not None

    @property
    def is_running(self) -> bool:
        return not self.errored

    @property
    def dead_error(self) -> EngineDeadError | None:
        """Why no request can be served any more; None while all is well."""
        return self._client.dead_error

    async def check_health(self) -> None:
        """Raises EngineDeadError if the engine is dead."""
        if (error := self.dead_error) is not None:
            raise error

    async def get_tokenizer(self) -> Any:
        """The Hugging Face tokenizer of the model; None if it has none."""
        return self.inputs.tokenizer

    def generate(
        self,
        prompt: EngineInput | Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        lora_request: LoRARequest | None = None,
        priority: int = 0,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Streams the outputs of one request; leaving the loop early aborts it. An id may be used again once its stream has ended.

        Each item is what the parameters' ``output_kind`` asks for: cumulative text, deltas, or only the end. A consumer that falls
        behind finds all cumulative outputs that it missed in one.

        Raises ValueError for what can never be served, RuntimeError if the engine failed at this request, EngineDeadError."""
        return self._outputs(prompt, sampling_params, request_id, priority, lora_request)

    async def encode(
        self,
        prompt: EngineInput | Prompt,
        pooling_params: PoolingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
    ) -> AsyncGenerator[PoolingRequestOutput[PoolingOutput], None]:
        """The one output of a prompt to a model that pools; otherwise as ``generate``."""
        async with aclosing(self._outputs(prompt, pooling_params or PoolingParams(), request_id, priority)) as outputs:
            async for output in outputs:
                yield pooling_output(output)

    async def _outputs(
        self,
        prompt: EngineInput | Prompt,
        given: SamplingParams | PoolingParams | None,
        request_id: str | None,
        priority: int,
        lora_request: LoRARequest | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        check_lora_request(lora_request, self.config.lora.enabled)
        priority = check_priority(priority)
        params = self._checked(given)
        if request_id is None:
            request_id = self._unused_id()
        inputs, pooling, seed = self.inputs, self.pooling, request_seed(self.config.seed, next(self._num_asked))
        # What ``add`` holds may outlive this engine: never the engine itself.
        stream, asked_s = Stream(request_id, params), time.time()
        if self._streams.setdefault(request_id, stream) is not stream:
            raise ValueError(f"a request with the id {request_id!r} is running; ids must be unique")

        def add() -> Add:
            if isinstance(params, PoolingParams):
                assert pooling is not None
                stream.prompt = pooling.prompt(prompt)
                return Add(stream.prompt, params, priority, asked_s)
            stream.prompt = prompt if isinstance(prompt, EngineInput) else inputs.prompt(prompt)
            complete = inputs.params(params)  # bad words are tokenized too, maybe thousands
            complete.seed = seed if complete.seed is None else complete.seed
            return Add(stream.prompt, complete, priority, asked_s, lora_request)

        try:
            stream.key = self._client.open(stream, add)
            while not stream.finished:
                yield await stream.get()
        finally:
            self._streams.pop(request_id, None)
            self._client.close(stream.key, abort=not stream.finished)

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """Ends requests; their streams get a last output with finish reason "abort". Ids that are not running are passed over."""
        for name in [request_id] if isinstance(request_id, str) else request_id:
            if (stream := self._streams.get(name)) is not None:
                self._client.abort(stream.key)

    async def report(self) -> dict[str, Any]:
        """The kernel plan as it ran, and the engine's statistics: {"plan": ..., "stats": ...}; of several engines the plan of the
        first and the statistics of all together."""
        reports: list[Report] = list((await self._call("report")).values())
        return {"plan": reports[0].plan, "stats": asdict(total_stats([report.stats for report in reports]))}

    async def metrics(self, model_name: str | None = None) -> list[Metric]:
        """The engine's counters, gauges and histograms, under vLLM's names; of several engines each has its own, told apart by the
        label ``engine``. model_name: to tell them by, if not the model's own."""
        return engine_metrics(await self._call("metrics"), model_name or self.config.model.name)

    async def reset_prefix_cache(self) -> bool:
        """Forgets all cached prefixes; False, and nothing happens, while requests hold blocks."""
        if any(client.in_flight.num_running for client in self._client.living.values()):
            return False  # of one of several engines, which the others would not know of
        return all((await self._call("reset_prefix_cache")).values())

    async def add_lora(self, lora_request: LoRARequest) -> bool:
        """Reads an adapter, in every engine, before a request asks for it. Raises ValueError for one that cannot be served."""
        check_lora_request(lora_request, self.config.lora.enabled)
        return all((await self._call("add_lora", lora_request)).values())

    async def remove_lora(self, lora_id: int) -> bool:
        """Forgets an adapter; False if it is not known. Raises ValueError while requests use it."""
        return any((await self._call("remove_lora", lora_id)).values())

    async def pin_lora(self, lora_id: int) -> bool:
        """Keeps an adapter that is loaded where it is, whatever others need. Raises ValueError if it cannot be."""
        return all((await self._call("pin_lora", lora_id)).values())

    async def list_loras(self) -> set[int]:
        """Ids of the adapters that an engine holds."""
        return set().union(*(await self._call("list_loras")).values())

    def shutdown(self) -> None:
        """Ends the engine's process (or those of all engines) and waits for it; running requests get EngineDeadError."""
        self._client.shutdown()

    def _checked(self, params: SamplingParams | PoolingParams | None) -> SamplingParams | PoolingParams:
        """A private copy. Raises ValueError for parameters of the other kind of model."""
        if self.pooling is not None:
            return self.pooling.rules.complete(params)
        if isinstance(params, PoolingParams):
            raise ValueError(generates(self.config.model.name))
        return self.inputs.checked(params)

    async def _call(self, method: Method, *arguments: Any) -> dict[int, Any]:
        """The answers, by the number of the engine. Raises EngineDeadError if none answers."""
        living = self._client.living
        answers = await asyncio.gather(
            *(self._ask(client, Call(method, arguments)) for client in living.values()), return_exceptions=True
        )
        return of_the_living(dict(zip(living, answers)), self.dead_error)

    async def _ask(self, client: EngineClient, call: Call) -> Any:
        reply = Reply()
        key = client.open(reply, lambda: call)
        try:
            return await reply.future
        finally:
            client.close(key)

    def _unused_id(self) -> str:
        while (name := f"request-{self._num_requests}") in self._streams:
            self._num_requests += 1
        self._num_requests += 1
        return name
