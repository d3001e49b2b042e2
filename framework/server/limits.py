"""What a request body may be: its size, and the time it takes to arrive."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import APIError


class BodyLimits:
    """ASGI middleware: reads the whole body before the app is called, so that nothing inside waits for a slow client. Answers 413
    for a body of more than ``max_bytes``, 408 for one that takes more than ``timeout_s``."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self.app, self.max_bytes, self.timeout_s = app, max_bytes, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"]) if scope["type"] == "http" else {}
        if b"content-length" not in headers and b"transfer-encoding" not in headers:
            return await self.app(scope, receive, send)
        try:
            if int(headers.get(b"content-length", 0)) > self.max_bytes:
                raise self._too_large()
            async with asyncio.timeout(self.timeout_s):
                body: bytes | None = await self._read(receive)
        except TimeoutError:
            late = f"the body did not arrive within {self.timeout_s:g} s"
            return await APIError(408, late, headers={"connection": "close"}).response()(scope, receive, send)
        except APIError as error:  # what else comes of the body is dropped by the HTTP server
            return await error.response()(scope, receive, send)
        if body is None:
            return  # the client is gone

        async def replay() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            message: Message = {"type": "http.request", "body": body, "more_body": False}
            body = None
            return message

        await self.app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes | None:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self.max_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> APIError:
        return APIError(413, f"the body is longer than the {self.max_bytes} bytes that this server takes")
