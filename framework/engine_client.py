"""The caller's side of the engine's process: starts it, sends to it, hands on what comes from it, and notices its end."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import multiprocessing
import os
import pickle
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Protocol

from .engine.errors import EngineDeadError
from .engine.router import InFlight
from .engine_process import Abort, Add, Answer, Call, Ready, run_engine
from .failures import Failure, exit_text
from .forks import keep_from_forks
from .logs import LOGGER, set_up_logging

if TYPE_CHECKING:
    from .config import EngineConfig
    from .engine.metrics import EngineInfo

_logger = logging.getLogger(__name__)
SHUTDOWN_TIMEOUT_S = 10.0
"""How long the process may take to end by itself."""


class Loop(Protocol):
    """Where a receiver lives: an event loop, or what calls it back in another way."""

    def call_soon_threadsafe(self, callback: Callable[[Any], None], argument: Any) -> Any:
        """Calls it in the loop's thread, soon. Raises RuntimeError once nobody will."""


class Receiver(Protocol):
    """Who waits for what comes under one key."""

    @property
    def loop(self) -> Loop: ...

    def put(self, item: Any) -> None:
        """Takes an output, an answer, or the exception that ends it all. Called in the loop's thread."""


class EngineClient:
    """Two threads stand between the event loops and the pipe, so that no loop ever waits: the writer prepares messages and sends
    them in order; the reader hands on what comes, many outputs at a time. Any thread may call any method.

    The process is started with ``spawn``, and is of use after ``wait_until_ready``.

    in_flight  of those whose requests are counted there (see replicas.py): what was sent and has not ended
    pipe       to the process; nobody else reads it, but that it can be read tells when the engine is ready
    """

    def __init__(self, config: EngineConfig, name: str = "the engine", silence_s: float | None = None) -> None:
        """name: in texts of errors. silence_s: an engine with something in flight that sends nothing for so long, or at most twice
        as long, hangs, and is ended; None: it may take its time."""
        self._name, self._silence_s = name, silence_s
        self.in_flight = InFlight()
        context = multiprocessing.get_context("spawn")
        self.pipe, child = context.Pipe()
        arguments = (run_engine, LOGGER.getEffectiveLevel(), config, child)
        # Not daemonic: those may start no processes, as an executor does that has ranks. It ends with this one all the same.
        self._process = context.Process(target=_run, args=arguments, daemon=False, name="kernelswap-engine")
        self._process.start()
        self._process_id = os.getpid()
        keep_from_forks(self._process)
        atexit.register(self._terminate)
        child.close()
        self._start_s = time.perf_counter()
        self._lock = threading.RLock()  # of the two that follow
        self._receivers: dict[str, Receiver] = {}
        self._unanswered: set[str] = set()  # keys of calls
        self._death: tuple[str, Exception | None] | None = None
        self._keys = itertools.count()
        self._outbox: queue.SimpleQueue[tuple[str, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True, name="kernelswap-engine-reader")

    def wait_until_ready(self, timeout_s: float) -> EngineInfo:
        """What the engine was built as. Raises what went wrong there, or EngineDeadError if it ended without a word or is not ready
        in time; the process is gone then."""
        try:
            self.info = self._ready(timeout_s)
        except BaseException:
            self._end_process(0)
            raise
        start_s = time.perf_counter() - self._start_s
        phase = self._name.removeprefix("the ")
        _logger.info("%s: up to %d tokens per request, in %.1f s", phase, self.info.max_model_len, start_s)
        self._reader.start()
        threading.Thread(target=self._write, daemon=True, name="kernelswap-engine-writer").start()
        return self.info

    @property
    def living(self) -> dict[int, EngineClient]:
        """As Replicas has it."""
        return {0: self}

    @property
    def is_dead(self) -> bool:
        return self._ending is not None

    @property
    def dead_error(self) -> EngineDeadError | None:
        """Why no message can be sent any more; None while the engine lives. A new one each time: tracebacks would add up."""
        if (ending := self._ending) is None:
            return None
        reason, cause = ending
        error = EngineDeadError(reason)
        error.__cause__ = cause
        return error

    def open(self, receiver: Receiver, message: Callable[[], Add | Call], key: str | None = None) -> str:
        """Sends what ``message`` returns, and from now on hands what comes back to ``receiver``; returns the key of both, which is
        made up if it is not given. ``message`` is called in the writer's thread; what it raises goes to the receiver."""
        key = str(next(self._keys)) if key is None else key
        with self._lock:
            if (error := self.dead_error) is not None:
                raise error
            self._receivers[key] = receiver
        self._outbox.put((key, message))
        return key

    def abort(self, key: str) -> None:
        """Ends a request, if it is running; its receiver gets a last output."""
        self._outbox.put((key, Abort))

    def close(self, key: str, abort: bool = False) -> None:
        """Hands nothing more to the receiver."""
        with self._lock:
            waited = self._receivers.pop(key, None) is not None
        if waited and abort:
            self.abort(key)
            self.in_flight.take(key, finished=True)

    def stop(self) -> None:
        """Makes the process end, and everybody who waits hear of it. Does not wait for that."""
        self._die(f"{self._name} was shut down")

    def shutdown(self) -> None:
        """Stops, and waits until the process is gone. Not so in a process that was forked: it is not its own."""
        if self._is_forked:
            return
        if self._reader.ident is None:  # it was never ready
            self._end_process(0)
            return
        self.stop()
        self._reader.join(SHUTDOWN_TIMEOUT_S)
        self._process.kill()
        self._reader.join()

    @property
    def _is_forked(self) -> bool:
        return self._process_id != os.getpid()

    @property
    def _ending(self) -> tuple[str, Exception | None] | None:
        if self._is_forked:
            reason = f"{self._name} belongs to the process that started it ({self._process_id}), and this one was forked from it"
            return reason, None
        return self._death

    def _terminate(self) -> None:
        if not self._is_forked:
            self._process.terminate()

    def _ready(self, timeout_s: float) -> EngineInfo:
        try:
            if not self.pipe.poll(timeout_s):
                raise EngineDeadError(f"{self._name}'s process was not ready after {timeout_s:g} s")
            message = self.pipe.recv()
        except (EOFError, OSError):
            raise EngineDeadError(f"while it started, {self._name}'s process ended with {self._end_process()}") from None
        if isinstance(message, Failure):
            raise message.error()
        assert isinstance(message, Ready)
        return message.info

    def _end_process(self, timeout_s: float = SHUTDOWN_TIMEOUT_S) -> str:
        """Returns how it ended."""
        self._process.join(timeout_s)
        self._process.kill()
        self._process.join()
        atexit.unregister(self._terminate)
        return exit_text(self._process.exitcode)

    def _write(self) -> None:
        """Runs in a thread."""
        while (item := self._outbox.get()) is not None:
            key, message = item
            if self._death is not None:
                continue  # nobody waits for it
            try:
                made = message()
                pickled = pickle.dumps(made)
            except BaseException as error:  # a tokenizer's panic is no Exception; nobody else would tell of it
                self.in_flight.take(key, finished=True)
                self._hand_on([(key, as_exception(error))])
                continue
            if isinstance(made, Call):
                self._unanswered.add(key)
            try:
                self.pipe.send((key, pickled))
            except OSError:
                return  # the reader finds out why the process is gone
        with contextlib.suppress(OSError):  # it may be gone already
            self.pipe.send(None)

    def _read(self) -> None:
        """Runs in a thread."""
        cause: Exception | None = None
        try:
            while True:
                if self._silence_s is not None and self._is_silent(self._silence_s):
                    reason = f"{self._name} hangs: it said nothing for {self._silence_s:g} s (parallel.step_timeout_s)"
                    self._process.kill()
                    break
                message = self.pipe.recv()
                if isinstance(message, Failure) and message.key is None:
                    cause = message.error()
                    reason = f"{self._name} failed: {message.text}"
                    break
                self._dispatch(message)
        except (EOFError, OSError):
            reason = f"{self._name}'s process ended with {self._end_process()}"
        except Exception as error:
            cause, reason = error, f"a message of {self._name}'s process could not be read: {error}"
        self._die(reason, cause)
        self._end_process()

    def _is_silent(self, timeout_s: float) -> bool:
        """Waits for a message. True if none comes for so long although there was work, or a call, when that time began: of whoever
        is aborted, too, something comes."""
        was_busy = False
        while not self.pipe.poll(timeout_s):
            if was_busy:
                return True
            was_busy = self.in_flight.num_running > 0 or bool(self._unanswered)
        return False

    def _dispatch(self, message: Any) -> None:
        if isinstance(message, Failure):
            assert isinstance(message.key, str)
            self._unanswered.discard(message.key)
            self.in_flight.take(message.key, finished=True)
            self._hand_on([(message.key, message.error())])
        elif isinstance(message, Answer):
            self._unanswered.discard(message.key)
            self._hand_on([(message.key, message.value)])
        else:
            for output in message:
                self.in_flight.take(output.request_id, output.finished)
            self._hand_on((output.request_id, output) for output in message)

    def _hand_on(self, items: Iterable[tuple[str, Any]]) -> None:
        """Wakes each loop once, however many of its receivers get something."""
        batches: defaultdict[Loop, list[tuple[Receiver, Any]]] = defaultdict(list)
        for key, item in items:
            if (receiver := self._receivers.get(key)) is not None:
                batches[receiver.loop].append((receiver, item))
        for loop, batch in batches.items():
            try:
                loop.call_soon_threadsafe(_put_all, batch)
            except RuntimeError:  # the loop is closed: nobody will ever ask
                self._abandon(loop)

    def _abandon(self, loop: Loop) -> None:
        with self._lock:
            keys = [key for key, receiver in self._receivers.items() if receiver.loop is loop]
        for key in keys:
            self.close(key, abort=True)

    def _die(self, reason: str, cause: Exception | None = None) -> None:
        with self._lock:
            if self._ending is not None:
                return
            self._death = (reason, cause)
            keys = list(self._receivers)
        self._outbox.put(None)
        self._hand_on((key, self.dead_error) for key in keys)
        with self._lock:
            self._receivers.clear()


def _run(main: Callable[[EngineConfig, Connection], None], log_level: int, config: EngineConfig, pipe: Connection) -> None:
    """In the engine's process, which logs what its parent would."""
    set_up_logging(log_level)
    main(config, pipe)


def as_exception(error: BaseException) -> Exception:
    """Itself, or one with its text: what is no Exception is not for other threads."""
    return error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")


def connect(config: EngineConfig, start_timeout_s: float) -> EngineClient:
    """An engine in a process of its own, ready. Raises as ``EngineClient.wait_until_ready``."""
    client = EngineClient(config)
    client.wait_until_ready(start_timeout_s)
    return client


def _put_all(batch: list[tuple[Receiver, Any]]) -> None:
    for receiver, item in batch:
        receiver.put(item)
