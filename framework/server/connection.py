"""What the HTTP server bears of a connection: heads that do not end, answers that are not read, requests sent ahead."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_HEAD_BYTES: Final = 64 * 1024
"""Of a request line and its headers, but for what comes at once."""


class Connection(HttpToolsProtocol):
    """uvicorn's, which by itself waits for ever for a head, takes heads of any length, waits for ever for a client that does not
    read, and tells only the last of several requests sent ahead that the client is gone.

    head_timeout_s  how long a head may take to arrive, idle time of a kept connection aside
    send_timeout_s  how long a client may read nothing while an answer waits
    """

    def __init__(self, *args: Any, head_timeout_s: float, send_timeout_s: float, **more: Any) -> None:
        super().__init__(*args, **more)
        self._head_timeout_s, self._send_timeout_s = head_timeout_s, send_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._unanswered: deque[RequestResponseCycle] = deque()
        self._num_head_bytes = 0
        self._is_in_head = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head(self._head_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._send_timer):
            if timer is not None:
                timer.cancel()
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        was_in_head = self._is_in_head
        super().data_received(data)
        if was_in_head and self._is_in_head:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head, self._num_head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        known = self.cycle
        super().on_headers_complete()
        if self.cycle is not known:
            self._unanswered.append(self.cycle)

    def on_response_complete(self) -> None:
        self._unanswered.popleft()
        self._expect_head(self.timeout_keep_alive + self._head_timeout_s)
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._send_timer = self.loop.call_later(self._send_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._send_timer is not None:
            self._send_timer.cancel()

    def _expect_head(self, timeout_s: float) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        self._head_timer = self.loop.call_later(timeout_s, self._end_without_head)

    def _end_without_head(self) -> None:
        if not self._unanswered:  # whoever is answered now will be waited for again
            self.transport.abort()
