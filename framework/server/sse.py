"""Answers of requests that wait: server-sent events, and what happens when the client leaves."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, Protocol, TypeVar

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from .errors import APIError, api_error

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}
_logger = logging.getLogger(__name__)

encode_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
"""Of what UTF-8 and JSON can hold; raises ValueError for NaN and infinities, which requests may bring and some answers repeat."""


def json_response(content: Any) -> Response:
    """Of what UTF-8 can hold."""
    return Response(encode_json(content).encode(), media_type="application/json")


class Answering(Protocol):
    """A request that is answered whole or in chunks."""

    async def whole(self) -> dict[str, Any]: ...

    def chunks(self) -> AsyncGenerator[bytes, None]: ...


async def respond(request: Request, answering: Answering, stream: bool | None) -> Response:
    """The answer, as long as the client waits for it."""
    if stream:
        return await event_stream(request, answering.chunks())
    return json_response(await until_disconnect(request.receive, answering.whole()))


class ClientDisconnected(APIError):
    """Nobody is left to be answered."""

    def __init__(self) -> None:
        super().__init__(499, "the client closed the connection", kind="ClientDisconnected")


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` returns. Cancels it and raises ClientDisconnected when the client leaves first, APIError when the server ends
    and has waited long enough."""
    try:
        return await _first(receive, work)
    except asyncio.CancelledError:  # of the task that answers; at its end the event loop cancels it once more
        raise APIError(503, "the server is shutting down") from None


async def _first(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnected
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.wait((working, leaving))  # a generator in use cannot be closed


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def event_stream(request: Request, chunks: AsyncGenerator[bytes, None]) -> Response:
    """The response that sends ``chunks``. Waits for the first, so that what fails before it is an error with a status code."""
    try:
        first = await until_disconnect(request.receive, anext(chunks))
    except BaseException:
        await chunks.aclose()
        raise
    return EventStream(first, chunks)


class EventStream(Response):
    """Sends chunks as they come; an error among them is told in the stream, and ends it."""

    def __init__(self, first: bytes, chunks: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._first, self._chunks = first, chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await until_disconnect(receive, self._send_all(send))
        except ClientDisconnected:
            pass
        except APIError as error:
            await self._send_end(send, error)
        finally:
            await self._chunks.aclose()

    async def _send_all(self, send: Send) -> None:
        try:
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            async for chunk in self._chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except Exception as error:
            told = api_error(error)
            if told.status == 500:
                _logger.error("a stream failed", exc_info=error)
            await self._send_end(send, told)
        else:
            await send({"type": "http.response.body", "body": DONE, "more_body": False})

    @staticmethod
    async def _send_end(send: Send, error: APIError) -> None:
        await send({"type": "http.response.body", "body": b"data: " + error.json() + b"\n\n" + DONE, "more_body": False})


class ChunkWriter:
    """Chunks of one answer. What they have in common is written once."""

    def __init__(self, common: dict[str, Any], fingerprint: str) -> None:
        self._head = "data: " + json.dumps(common, separators=(",", ":"))[:-1]
        self._fingerprint = ',"system_fingerprint":' + json.dumps(fingerprint)

    def chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None, *, last: bool = False) -> bytes:
        """``last``: of a choice, or of the answer."""
        end = self._fingerprint if last else ""
        if usage is not None:
            end += ',"usage":' + encode_json(usage)
        return f'{self._head},"choices":{encode_json(choices)}{end}}}\n\n'.encode()
