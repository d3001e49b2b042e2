"""/v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response

from ..engine.prompts import EngineInput
from ..outputs import CompletionOutput
from ..sampling_params import RequestOutputKind
from .chat_template import fetch_images, tokenize
from .errors import APIError
from .generation import Generation
from .logprobs import chat_logprobs, prompt_logprobs
from .message import MessageBuilder, delta_fields, read
from .message_format import MessageFormat, message_format
from .parsing import MessageParser
from .protocol.chat import ChatAnswer, ChatBody
from .protocol.common import ERRORS, STREAM
from .sampling import check_takes_constraints, refuse, sampling_params, structured_outputs
from .serving import Serving
from .sse import ChunkWriter, respond

router = APIRouter()
_UNAVAILABLE = ("mm_processor_kwargs", "functions", "audio")


@router.post("/v1/chat/completions", response_model=None, responses={200: {"model": ChatAnswer, "content": STREAM}, **ERRORS})
async def create_chat_completion(body: ChatBody, request: Request) -> Response:
    """Goes on with a conversation."""
    return await respond(request, Chat(request.app.state.serving, body, request), body.stream)


class Chat(Generation):
    """The next message of a conversation, n times."""

    body: ChatBody

    def __init__(self, serving: Serving, body: ChatBody, request: Request) -> None:
        refuse(body, _UNAVAILABLE)
        self.num_top = body.top_logprobs or 0
        if self.num_top and not body.logprobs:
            raise APIError(400, "when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
        self.format = _take_format(serving, body)
        max_tokens = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        params = sampling_params(
            serving,
            body,
            max_tokens=max_tokens if max_tokens is not None else serving.engine.inputs.max_new_tokens,
            logprobs=self.num_top if body.logprobs else None,
            prompt_logprobs=body.prompt_logprobs,
        )
        if self.format.reasoning is not None:
            params.output_kind = RequestOutputKind.DELTA  # tokens of the reasoning are counted as they come
        if self.format.tags & serving.special_tokens:
            params.skip_special_tokens = False
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        super().__init__(serving, body, request, params, max_tokens, id_prefix="chatcmpl", kind=kind)
        self.role = "assistant" if body.add_generation_prompt or not body.messages else body.messages[-1].role

    async def whole(self) -> dict[str, Any]:
        """The answer."""
        with self.serving.admit(self.params.n):
            prompt = await self.prompt()
            messages = [MessageBuilder(self.format.parser(prompt.text or "")) for _ in range(self.params.n)]
            async with self.outputs([prompt]) as found:
                async for _, output in found:
                    for completion in output.outputs:
                        messages[completion.index].add(completion)
        parsers = [message.parser for message in messages]
        num_tokens = sum(len(message.completion.token_ids) for message in messages)
        answer = {
            **self.common,
            "choices": [self._choice(message) for message in messages],
            "usage": self._usage(prompt, num_tokens, output.num_cached_tokens or 0, parsers),
            "system_fingerprint": self.serving.fingerprint,
        }
        if self.body.prompt_logprobs is not None:
            answer["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs or [])
        if self.body.return_token_ids:
            answer["prompt_token_ids"] = prompt.token_ids
        return answer

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The answer, as it comes."""
        include_usage, continuous = self.usage_chunks()
        writer = ChunkWriter(self.common, self.serving.fingerprint)
        num_tokens, num_cached = [0] * self.params.n, 0
        with self.serving.admit(self.params.n):
            prompt = await self.prompt()
            parsers = [self.format.parser(prompt.text or "") for _ in range(self.params.n)]
            async with self.outputs([prompt]) as found:
                started = False
                async for _, output in found:
                    num_cached = output.num_cached_tokens or 0
                    written = []
                    if not started:
                        started = True
                        told = self._usage(prompt, 0, num_cached, ()) if continuous else None
                        written = [writer.chunk([self._first_choice(i)], told) for i in range(self.params.n)]
                    for completion in output.outputs:
                        num_tokens[completion.index] += len(completion.token_ids)
                        parser = parsers[completion.index]
                        choice = self._delta_choice(completion, parser)
                        if choice is not None:
                            count = num_tokens[completion.index]
                            told = self._usage(prompt, count, num_cached, [parser]) if continuous else None
                            written.append(writer.chunk([choice], told, last=completion.finished()))
                    if written:
                        yield b"".join(written)
        if include_usage:
            yield writer.chunk([], self._usage(prompt, sum(num_tokens), num_cached, parsers), last=True)

    def _choice(self, message: MessageBuilder) -> dict[str, Any]:
        fields = self._kept({"role": self.role, **message.fields()})
        if echo := self._echo():
            fields["content"] = echo + (fields["content"] or "")
        return self._told({"index": message.completion.index, "message": fields}, message.completion, message.parser)

    def _first_choice(self, index: int) -> dict[str, Any]:
        delta = {"role": self.role, "content": self._echo()}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _delta_choice(self, completion: CompletionOutput, parser: MessageParser) -> dict[str, Any] | None:
        """None: there is nothing to tell yet."""
        delta = self._kept(delta_fields(read(parser, completion)))
        if self.format.is_plain:
            delta.setdefault("content", "")  # a chunk per token, even for half a character
        if not (delta or completion.finished() or completion.logprobs or self.body.return_token_ids):
            return None
        return self._told({"index": completion.index, "delta": delta}, completion, parser)

    def _kept(self, fields: dict[str, Any]) -> dict[str, Any]:
        if not self.body.include_reasoning:
            fields.pop("reasoning", None)
            fields.pop("reasoning_content", None)
        return fields

    def _told(self, choice: dict[str, Any], completion: CompletionOutput, parser: MessageParser) -> dict[str, Any]:
        """The choice with what stands beside its message."""
        choice["logprobs"] = None if completion.logprobs is None else {"content": self.logprobs(completion)}
        choice["finish_reason"], choice["stop_reason"] = completion.finish_reason, completion.stop_reason
        if completion.finish_reason == "stop" and parser.num_calls and not self.format.is_named:  # as OpenAI has it
            choice["finish_reason"] = "tool_calls"
        if self.body.return_token_ids:
            choice["token_ids"] = completion.token_ids
        return choice

    def logprobs(self, completion: CompletionOutput) -> list[dict[str, Any]]:
        """An entry for every token, if they were asked for."""
        return chat_logprobs(completion.token_ids, completion.logprobs or (), self.num_top, self.as_token_ids)

    def _echo(self) -> str:
        """The last message, where the answer goes on with it."""
        body = self.body
        if not (body.echo and body.messages and body.messages[-1].role == self.role):
            return ""
        content = body.messages[-1].content
        return content if isinstance(content, str) else ""

    async def prompt(self) -> EngineInput:
        """The conversation as the engine takes it. Raises APIError if it cannot."""

        fetched = await fetch_images(self.serving, self.body)

        def prepare() -> list[EngineInput]:
            found = tokenize(self.serving, self.body, fetched)
            if found.images and self.body.truncate_prompt_tokens is not None:
                raise APIError(400, "a conversation with images cannot be cut", "truncate_prompt_tokens")
            return [replace(found, token_ids=found.token_ids[self.kept()], cache_salt=self.body.cache_salt)]

        (prompt,) = await self.tokenized(prepare)
        return prompt

    def _usage(self, prompt: EngineInput, num_completion: int, num_cached: int, parsers: Iterable[MessageParser]) -> dict[str, Any]:
        reasoning = None if self.format.reasoning is None else sum(parser.num_reasoning_tokens for parser in parsers)
        return self.serving.usage(len(prompt.token_ids), num_completion, num_cached, reasoning)


def _take_format(serving: Serving, body: ChatBody) -> MessageFormat:
    """The format that the body asks for. The call that it may ask for takes the place of any other form."""
    config = serving.config
    found = message_format(
        body.tools or (),
        body.tool_choice,
        parallel=body.parallel_tool_calls is not False,
        auto_parser=config.tool_call_parser if config.enable_auto_tool_choice else None,
        reasoning_parser=config.reasoning_parser,
        is_constrained=structured_outputs(body) is not None,
    )
    if found.schema is not None:
        check_takes_constraints(serving, "tool_choice")
        body.response_format, body.structured_outputs = None, {"json": found.schema}
    return found
