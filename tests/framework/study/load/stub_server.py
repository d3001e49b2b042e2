"""A server that streams what a test says, when it says; with every way to misbehave. It shares no HTTP code with the client."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Script = Callable[["Asked"], AsyncIterator[bytes]]
"""The bytes after the status line and the headers of a stream; a script that sends a status of its own begins with ``HTTP``."""

Pages = dict[str, bytes | Callable[[], bytes]]
"""What a GET finds, by path."""

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Drop(Exception):
    """Raised by a script: the connection breaks."""


@dataclass
class Asked:
    """One request. Times as of ``time.perf_counter``; sent_s: when the script's parts were written."""

    index: int
    body: dict[str, Any]
    headers: dict[str, str]
    came_s: float
    sent_s: list[float] = field(default_factory=list)


class StubServer:
    """asked: requests in the order in which they came; most_at_once: of them under way."""

    def __init__(self, script: Script, pages: Pages) -> None:
        self.script, self.pages = script, {"/v1/models": b'{"data": [{"id": "stub"}]}'} | pages
        self.asked: list[Asked] = []
        self.most_at_once = self._at_once = 0
        self.url = ""

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await self._answer(head.decode(), reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, Drop):
            pass
        finally:
            writer.close()

    async def _answer(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (method, path, _), *lines = (line.split(" ") for line in head.strip().split("\r\n"))
        headers = {name.rstrip(":").lower(): " ".join(words) for name, *words in lines}
        if method == "GET":
            found = self.pages.get(path)
            page = found() if callable(found) else found or b""
            status = "200 OK" if found is not None else "404 Not Found"
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(page)}\r\n\r\n".encode() + page)
            return
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        asked = Asked(len(self.asked), body, headers, time.perf_counter())
        self.asked.append(asked)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            began = False
            async for part in self.script(asked):
                if part.startswith(b"HTTP"):
                    writer.write(part)
                    return
                if not began:
                    writer.write(STREAM)
                    began = True
                asked.sent_s.append(time.perf_counter())
                writer.write(b"%x\r\n%s\r\n" % (len(part), part))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
        finally:
            self._at_once -= 1


@contextmanager
def serving(script: Script, pages: Pages | None = None) -> Iterator[StubServer]:
    """The server in a thread of its own, while it is needed."""
    stub, loop = StubServer(script, pages or {}), asyncio.new_event_loop()

    async def open_() -> asyncio.Server:
        return await asyncio.start_server(stub.connect, "127.0.0.1", 0)

    async def close() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(open_(), loop).result()
    stub.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield stub
    finally:
        asyncio.run_coroutine_threadsafe(close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def event(**fields: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def chunk(ids: list[int], finish_reason: str | None = None) -> bytes:
    """A chunk with these tokens."""
    return event(choices=[{"text": "x" * len(ids), "token_ids": ids, "finish_reason": finish_reason}])


def error_page(status: str, content: bytes) -> bytes:
    """A whole answer that is no stream."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content


END = b"data: [DONE]\n\n"


def answering(*gaps_s: float) -> Script:
    """One token after each gap; the count of tokens at the end."""

    async def script(asked: Asked) -> AsyncIterator[bytes]:
        for number, gap_s in enumerate(gaps_s, 1):
            await asyncio.sleep(gap_s)
            yield chunk([number], "length" if number == len(gaps_s) else None)
        usage = {"prompt_tokens": len(asked.body["prompt"]), "completion_tokens": len(gaps_s)}
        yield event(choices=[], usage=usage)
        yield END

    return script
