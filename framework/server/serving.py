"""What all endpoints share: the engine, the model's names, and how many requests may be in work."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import asdict
from hashlib import blake2b
from typing import Any, TypeVar

import numpy as np

from .. import __version__
from ..async_engine import AsyncEngine
from ..engine.inputs import check_prompt_tokens
from ..engine.pooling import PoolingInputs
from ..engine.prompts import EngineInput
from ..lora_request import LoRARequest
from ..outputs import RequestOutput
from ..pooling_outputs import PoolingOutput, PoolingRequestOutput
from ..pooling_params import PoolingParams
from ..sampling_params import BeamSearchParams, SamplingParams
from .adapters import ServedAdapters
from .beams import beam_outputs
from .config import ServerConfig
from .errors import APIError, no_numbers
from .image_urls import ImageURLs

T = TypeVar("T")
RETRY_AFTER_S = 1
"""After which a refused client may try again."""


class Serving:
    """The engine as the endpoints see it.

    model_names  by which requests may call the model
    adapters     that requests may call as if each was a model
    fingerprint  changes when answers may: with the version, or the engine's configuration
    special_tokens  that are no text unless a request wants them
    num_in_work  completions that were admitted and have not ended
    num_rejected requests that were not admitted
    started_s    when, by ``time.monotonic``
    """

    def __init__(self, engine: AsyncEngine, config: ServerConfig) -> None:
        self.engine, self.config = engine, config
        self.model_names = config.served_model_name or [engine.config.model.name]
        digest = blake2b(json.dumps(asdict(engine.config), default=str, sort_keys=True).encode(), digest_size=4).hexdigest()
        self.fingerprint = f"kernelswap-{__version__}-{digest}"
        self.adapters = ServedAdapters(engine, config, self.model_names)
        self.chat_template = config.load_chat_template()
        self.num_in_work = self.num_rejected = 0
        self.started_s = time.monotonic()
        self._most_in_work = engine.config.scheduler.max_num_seqs * engine.config.parallel.dp + config.max_num_queued_reqs
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="kernelswap-tokenizer")
        self.images = ImageURLs(config.allowed_image_hosts, config.max_image_bytes, config.image_timeout_s)
        self._fetching = ThreadPoolExecutor(8, thread_name_prefix="kernelswap-images")
        tokenizer = engine.inputs.tokenizer
        added = tokenizer.added_tokens_decoder.values() if tokenizer is not None else ()
        self.special_tokens = frozenset(token.content for token in added if token.special)
        longest = max(map(len, tokenizer.get_vocab()), default=1) if tokenizer is not None else 1
        self._most_characters = longest * engine.info.max_model_len

    def model_name(self, asked: str | None) -> str:
        """Under which a request is answered. Raises APIError for a model that is not served."""
        if asked is not None and asked not in self.model_names and asked not in self.adapters.known:
            raise APIError(404, f"The model `{asked}` does not exist.", "model")
        return asked or self.model_names[0]

    def lora_request(self, asked: str | None) -> LoRARequest | None:
        """The adapter that a request's model is; None: the model itself."""
        return None if asked is None else self.adapters.known.get(asked)

    @contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """While ``count`` completions are in work. Raises APIError if as many as may wait do already, or never could."""
        if count > self._most_in_work:
            raise APIError(400, f"{count} completions are more than the {self._most_in_work} that this server takes at once", "n")
        if self.num_in_work >= self._most_in_work:
            self.num_rejected += 1
            raise APIError(
                503,
                f"the server is overloaded: {self.num_in_work} completions are in work. Try again later",
                headers={"retry-after": str(RETRY_AFTER_S)},
            )
        self.num_in_work += count
        try:
            yield
        finally:
            self.num_in_work -= count

    def usage(self, num_prompt: int, num_completion: int, num_cached: int, num_reasoning: int | None = None) -> dict[str, Any]:
        """OpenAI's usage object, in tokens; of reasoning where some is looked for."""
        found: dict[str, Any] = {
            "prompt_tokens": num_prompt,
            "total_tokens": num_prompt + num_completion,
            "completion_tokens": num_completion,
        }
        if self.config.enable_prompt_tokens_details:
            found["prompt_tokens_details"] = {"cached_tokens": num_cached}
        if num_reasoning is not None:
            found["completion_tokens_details"] = {"reasoning_tokens": num_reasoning}
        return found

    async def tokenizing(self, work: Callable[[], T]) -> T:
        """What ``work`` returns, which uses the tokenizer, and so may take long: it runs in the tokenizer's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, work)

    async def fetching(self, urls: Sequence[str]) -> dict[str, Any]:
        """The images that URLs lead to. Raises ValueError for one that cannot be had."""
        loop = asyncio.get_running_loop()
        found = await asyncio.gather(*(loop.run_in_executor(self._fetching, self.images.load, url) for url in urls))
        return dict(zip(urls, found))

    def check_text(self, text: str) -> str:
        """The text. Raises APIError if it is too long for any number of tokens that the model takes; tokenizing would be slow."""
        if len(text) > self._most_characters:
            raise self._too_long(
                f"has {len(text)} characters, which are more than {self.engine.info.max_model_len} tokens can hold"
            )
        return text

    def check_input(self, prompt: EngineInput, max_tokens: int | None) -> None:
        """Raises APIError for a prompt that cannot be served with so long an output, or with tokens that the model has not."""
        info, count = self.engine.info, len(prompt.token_ids)
        try:
            check_prompt_tokens(prompt.token_ids, info.vocab_size, self.engine.inputs.placeholder)
        except ValueError as error:
            raise APIError(400, str(error), "prompt") from None
        if count + (max_tokens or 1) > info.max_model_len:
            asked = f", and {max_tokens} output tokens were asked for" if max_tokens else ", which leaves no room for an output"
            raise self._too_long(f"contains {count} input tokens{asked}")

    def _too_long(self, what: str) -> APIError:
        most = self.engine.info.max_model_len
        return APIError(
            400,
            f"This model's maximum context length is {most} tokens. However, your prompt {what}. Please shorten either.",
            "prompt",
        )

    def check_generates(self) -> None:
        """Raises APIError where the model pools."""
        if self.engine.pooling is not None:
            raise APIError(501, f"The model does not support generation: it pools ({self.engine.pooling.rules.task})")

    def pooling(self, what: str) -> PoolingInputs:
        """What the model takes. Raises APIError where it generates."""
        if self.engine.pooling is None:
            raise APIError(501, f"The model does not support {what}: it generates text")
        return self.engine.pooling

    async def pooled(
        self, prompts: Sequence[tuple[EngineInput, PoolingParams]], priority: int
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """What the model makes of each prompt."""

        async def one(prompt: EngineInput, params: PoolingParams) -> PoolingRequestOutput[PoolingOutput]:
            async with aclosing(self.engine.encode(prompt, params, priority=priority)) as outputs:
                found = [output async for output in outputs][-1]
            if not np.isfinite(found.outputs.data).all():
                raise APIError(500, "the model computed no numbers for this request")
            return found

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(*prompt)) for prompt in prompts]
        return [task.result() for task in tasks]

    async def outputs(
        self,
        prompts: Sequence[EngineInput],
        params: SamplingParams,
        priority: int,
        beams: BeamSearchParams | None = None,
        lora_request: LoRARequest | None = None,
    ) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        """Outputs of all prompts as they come, with the index of the prompt; of ``beams`` one, at their end. Closing it aborts what
        is left of them."""
        if len(prompts) == 1:
            async with aclosing(self._generate(prompts[0], params, priority, beams, lora_request)) as outputs:
                async for output in outputs:
                    yield 0, output
            return
        found: asyncio.Queue[tuple[int, RequestOutput] | Exception] = asyncio.Queue()

        async def run(index: int) -> None:
            try:
                async for output in self._generate(prompts[index], params, priority, beams, lora_request):
                    found.put_nowait((index, output))
            except Exception as error:
                found.put_nowait(error)

        tasks = [asyncio.create_task(run(i)) for i in range(len(prompts))]
        try:
            num_left = len(prompts)
            while num_left:
                item = await found.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                num_left -= item[1].finished
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _generate(
        self,
        prompt: EngineInput,
        params: SamplingParams,
        priority: int,
        beams: BeamSearchParams | None,
        lora_request: LoRARequest | None,
    ) -> AsyncGenerator[RequestOutput, None]:
        if beams is None:
            found: Any = self.engine.generate(prompt, params, lora_request=lora_request, priority=priority)
        else:
            found = beam_outputs(self.engine, prompt, params, priority, beams, lora_request)
        async with aclosing(found) as outputs:
            async for output in outputs:
                if any(completion.finish_reason == "error" for completion in output.outputs):
                    raise no_numbers(params)
                yield output
