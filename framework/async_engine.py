"""The engine for servers: its loop runs in a process of its own, so that tokenizing and streaming never hold up a step."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import threading
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from .config import EngineConfig, ModelConfig
from .engine.inputs import Prompt
from .engine_process import Abort, Add, Failure, Ready, Report, Shutdown, run_engine

if TYPE_CHECKING:
    from .outputs import RequestOutput
    from .sampling_params import SamplingParams


class EngineDeadError(RuntimeError):
    """The engine's process ended; no request can be served any more. The text says why."""


class AsyncEngine:
    """Requests in, streams out. Build it inside a running event loop, or anywhere; ``shutdown()`` ends the process.

    config: or the name of a model. Every method is to be called from one event loop. The engine process is started with ``spawn``,
    so a script that builds one needs the guard ``if __name__ == "__main__"``.
    """

    def __init__(self, config: EngineConfig | str | None = None, *, start_timeout_s: float = 600.0) -> None:
        from .build import input_processor
        from .models.architecture import read_model
        from .plan import fold_choices

        given = EngineConfig(ModelConfig(config)) if isinstance(config, str) else config or EngineConfig()
        given.validate()
        self.config = fold_choices(given)
        self.inputs = input_processor(self.config.model, read_model(self.config.model))
        context = multiprocessing.get_context("spawn")
        self._pipe, child = context.Pipe()
        self._process = context.Process(target=run_engine, args=(self.config, child), daemon=True, name="kernelswap-engine")
        self._process.start()
        child.close()
        self._streams: dict[str, tuple[asyncio.AbstractEventLoop, asyncio.Queue[RequestOutput | Exception]]] = {}
        self._reports: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[dict[str, Any]]]] = []
        self._ids = itertools.count()
        self._dead: str | None = None
        self._wait_until_ready(start_timeout_s)
        self._reader = threading.Thread(target=self._read, daemon=True, name="kernelswap-engine-reader")
        self._reader.start()

    async def generate(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, request_id: str | None = None, *, priority: int = 0
    ) -> AsyncIterator[RequestOutput]:
        """Streams the outputs of one request; leaving the loop early aborts it.

        Each item is what the parameters' ``output_kind`` asks for: cumulative text, deltas, or only the end."""
        request_id = request_id or f"request-{next(self._ids)}"
        if request_id in self._streams:
            raise ValueError(f"a request with the id {request_id!r} is running; ids must be unique")
        add = Add(request_id, self.inputs.prompt(prompt), sampling_params, priority)
        queue: asyncio.Queue[RequestOutput | Exception] = asyncio.Queue()
        self._streams[request_id] = (asyncio.get_running_loop(), queue)
        finished = False
        try:
            self._send(add)
            while not finished:
                item = await queue.get()
                if isinstance(item, Exception):
                    finished = True
                    raise item
                finished = item.finished
                item.prompt, item.prompt_token_ids = add.prompt.text, add.prompt.token_ids
                yield item
        finally:
            self._streams.pop(request_id, None)
            if not finished and self._dead is None:
                self._send(Abort(request_id))

    async def abort(self, request_id: str) -> None:
        """Ends a request; its stream gets a last output with finish reason "abort"."""
        self._send(Abort(request_id))

    async def report(self) -> dict[str, Any]:
        """The kernel plan as it ran, and the engine's statistics: {"plan": ..., "stats": ...}."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[dict[str, Any]] = loop.create_future()
        self._reports.append((loop, future))
        self._send(Report({}))
        return await future

    def shutdown(self) -> None:
        """Ends the engine's process; running requests get EngineDeadError."""
        if self._dead is None:
            self._die("the engine was shut down")
            with contextlib.suppress(OSError):  # it is gone already
                self._pipe.send(Shutdown())
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def _wait_until_ready(self, timeout_s: float) -> None:
        try:
            if not self._pipe.poll(timeout_s):
                self._process.terminate()
                raise EngineDeadError(f"the engine's process was not ready after {timeout_s:g} s")
            message = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise EngineDeadError(f"the engine's process ended at start with exit code {self._process.exitcode}") from None
        if isinstance(message, Failure):
            self._process.join()
            raise message.error
        assert isinstance(message, Ready)

    def _send(self, message: Any) -> None:
        if self._dead is not None:
            raise EngineDeadError(self._dead)
        try:
            self._pipe.send(message)
        except OSError as error:
            self._die(f"the engine's process is gone: {error}")
            raise EngineDeadError(self._dead) from error

    def _read(self) -> None:
        """Runs in a thread: hands what the engine sends to the event loops."""
        while True:
            try:
                message = self._pipe.recv()
            except (EOFError, OSError):
                self._die(f"the engine's process ended with exit code {self._process.exitcode}")
                return
            if isinstance(message, Failure):
                if message.request_id is None:
                    self._die(f"the engine failed: {message.error}")
                    return
                self._put(message.request_id, message.error)
            elif isinstance(message, Report):
                loop, future = self._reports.pop(0)
                loop.call_soon_threadsafe(future.set_result, message.content)
            else:
                for output in message:
                    self._put(output.request_id, output)

    def _put(self, request_id: str, item: RequestOutput | Exception) -> None:
        if request_id in self._streams:
            loop, queue = self._streams[request_id]
            loop.call_soon_threadsafe(queue.put_nowait, item)

    def _die(self, reason: str) -> None:
        if self._dead is None:
            self._dead = reason
            for request_id in list(self._streams):
                self._put(request_id, EngineDeadError(reason))
            for loop, future in self._reports:
                loop.call_soon_threadsafe(future.set_exception, EngineDeadError(reason))
