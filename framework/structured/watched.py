"""A thread for calls that nothing can interrupt: a library computes a mask in microseconds, or for minutes."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Final

MAX_STUCK: Final = 8
"""Threads left behind, beside which more calls are begun."""


class WatchedThread:
    """Makes calls in a thread beside the caller's, and leaves the thread behind with one that takes too long; used from one thread.

    max_s  CPU time of one call: others on the machine do not count
    """

    def __init__(self, max_s: float) -> None:
        self.max_s = max_s
        self._calls: Sequence[Callable[[], None]] = ()
        self._errors: dict[int, BaseException] = {}  # of calls that were made here
        self._worker: _Worker | None = None
        self._stuck: list[_Worker] = []

    @property
    def num_stuck(self) -> int:
        """Calls that were left behind, and still run."""
        self._stuck = [worker for worker in self._stuck if worker.thread.is_alive()]
        return len(self._stuck)

    def begin(self, calls: Sequence[Callable[[], None]], here: bool = False) -> None:
        """Has calls made in order; those before are finished. here: in the caller's thread, where nothing watches them."""
        assert not self._calls and not self._errors
        if here:
            self._errors = dict(_errors(calls))
            return
        self._calls = calls
        self._begin(calls)

    def finish(self) -> dict[int, BaseException]:
        """Waits for the calls. Returns what some of them raised, by index: TimeoutError for those that were left behind."""
        calls, self._calls = self._calls, ()
        errors, self._errors = self._errors, {}
        begin = 0
        while begin < len(calls):
            worker = self._worker
            assert worker is not None
            try:
                self._wait(worker)
            finally:
                num_done = worker.num_done
                if num_done < len(calls) - begin:
                    self._leave(worker)
                errors |= {begin + i: error for i, error in list(worker.errors.items()) if i < num_done}
            begin += num_done
            if begin < len(calls):
                errors[begin] = TimeoutError(f"a call took more than {self.max_s:g} s")
                begin += 1
                self._begin(calls[begin:])
        return errors

    def _begin(self, calls: Sequence[Callable[[], None]]) -> None:
        if calls:
            self._worker = self._worker or _Worker(self)
            self._worker.begin(calls)

    def _wait(self, worker: _Worker) -> None:
        while not worker.done.acquire(timeout=self.max_s / 4):
            if worker.cpu_s() - worker.call_began_s > self.max_s:
                return

    def _leave(self, worker: _Worker) -> None:
        worker.leave()
        self._stuck.append(worker)
        self._worker = None


class _Worker:
    """The thread.

    num_done, errors  calls of the last batch that have returned, and what they raised
    call_began_s      CPU time of the thread when it began the latest
    done              released after a batch
    """

    def __init__(self, owner: WatchedThread) -> None:
        self.num_done, self.call_began_s = 0, 0.0
        self.errors: dict[int, BaseException] = {}
        self.done = threading.Semaphore(0)
        self._has_begun = threading.Semaphore(0)
        self._inbox: SimpleQueue[Sequence[Callable[[], None]] | None] = SimpleQueue()
        self._is_left = False
        self.thread = threading.Thread(target=self._work, daemon=True, name="kernelswap-masks")
        self.thread.start()
        assert self.thread.ident is not None
        self._clock = time.pthread_getcpuclockid(self.thread.ident)
        weakref.finalize(owner, self._inbox.put, None)

    def cpu_s(self) -> float:
        return time.clock_gettime(self._clock)

    def begin(self, calls: Sequence[Callable[[], None]]) -> None:
        self.num_done, self.errors = 0, {}
        self._inbox.put(calls)
        self._has_begun.acquire()  # or it would have to wait until the caller lets others run, with its next kernel

    def leave(self) -> None:
        self._is_left = True
        self._inbox.put(None)
        with contextlib.suppress(OSError, AttributeError):  # only Linux knows the priority of a thread
            os.setpriority(os.PRIO_PROCESS, self.thread.native_id or 0, 19)

    def _work(self) -> None:
        while (calls := self._inbox.get()) is not None:
            self._has_begun.release()
            for index, call in enumerate(calls):
                self.call_began_s = time.thread_time()
                try:
                    call()
                except BaseException as error:  # a library's panic is no Exception
                    self.errors[index] = error
                if self._is_left:
                    return
                self.num_done += 1
            self.done.release()


def _errors(calls: Sequence[Callable[[], None]]) -> Iterator[tuple[int, BaseException]]:
    """Makes calls; what some of them raised, by index."""
    for index, call in enumerate(calls):
        try:
            call()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # or a panic
            yield index, error
