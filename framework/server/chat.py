"""/v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from ..engine.inputs import EngineInput
from ..outputs import CompletionOutput
from .chat_template import render
from .errors import APIError
from .logprobs import chat_logprobs, prompt_logprobs
from .protocol.chat import ChatAnswer, ChatBody
from .protocol.common import ERRORS, STREAM
from .sampling import refuse, request_id, request_priority, sampling_params, truncation
from .serving import Serving, usage
from .sse import ChunkWriter, event_stream, json_response, until_disconnect

router = APIRouter()
_UNAVAILABLE = ("mm_processor_kwargs", "functions", "audio")


@router.post("/v1/chat/completions", response_model=None, responses={200: {"model": ChatAnswer, "content": STREAM}, **ERRORS})
async def create_chat_completion(body: ChatBody, request: Request) -> Response:
    """Goes on with a conversation."""
    chat = Chat(request.app.state.serving, body, request)
    if body.stream:
        return await event_stream(request, chat.chunks())
    return json_response(await until_disconnect(request.receive, chat.whole()))


class Chat:
    """One request on its way to its answer."""

    def __init__(self, serving: Serving, body: ChatBody, request: Request) -> None:
        refuse(body, _UNAVAILABLE)
        self.serving, self.body = serving, body
        self.num_top = body.top_logprobs or 0
        if self.num_top and not body.logprobs:
            raise APIError(400, "when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
        asked = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        self.max_tokens = asked
        self.params = sampling_params(
            serving,
            body,
            max_tokens=asked if asked is not None else serving.engine.inputs.max_new_tokens,
            logprobs=self.num_top if body.logprobs else None,
            prompt_logprobs=body.prompt_logprobs,
        )
        self.as_token_ids = bool(body.return_tokens_as_token_ids or serving.config.return_tokens_as_token_ids)
        self.priority = request_priority(body, request)
        self.role = "assistant" if body.add_generation_prompt or not body.messages else body.messages[-1].role
        self.common: dict[str, Any] = {
            "id": f"chatcmpl-{request_id(body, request)}",
            "object": "chat.completion.chunk" if body.stream else "chat.completion",
            "created": int(time.time()),
            "model": serving.model_name(body.model),
        }

    async def whole(self) -> dict[str, Any]:
        """The answer."""
        with self.serving.admit(self.params.n):
            prompt = await self._prompt()
            async with aclosing(self.serving.outputs([prompt], self.params, self.priority)) as found:
                output = [output async for _, output in found][-1]
        answer = {
            **self.common,
            "choices": [self._choice(completion) for completion in output.outputs],
            "usage": self._usage(prompt, sum(len(c.token_ids) for c in output.outputs), output.num_cached_tokens),
            "system_fingerprint": self.serving.fingerprint,
        }
        if self.body.prompt_logprobs is not None:
            answer["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs or [])
        if self.body.return_token_ids:
            answer["prompt_token_ids"] = prompt.token_ids
        return answer

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The answer, as it comes."""
        options = self.body.stream_options
        include_usage = self.serving.config.enable_force_include_usage or (options is not None and options.include_usage)
        continuous = include_usage and options is not None and options.continuous_usage_stats
        writer = ChunkWriter(self.common, self.serving.fingerprint)
        num_tokens, num_cached = [0] * self.params.n, 0
        with self.serving.admit(self.params.n):
            prompt = await self._prompt()
            async with aclosing(self.serving.outputs([prompt], self.params, self.priority)) as found:
                started = False
                async for _, output in found:
                    num_cached = output.num_cached_tokens or 0
                    written = []
                    if not started:
                        started = True
                        told = self._usage(prompt, 0, num_cached) if continuous else None
                        written = [writer.chunk([self._first_choice(i)], told) for i in range(self.params.n)]
                    for completion in output.outputs:
                        num_tokens[completion.index] += len(completion.token_ids)
                        told = self._usage(prompt, num_tokens[completion.index], num_cached) if continuous else None
                        choice = self._delta_choice(completion)
                        written.append(writer.chunk([choice], told, last=completion.finish_reason is not None))
                    yield b"".join(written)
        if include_usage:
            yield writer.chunk([], self._usage(prompt, sum(num_tokens), num_cached), last=True)

    def _choice(self, completion: CompletionOutput) -> dict[str, Any]:
        message = {"role": self.role, "content": self._echo() + completion.text, "refusal": None}
        return self._told({"index": completion.index, "message": message}, completion)

    def _first_choice(self, index: int) -> dict[str, Any]:
        delta = {"role": self.role, "content": self._echo()}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _delta_choice(self, completion: CompletionOutput) -> dict[str, Any]:
        return self._told({"index": completion.index, "delta": {"content": completion.text}}, completion)

    def _told(self, choice: dict[str, Any], completion: CompletionOutput) -> dict[str, Any]:
        """The choice with what stands beside its message."""
        if completion.finish_reason == "error":
            raise APIError(500, "the model computed no numbers for this request")
        choice["logprobs"] = None
        if completion.logprobs is not None:
            choice["logprobs"] = chat_logprobs(completion.token_ids, completion.logprobs, self.num_top, self.as_token_ids)
        choice["finish_reason"], choice["stop_reason"] = completion.finish_reason, completion.stop_reason
        if self.body.return_token_ids:
            choice["token_ids"] = completion.token_ids
        return choice

    def _echo(self) -> str:
        """The last message, where the answer goes on with it."""
        body = self.body
        if not (body.echo and body.messages and body.messages[-1].role == self.role):
            return ""
        content = body.messages[-1].content
        return content if isinstance(content, str) else ""

    async def _prompt(self) -> EngineInput:
        def tokenize() -> EngineInput:
            text = self.serving.check_text(render(self.serving, self.body))
            token_ids = self.serving.engine.inputs.encode(text, self.body.add_special_tokens)
            return EngineInput(token_ids[truncation(self.serving, self.body, self.max_tokens)], text, self.body.cache_salt)

        prompt = await self.serving.tokenizing(tokenize)
        self.serving.check_input(prompt, self.max_tokens)
        return prompt

    def _usage(self, prompt: EngineInput, num_completion: int, num_cached: int | None) -> dict[str, Any]:
        told = num_cached if self.serving.config.enable_prompt_tokens_details else None
        return usage(len(prompt.token_ids), num_completion, told)
