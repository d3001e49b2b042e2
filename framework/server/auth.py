"""Which requests must bring a key."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest

from starlette.types import ASGIApp, Receive, Scope, Send

GUARDED = ("/v1", "/v2", "/inference", "/cohere")
"""Where paths begin that need a key; health, metrics and the like are open."""


class Authentication:
    """ASGI middleware: answers 401 where a path is guarded and no ``Authorization: Bearer`` brings one of ``keys``. How long that
    takes says nothing about the keys."""

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self.app = app
        self._digests = [sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] != "OPTIONS" and self._guarded(scope) and not self._has_key(scope):
            await send({"type": "http.response.start", "status": 401, "headers": [(b"content-type", b"application/json")]})
            await send({"type": "http.response.body", "body": b'{"error":"Unauthorized"}'})
            return
        await self.app(scope, receive, send)

    def _guarded(self, scope: Scope) -> bool:
        return scope["path"].removeprefix(scope.get("root_path", "")).startswith(GUARDED)

    def _has_key(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        digest = sha256(key.strip()).digest()
        matches = [compare_digest(digest, known) for known in self._digests]  # all of them, whatever the first says
        return scheme.lower() == b"bearer" and any(matches)
