"""Several engines, each in a process of its own, behind a router. No further process stands between."""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from .build import check_processes, replica_configs
from .engine.errors import EngineDeadError
from .engine.router import ROUTERS, Router
from .engine_client import EngineClient, Receiver, as_exception
from .engine_process import Add

if TYPE_CHECKING:
    from .config import EngineConfig
    from .engine.metrics import EngineInfo

_logger = logging.getLogger(__name__)


@dataclass
class _Request:
    """One that is open. client: who serves it; None until it is routed."""

    receiver: Receiver
    client: EngineClient | None = None


class Replicas:
    """Has the methods of an EngineClient, over as many as ``parallel.dp`` says. Any thread may call any method.

    A thread of its own prepares requests, as long as it takes, and sends each where the router says. The router sees what was sent
    to each replica and has not ended there, exactly. A replica that dies ends its own requests with EngineDeadError; the others
    serve on, behind a router that begins anew, until none is left.

    info    of one replica: the one with the least room
    living  number of a replica -> who talks to it
    """

    def __init__(self, config: EngineConfig, start_timeout_s: float | None) -> None:
        """They start at the same time, and may take so long; None: as long as they live. Raises ValueError for too many, and what
        goes wrong first, as ``EngineClient.wait_until_ready`` does; none is left then."""
        check_processes(config)
        self._config = config
        self._clients: list[EngineClient] = []
        self._lock = threading.RLock()  # of all that follow
        self._router: Router = ROUTERS[config.router](config.seed)
        self._routed_to: list[EngineClient] = []  # those that the router knows by their places
        self._requests: dict[str, _Request] = {}
        self._keys = itertools.count()
        self._inbox: queue.SimpleQueue[tuple[str, Callable[[], Add] | None] | None] = queue.SimpleQueue()
        try:
            for index, own in enumerate(replica_configs(config)):
                self._clients.append(EngineClient(own, f"replica {index}", config.parallel.step_timeout_s))
            self.info = min(self._wait_until_ready(start_timeout_s), key=lambda info: info.num_blocks)
        except BaseException:
            for client in self._clients:
                client.shutdown()
            raise
        self._routed_to = list(self._clients)
        threading.Thread(target=self._route, daemon=True, name="kernelswap-router").start()

    @property
    def living(self) -> dict[int, EngineClient]:
        return {index: client for index, client in enumerate(self._clients) if not client.is_dead}

    @property
    def is_dead(self) -> bool:
        return not self.living

    @property
    def dead_error(self) -> EngineDeadError | None:
        """Why no request can be sent any more; None while a replica lives."""
        if not self.is_dead:
            return None
        errors = [error for client in self._clients if (error := client.dead_error) is not None]
        dead = EngineDeadError("; ".join(str(error) for error in errors))
        dead.__cause__ = errors[0]
        return dead

    def open(self, receiver: Receiver, message: Callable[[], Add]) -> str:
        """As of an EngineClient. ``message`` is called in the router's thread."""
        key = f"replicated-{next(self._keys)}"  # unlike those that a client makes up
        with self._lock:
            if (error := self.dead_error) is not None:
                raise error
            self._requests[key] = _Request(receiver)
        self._inbox.put((key, message))
        return key

    def abort(self, key: str) -> None:
        """Ends a request, if it is running; its receiver gets a last output."""
        self._inbox.put((key, None))  # behind the request itself

    def close(self, key: str, abort: bool = False) -> None:
        """Hands nothing more to the receiver."""
        with self._lock:
            request = self._requests.pop(key, None)
            if request is not None and request.client is not None:
                request.client.close(key, abort)

    def place(self, key: str) -> int | None:
        """Number of the replica that serves an open request; None until that is decided."""
        request = self._requests.get(key)
        return None if request is None or request.client is None else self._clients.index(request.client)

    def stop(self) -> None:
        """Makes the processes end, and everybody who waits hear of it. Does not wait for that."""
        with self._lock:
            for client in self._clients:
                client.stop()
            waiting = [request for request in self._requests.values() if request.client is None]
        self._inbox.put(None)
        for request in waiting:
            _tell(request.receiver, self.dead_error)

    def shutdown(self) -> None:
        """Stops, and waits until the processes are gone."""
        self.stop()
        for client in self._clients:
            client.shutdown()

    def _wait_until_ready(self, timeout_s: float | None) -> list[EngineInfo]:
        """Of each, whichever is ready first."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        missing, infos = {client.pipe: client for client in self._clients}, []
        while missing:
            ready = wait(missing, None if deadline_s is None else max(0.0, deadline_s - time.monotonic()))
            if not ready:
                late = ", ".join(f"{self._clients.index(client)}" for client in missing.values())
                raise EngineDeadError(f"of {len(self._clients)} replicas, {late} were not ready after {timeout_s:g} s")
            infos += [missing.pop(pipe).wait_until_ready(0.0) for pipe in list(missing) if pipe in ready]
        return infos

    def _route(self) -> None:
        """Runs in a thread."""
        while (item := self._inbox.get()) is not None:
            key, message = item
            if (request := self._requests.get(key)) is None:
                continue  # it was closed before its turn came
            if message is None:
                if request.client is not None:
                    request.client.abort(key)
                continue
            try:
                self._send(key, message())
            except BaseException as error:  # a tokenizer's panic is no Exception; nobody else would tell of it
                _tell(request.receiver, as_exception(error))

    def _send(self, key: str, add: Add) -> None:
        num_completions, num_tokens = getattr(add.params, "n", 1), len(add.prompt.token_ids)
        with self._lock:
            while (request := self._requests.get(key)) is not None:
                if (dead := self.dead_error) is not None:
                    raise dead
                client = self._choose(add)
                client.in_flight.add(key, num_completions, num_tokens)
                try:
                    client.open(request.receiver, lambda: add, key)
                except EngineDeadError:
                    continue  # it died just now
                request.client = client
                return

    def _choose(self, add: Add) -> EngineClient:
        living = list(self.living.values())
        if living != self._routed_to:
            _logger.error("%d of %d replicas are left", len(living), len(self._clients))
            self._routed_to, self._router = living, ROUTERS[self._config.router](self._config.seed)
        prompt = add.prompt
        if add.lora_request is not None:  # whose blocks are of no use to others
            prompt = replace(prompt, cache_salt=f"{add.lora_request.lora_name}/{prompt.cache_salt or ''}")
        return living[self._router.route(prompt, [client.in_flight for client in living])]


def of_the_living(answers: Mapping[int, Any], dead: EngineDeadError | None) -> dict[int, Any]:
    """Answers of engines to one call, without those of engines that died over it. Raises what else is an exception among them, and
    ``dead`` if no answer is left."""
    found = {index: answer for index, answer in answers.items() if not isinstance(answer, EngineDeadError)}
    for answer in found.values():
        if isinstance(answer, BaseException):
            raise answer
    if not found:
        raise dead or EngineDeadError("no engine is left")
    return found


def _tell(receiver: Receiver, error: Exception | None) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody will ever ask
        receiver.loop.call_soon_threadsafe(receiver.put, error)
