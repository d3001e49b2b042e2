"""/v1/responses, for text and function calls. Nothing is stored: a conversation is sent whole with every request."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any, NoReturn

from fastapi import APIRouter, Request, Response

from ..outputs import CompletionOutput
from ..sampling_params import RequestOutputKind
from .chat import Chat
from .errors import APIError
from .message import read
from .parsing import Content, Delta, MessageParser, ToolCall
from .protocol.common import ERRORS, STREAM
from .protocol.responses import ResponseAnswer, ResponsesBody
from .response_input import LOGPROBS, chat_body
from .response_items import Event, ResponseItems
from .sampling import check_takes_constraints, refuse, structured_outputs
from .serving import Serving
from .sse import encode_json, respond

router = APIRouter(responses=ERRORS)
_UNAVAILABLE = ("conversation", "prompt", "context_management", "prompt_logprobs")


@router.post("/v1/responses", response_model=None, responses={200: {"model": ResponseAnswer, "content": STREAM}})
async def create_response(body: ResponsesBody, request: Request) -> Response:
    """Answers text, or goes on with a conversation."""
    return await respond(request, Responding(request.app.state.serving, body, request), body.stream)


@router.get("/v1/responses/{response_id}", response_model=None)
@router.delete("/v1/responses/{response_id}", response_model=None)
async def stored_response(response_id: str) -> NoReturn:
    """Never there."""
    raise _not_found(response_id)


@router.get("/v1/responses/{response_id}/input_items", response_model=None)
async def input_items(response_id: str) -> NoReturn:
    """Never there."""
    raise _not_found(response_id)


@router.post("/v1/responses/{response_id}/cancel", response_model=None)
async def cancel_response(response_id: str) -> NoReturn:
    """Of a response in the background, of which there are none."""
    raise _not_found(response_id)


class Responding:
    """One request on its way to its answer."""

    def __init__(self, serving: Serving, body: ResponsesBody, request: Request) -> None:
        refuse(body, _UNAVAILABLE)
        if body.previous_response_id is not None:
            raise _not_found(body.previous_response_id, "previous_response_id")
        if body.background or (body.n or 1) > 1:
            param = "background" if body.background else "n"
            raise APIError(400, f"`{param}` is not supported by this server for responses: leave it out", param)
        if body.top_logprobs and LOGPROBS not in (body.include or ()):
            raise APIError(400, f"`top_logprobs` needs {LOGPROBS!r} in `include`", "top_logprobs")
        chat = chat_body(body)
        if body.structured_outputs is None and structured_outputs(chat) is not None:
            check_takes_constraints(serving, "text")
        self.chat = Chat(serving, chat, request)
        if self.chat.params.logprobs is not None:
            self.chat.params.output_kind = RequestOutputKind.DELTA  # so that they come with what they are of
        self.items = ResponseItems()
        self.response: dict[str, Any] = {
            "id": self.chat.common["id"].replace("chatcmpl-", "resp_", 1),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self.chat.common["model"],
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": body.reasoning or {"effort": None, "summary": None},
            "store": False,
            "temperature": self.chat.params.temperature,
            "text": {"format": {"type": "text"}, **(body.text or {})},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": self.chat.params.top_p,
            "truncation": body.truncation or "disabled",
            "usage": None,
        }
        self._num_events = 0

    async def whole(self) -> dict[str, Any]:
        """The answer."""
        async with aclosing(self._steps()) as steps:
            async for _ in steps:
                pass
        return self.response

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The answer, as it comes."""
        async with aclosing(self._steps()) as steps:
            async for events in steps:
                yield b"".join(map(self._written, events))

    async def _steps(self) -> AsyncGenerator[list[Event], None]:
        """The events of each output of the engine. Ends with the response complete."""
        chat = self.chat
        with chat.serving.admit(1):
            prompt = await chat.prompt()
            parser = chat.format.parser(prompt.text or "")
            logprobs = ContentLogprobs(parser)
            num_tokens = num_cached = 0
            events = [{"type": f"response.{event}", "response": dict(self.response)} for event in ("created", "in_progress")]
            async with chat.outputs([prompt]) as found:
                async for _, output in found:
                    num_cached = output.num_cached_tokens or num_cached
                    for completion in output.outputs:
                        num_tokens += len(completion.token_ids)
                        deltas = read(parser, completion)
                        events += self.items.add(deltas, logprobs.of(deltas, chat.logprobs(completion)))
                        if completion.finished():
                            events += self._end(completion)
                    if not output.finished:
                        yield events
                        events = []
        self.response["usage"] = _usage(len(prompt.token_ids), num_tokens, num_cached, parser)
        yield [*events, {"type": f"response.{self.response['status']}", "response": self.response}]

    def _end(self, completion: CompletionOutput) -> Iterable[Event]:
        self.response["status"] = "completed" if completion.finish_reason == "stop" else "incomplete"
        if completion.finish_reason == "length":
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        events = list(self.items.close(self.response["status"]))
        self.response["output"] = self.items.output
        return events

    def _written(self, event: Event) -> bytes:
        numbered = {**event, "sequence_number": self._num_events}
        self._num_events += 1
        return f"event: {event['type']}\ndata: {encode_json(numbered)}\n\n".encode()


class ContentLogprobs:
    """Which of a completion's tokens stand for content: neither those of reasoning nor those of calls."""

    def __init__(self, parser: MessageParser) -> None:
        self._parser = parser
        self._waiting: list[dict[str, Any]] = []  # for the text that they begin
        self._num_told = 0

    def of(self, deltas: Iterable[Delta], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Entries of the content in ``deltas``, if there is some; new: those of the tokens that came with them."""
        self._waiting += new
        kinds = {type(delta) for delta in deltas}
        if not kinds & {Content, ToolCall}:
            return []
        found = self._waiting[max(self._parser.num_reasoning_tokens - self._num_told, 0) :] if Content in kinds else []
        self._num_told += len(self._waiting)
        self._waiting = []
        return found


def _usage(num_prompt: int, num_completion: int, num_cached: int, parser: MessageParser) -> dict[str, Any]:
    return {
        "input_tokens": num_prompt,
        "input_tokens_details": {"cached_tokens": num_cached, "cache_write_tokens": 0},
        "output_tokens": num_completion,
        "output_tokens_details": {"reasoning_tokens": parser.num_reasoning_tokens},
        "total_tokens": num_prompt + num_completion,
    }


def _not_found(response_id: str, param: str = "response_id") -> APIError:
    return APIError(404, f"Response with id '{response_id[:80]}' not found: this server stores no responses.", param)
