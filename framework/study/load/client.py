"""One request over HTTP: sent, read to its end, and never waited for longer than it may take."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from .answer import Answer, BadAnswer, message_of
from .config import HttpConfig

KEEP_ALIVE_S = 2.0
"""How long an idle connection is kept: less than servers do (uvicorn: 5 s), for a request that meets the end of one fails."""
MAX_ERROR_BYTES = 1 << 16
PAGE_TIMEOUT_S = 30.0
"""Of what is no answer: the list of models, a scrape."""


class Refused(ValueError):
    """The server did not begin to answer."""


class Client:
    """Asks one server. ``now_s``: seconds since the start of the run."""

    def __init__(self, session: aiohttp.ClientSession, config: HttpConfig) -> None:
        self._session, self._config, self._start_s = session, config, time.perf_counter()

    @classmethod
    @asynccontextmanager
    async def open(cls, config: HttpConfig) -> AsyncIterator[Client]:
        """A client with connections of its own: as many as requests are under way."""
        key = os.environ.get("OPENAI_API_KEY") or os.environ.get("VLLM_API_KEY")
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
        timeout = aiohttp.ClientTimeout(total=config.timeout_s)
        async with aiohttp.ClientSession(config.url, connector=connector, timeout=timeout, headers=headers) as session:
            yield cls(session, config)

    def start(self) -> None:
        """The run begins now."""
        self._start_s = time.perf_counter()

    def now_s(self) -> float:
        return time.perf_counter() - self._start_s

    async def ask(self, body: bytes, answer: Answer) -> None:
        """Reads the answer to ``body``. Raises Refused, or BadAnswer for one that broke off, took too long or makes no sense."""
        began = False
        try:
            async with self._session.post(self._config.endpoint, data=body, allow_redirects=False) as response:
                if response.status != 200:
                    raise Refused(f"HTTP {response.status}: {_reason(await response.content.read(MAX_ERROR_BYTES))}")
                began = True
                async for data in response.content.iter_any():
                    answer.feed(data, self.now_s())
        except TimeoutError as error:
            if not answer.is_done:
                raise BadAnswer(f"no complete answer {self._config.timeout_s:g} s after it was asked for") from error
        except (aiohttp.ClientError, OSError) as error:
            if not answer.is_done:
                raise (BadAnswer if began else Refused)(f"the connection failed: {type(error).__name__}: {error}") from error
        answer.close(self.now_s())

    async def get_text(self, path: str) -> str:
        """Raises ValueError if the server does not answer with 200, ConnectionError if it is not there."""
        try:
            async with self._session.get(path, timeout=aiohttp.ClientTimeout(total=PAGE_TIMEOUT_S)) as response:
                content = await response.read()
                if response.status != 200:
                    raise ValueError(f"{self._config.url}{path} answers HTTP {response.status}: {_reason(content)}")
                return content.decode(errors="replace")
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionError(f"no server answers at {self._config.url}: {error or type(error).__name__}") from error

    async def metrics(self) -> str:
        """A scrape of the server; empty where it has none, or is no more."""
        try:
            return await self.get_text("/metrics")
        except (ValueError, ConnectionError):
            return ""

    async def version(self) -> str:
        """As the server says; unknown where it does not."""
        try:
            return str(json.loads(await self.get_text("/version"))["version"])
        except (ValueError, ConnectionError, LookupError, TypeError):
            return "unknown"

    async def model(self) -> str:
        """The name of the model, once the server is ready. Raises ValueError if it is not in time, or names none."""
        patience_s = time.perf_counter() + self._config.ready_timeout_s
        while True:
            try:
                models = await self.get_text("/v1/models")
                return self._config.model or str(json.loads(models)["data"][0]["id"])
            except ConnectionError as error:
                if time.perf_counter() >= patience_s:
                    raise ValueError(str(error)) from error
                await asyncio.sleep(0.2)
            except (ValueError, LookupError, TypeError) as error:
                if self._config.model:
                    return self._config.model
                raise ValueError(f"the server names no model, set http.model: {error}") from error


def _reason(content: bytes) -> str:
    """Of an error's body: an error object, or whatever it is."""
    try:
        return message_of(json.loads(content))
    except (ValueError, RecursionError):
        return content[:300].decode(errors="replace").strip()
