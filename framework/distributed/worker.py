"""A rank's loop: steps in; out comes an output from the output rank, and what went wrong from any."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, cast

from ..engine.errors import DeviceLostError
from ..engine.step import StepInput
from ..failures import Failure
from ..logs import set_up_logging
from .handshake import flat, versions
from .messages import (
    FACTS,
    Answer,
    AskLoads,
    AskPlan,
    Built,
    DropAdapter,
    Hello,
    LoadAdapter,
    Masks,
    MoveExperts,
    Ping,
    Pong,
    Start,
    Steps,
)

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ..engine.executor import Executor, Handle, HoldsAdapters, LoadedAdapter, MaskedHandle
    from ..worker.local_executor import LocalExecutor

NO_STEP = -1
"""Key of a failure that is of no step."""

THREAD_VARIABLE = "OMP_NUM_THREADS"


class Worker:
    """Speaks with the driver, and runs its steps.

    A thread listens, so that the driver never waits for room in the pipe while a step runs here, and so that its end is noticed,
    whatever this rank waits for. gone: what is done then; without, the loop ends after the step that runs.
    """

    def __init__(self, pipe: Connection, gone: Callable[[], object] | None = None) -> None:
        self._pipe, self._gone = pipe, gone
        self._sending = threading.Lock()
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        self._steps: deque[tuple[int, Handle, bool]] = deque()  # not told of yet, and whether they are to be
        self._unsampled = False  # the youngest of them
        threading.Thread(target=self._listen, daemon=True, name="kernelswap-rank-listener").start()

    def run(self, start: Callable[[], Start]) -> None:
        """To the end. start: makes what the worker is to do, once the driver knows its versions."""
        try:
            self._send(Hello(versions()))
            executor = self._build(start)
            if executor is not None:
                try:
                    self._serve(executor)
                finally:
                    executor.shutdown()
        except OSError:
            pass  # the driver is gone
        finally:
            hang_up(self._pipe)

    def _build(self, start: Callable[[], Start]) -> Executor | None:
        """None if it cannot be built, which the driver is told."""
        try:
            given = start()
            self._place = given.place
            executor = given.factory(given.config, given.place)
            facts = {name: getattr(executor, name) for name in FACTS}
            built = Built(flat(given.config), executor.plan_report(), facts)
        except Exception as error:
            self._send(Failure.of(error, None, "a worker"))
            return None
        self._send(built)
        return executor

    def _serve(self, executor: Executor) -> None:
        """Takes in what is there before it waits for a step, so that as many are launched as the driver has submitted."""
        while True:
            can_finish = len(self._steps) > self._unsampled
            if can_finish and self._inbox.empty():
                self._finish()
                continue
            message = self._inbox.get()
            if message is None:
                return
            if isinstance(message, StepInput):
                self._submit(executor, message)
            elif isinstance(message, Steps):
                step = replace(message.inputs[self._place.dp_rank], step_id=message.step_id)
                self._submit(executor, step, asked=bool(step.seats))
            elif isinstance(message, Masks):
                self._sample(message)
            elif isinstance(message, LoadAdapter):
                self._load(executor, message)
            elif isinstance(message, DropAdapter):
                if self._place.rank in message.ranks:
                    cast("HoldsAdapters", executor).drop_adapter(message.key)
            elif isinstance(message, AskPlan):
                self._send(Answer(message.key, executor.plan_report()))
            else:
                self._balance(cast("LocalExecutor", executor), message)

    def _submit(self, executor: Executor, step: StepInput, asked: bool = True) -> None:
        """asked: whether the driver waits for its output."""
        try:
            self._steps.append((step.step_id, executor.submit(step), asked and self._place.is_output))
            self._unsampled = bool(step.masked)
        except Exception as error:
            self._fail(step.step_id, error)

    def _sample(self, message: Masks) -> None:
        """Of a step whose submission failed, or that the driver gave up, there is nothing to sample."""
        if not self._steps or self._steps[-1][0] != message.step_id or message.scheduler != self._place.dp_rank:
            return
        self._unsampled = False
        try:
            cast("MaskedHandle", self._steps[-1][1]).sample(message.masks)
        except Exception as error:
            self._steps.pop()
            self._fail(message.step_id, error)

    def _load(self, executor: Executor, message: LoadAdapter) -> None:
        """The driver is told by the thread that reads."""

        def tell(load: Future[LoadedAdapter]) -> None:
            with contextlib.suppress(OSError):  # the driver is gone
                if load.cancelled():
                    return
                if (error := load.exception()) is not None:
                    self._send(Failure.of(error, message.key, f"the worker of rank {self._place.rank}"))
                else:
                    self._send(Answer(message.key, load.result()))

        cast("Future[LoadedAdapter]", cast("HoldsAdapters", executor).load_adapter(message.request)).add_done_callback(tell)

    def _balance(self, executor: LocalExecutor, message: AskLoads | MoveExperts) -> None:
        """A rank that has not the experts that others think it has is of no use."""
        try:
            if isinstance(message, AskLoads):
                self._send(Answer(message.key, executor.expert_loads()))
            else:
                executor.move_experts(message.wanted)
        except Exception as error:
            lost = DeviceLostError(f"experts could not be moved: {type(error).__name__}: {error}")
            self._fail(NO_STEP, lost)

    def _finish(self) -> None:
        """Of the oldest step."""
        step_id, handle, asked = self._steps.popleft()
        try:
            output = handle.result()
        except Exception as error:
            self._fail(step_id, error)
            return
        if asked:
            self._send(output)

    def _fail(self, step_id: int, error: Exception) -> None:
        self._send(Failure.of(error, step_id, f"the worker of rank {self._place.rank}"))

    def _send(self, message: Any) -> None:
        pickled = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        with self._sending:
            self._pipe.send_bytes(pickled)

    def _listen(self) -> None:
        """Runs in a thread."""
        try:
            while (message := pickle.loads(self._pipe.recv_bytes())) is not None:
                if isinstance(message, Ping):
                    self._send(Pong())
                else:
                    self._inbox.put(message)
        except (EOFError, OSError):
            if self._gone is not None:
                self._gone()
        self._inbox.put(None)


def run_worker(start: bytes, pipe: Connection, log_level: int) -> None:
    """Main function of a worker's process. start: pickled; it is read only once the driver has been told its versions."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides when to end
    os.environ.setdefault(THREAD_VARIABLE, "1")  # ranks share the processor
    set_up_logging(log_level)
    Worker(pipe, end_process).run(partial(pickle.loads, start))


def hang_up(pipe: Connection) -> None:
    """Lets both ends find it closed, and any thread that reads from it. Closing alone waits for such a thread."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(pipe.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)


def end_process() -> None:
    """At once: what a step waits for will never come."""
    os._exit(1)
