"""The offline interface, as vLLM users know it."""

from __future__ import annotations

import inspect
import itertools
import reprlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from tqdm import tqdm

from .beam_search import BeamSearch, BeamSearchOutput, next_tokens
from .build import build_engine
from .config import EngineConfig
from .engine.engine import Engine
from .engine.inputs import check_priority
from .engine.prompts import EngineInput, Prompt
from .engine_args import engine_config
from .engine_process import WAIT_S
from .llm_pooling import PoolingMethods, listed
from .lora_request import LoRARequest
from .metrics import Metric, engine_metrics
from .outputs import RequestOutput
from .pooling_params import PoolingParams
from .replicated_engine import ReplicatedEngine
from .sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams

Messages = list[dict[str, Any]]
Adapters = LoRARequest | Sequence[LoRARequest | None] | None
"""Of all prompts, or one for each."""


class LLM(PoolingMethods):
    """A model ready to generate, or to pool. The arguments are those of ``engine_config``, which explains them; ``kernels`` come
    before ``override`` and an EngineConfig's. Raises ValueError for arguments that do not exist here, saying which do.

    With ``data_parallel_size`` there are several engines, in processes that are started with ``spawn``: a script then needs the
    guard ``if __name__ == "__main__"``. When one dies, what ran on it fails with EngineDeadError, and the others serve on. With
    ``enable_expert_parallel``, too, it is one engine, whose ranks share the experts, with as many schedulers."""

    __signature__ = inspect.signature(engine_config)

    def __init__(self, model: str | EngineConfig = "tiny", *, kernels: Mapping[str, str] | None = None, **arguments: Any) -> None:
        config = engine_config(model, kernels=kernels, **arguments)
        self._engine: Engine | ReplicatedEngine | None
        config.validate()
        several = config.parallel.num_engines > 1
        self._engine = ReplicatedEngine(config, kernels) if several else build_engine(config, kernels=kernels)
        self._ids = itertools.count()

    @property
    def engine(self) -> Engine:
        """In this process. Raises RuntimeError with data_parallel_size, where each of several is elsewhere, and after
        ``shutdown``."""
        if isinstance(engine := self._front, ReplicatedEngine):
            raise RuntimeError(f"this LLM has {engine.config.parallel.dp} engines, each in a process of its own")
        return engine

    @property
    def _front(self) -> Engine | ReplicatedEngine:
        """Raises RuntimeError after ``shutdown``."""
        if self._engine is None:
            raise RuntimeError("this LLM was shut down, and its model is gone: build a new one")
        return self._engine

    def get_tokenizer(self) -> Any:
        """The Hugging Face tokenizer of the model. Raises ValueError if it has none."""
        if self._front.inputs.tokenizer is None:
            raise ValueError("this LLM has no tokenizer: it was built without one (skip_tokenizer_init), or its model brings none")
        return self._front.inputs.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json recommends."""
        return self._front.inputs.default_params()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: Adapters = None,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Completes prompts (text, ``{"prompt_token_ids": [...]}``, or lists of token ids); outputs come in their order.

        Raises ValueError, before anything runs, if one of the prompts can never fit, and RuntimeError with the cause if one of them
        failed while it ran; the others are aborted then, and the engine serves on (unless its device is lost: EngineDeadError)."""
        inputs = [self._front.inputs.prompt(prompt) for prompt in listed(prompts)]
        return self._generate(inputs, sampling_params, use_tqdm, priority, lora_request)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: Adapters = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Completes one conversation or several, each a list of ``{"role": ..., "content": ...}``."""
        conversations: Any = [messages] if messages and isinstance(messages[0], Mapping) else messages
        inputs = [
            self._front.inputs.chat(
                conversation, chat_template, add_generation_prompt, continue_final_message, **(chat_template_kwargs or {})
            )
            for conversation in conversations
        ]
        return self._generate(inputs, sampling_params, use_tqdm, None, lora_request)

    def reset_prefix_cache(self) -> bool:
        """Forgets all cached prefixes; False, and nothing happens, while requests hold blocks."""
        return self._front.reset_prefix_cache()

    def get_metrics(self) -> list[Metric]:
        """The counters, gauges and histograms of the engine, or of each engine, under vLLM's names."""
        engine = self._front
        found = engine.metrics() if isinstance(engine, ReplicatedEngine) else {0: engine.metrics()}
        return engine_metrics(found, engine.config.model.name)

    def beam_search(
        self, prompts: Prompt | Sequence[Prompt], params: BeamSearchParams, *, lora_request: Adapters = None, use_tqdm: bool = False
    ) -> list[BeamSearchOutput]:
        """The best sequences of each prompt. The beams of all prompts take their steps together, and share the blocks of what they
        have in common. Raises as ``generate`` does."""
        inputs, length = self._front.inputs, self._front.info().max_model_len
        inputs.check_beams()
        searches = [BeamSearch(inputs.prompt(prompt), params, inputs.eos_token_ids, length) for prompt in listed(prompts)]
        adapters = self._adapters(lora_request, len(searches))
        with tqdm(total=params.max_tokens, desc="Tokens per beam", disable=not use_tqdm) as bar:
            while any(search.beams for search in searches):
                beams = [(beam, adapter) for search, adapter in zip(searches, adapters) for beam in search.inputs]
                of_beams = [adapter for _, adapter in beams]
                outputs = iter(self._run([beam for beam, _ in beams], params.step_params, False, None, of_beams))
                for search in searches:
                    search.advance([next_tokens(next(outputs)) for _ in search.beams])
                bar.update()
        return [search.best(inputs.tokenizer) for search in searches]

    def add_lora(self, lora_request: LoRARequest) -> bool:
        """Reads an adapter before a request asks for it. Raises ValueError for one that cannot be served."""
        return self._front.add_lora(lora_request)

    def remove_lora(self, lora_id: int) -> bool:
        """Forgets an adapter; False if it is not known. Raises ValueError while requests use it."""
        return self._front.remove_lora(lora_id)

    def pin_lora(self, lora_id: int) -> bool:
        """Keeps an adapter that is loaded where it is, whatever others need. Raises ValueError if it cannot be."""
        return self._front.pin_lora(lora_id)

    def list_loras(self) -> set[int]:
        """Ids of the adapters that are loaded."""
        return self._front.list_loras()

    def sleep(self, level: int = 1) -> NoReturn:
        raise NotImplementedError("an engine cannot sleep in this version; shutdown() frees the device")

    def wake_up(self, tags: list[str] | None = None) -> NoReturn:
        raise NotImplementedError("an engine cannot sleep in this version, so there is nothing to wake up")

    def plan(self) -> dict[str, dict[str, Any]]:
        """op -> which impl served it and how often it was called."""
        return self._front.plan_report()

    def shutdown(self) -> None:
        """Frees the model and the cache; whatever is asked of this LLM afterwards is refused."""
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None

    def _generate(
        self,
        inputs: list[EngineInput],
        given: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
        priority: Any,
        lora_request: Adapters,
    ) -> list[RequestOutput]:
        if self._front.pooling is not None:
            raise ValueError(self._front.pooling.generates_nothing)
        return self._run(inputs, given, use_tqdm, priority, lora_request)

    def _adapters(self, given: Adapters, count: int) -> list[LoRARequest | None]:
        """One for each of so many prompts; what is to be read again is read now, once."""
        adapters: list[Any] = list(given) if isinstance(given, list | tuple) else [given] * count
        if len(adapters) != count:
            raise ValueError(f"{count} prompts were given with lora_request={reprlib.repr(given)}; give one, or one each")
        for adapter in dict.fromkeys(adapters):
            if isinstance(adapter, LoRARequest) and adapter.load_inplace:
                self.add_lora(adapter)
        return [replace(one, load_inplace=False) if isinstance(one, LoRARequest) else one for one in adapters]

    def _run(
        self,
        inputs: list[EngineInput],
        given: SamplingParams | Sequence[SamplingParams | PoolingParams] | None,
        use_tqdm: bool,
        priority: Sequence[int] | None,
        lora_request: Adapters = None,
    ) -> list[RequestOutput]:
        params: Sequence[Any] = given if isinstance(given, list | tuple) else [given] * len(inputs)
        priorities = [0] * len(inputs) if priority is None else priority
        for name, values in (("parameters", params), ("priority", priorities)):
            if not isinstance(values, Sequence) or len(values) != len(inputs):
                raise ValueError(f"{len(inputs)} prompts were given with {name}={reprlib.repr(values)}; give one each")
        priorities = [check_priority(value) for value in priorities]
        adapters = self._adapters(lora_request, len(inputs))
        ids = [str(next(self._ids)) for _ in inputs]
        try:
            for i, request_id in enumerate(ids):
                self._front.add_request(
                    request_id,
                    inputs[i],
                    params[i],
                    priority=priorities[i],
                    output_kind=RequestOutputKind.FINAL_ONLY,
                    lora_request=adapters[i],
                )
            done = self._finish(ids, use_tqdm)
        except BaseException:
            self._front.abort(ids)
            raise
        return [done[request_id] for request_id in ids]

    def _finish(self, ids: list[str], use_tqdm: bool) -> dict[str, RequestOutput]:
        """Steps until all of them have ended."""
        done: dict[str, RequestOutput] = {}
        places = {request_id: place for place, request_id in enumerate(ids)}
        with tqdm(total=len(ids), desc="Processed prompts", disable=not use_tqdm) as bar:
            while self._front.has_unfinished():
                for output in self._front.step():
                    if output.error is not None and output.request_id in places:
                        kind = ValueError if output.refused else RuntimeError
                        raise kind(f"prompt {places[output.request_id]} of {len(ids)} failed: {output.error}")
                    if output.finished:
                        done[output.request_id] = output
                        bar.update()
                if self._front.is_waiting:
                    time.sleep(WAIT_S)
        return done
