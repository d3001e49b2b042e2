"""The workers of one executor, as the driver holds them: their pipes, their ends, their silence."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from .launchers.protocol import Launched, Launcher
from .messages import Ping, Pong, Start

GRACE_S, KILL_S, PONG_S = 5.0, 5.0, 1.0
"""How long a worker may take to end by itself, to be gone once it is killed, and to answer a ping."""


class Silence(Exception):
    """A worker neither takes nor gives messages."""


class Workers:
    """One per rank, in order. timeout_s: how long a worker may leave a message half read or written, or give no sign of life.
    ping_s: between two pings; the second finds whether the first was answered."""

    def __init__(self, launcher: Launcher, timeout_s: float) -> None:
        self._launcher, self._timeout_s = launcher, timeout_s
        self.ping_s = timeout_s / 2
        self._workers: list[Launched] = []
        self._silent: set[int] = set()  # ranks that have not answered the last ping
        self._pinged_s = time.monotonic()
        self._process_id = os.getpid()

    def __len__(self) -> int:
        return len(self._workers)

    def start(self, starts: Sequence[Start]) -> None:
        for start in starts:
            worker = self._launcher.launch(start)
            self._workers.append(worker)
            _limit_waits(worker.pipe, self._timeout_s)
        sentinels = [worker.sentinel for worker in self._workers if worker.sentinel is not None]
        self._waitables: list[Any] = [*(worker.pipe for worker in self._workers), *sentinels]

    def send(self, message: bytes) -> None:
        """To all of them. Raises Silence, and OSError if one has ended."""
        for rank, worker in enumerate(self._workers):
            try:
                worker.pipe.send_bytes(message)
            except BlockingIOError:
                raise Silence(f"{self.named([rank])} took no message {self._within}") from None

    def wait(self, timeout_s: float | None, *beside: Connection) -> Sequence[Any]:
        """Until there is something to ``receive``, or to read from what is waited for beside. An interrupt here changes nothing."""
        return wait([*self._waitables, *beside], timeout_s)

    def receive(self, ready: Sequence[Any]) -> tuple[list[tuple[int, Any]], list[int]]:
        """(rank, message) of what ``wait`` found, at most one per rank; ranks whose worker has ended. Raises Silence."""
        messages: list[tuple[int, Any]] = []
        ended: list[int] = []
        for rank, worker in enumerate(self._workers):
            if worker.pipe in ready:  # first what it had to say
                try:
                    message = pickle.loads(worker.pipe.recv_bytes())
                except BlockingIOError:
                    raise Silence(f"{self.named([rank])} broke off a message, and did not go on {self._within}") from None
                except (EOFError, OSError):
                    ended.append(rank)
                    continue
                if isinstance(message, Pong):
                    self._silent.discard(rank)
                else:
                    messages.append((rank, message))
            elif worker.sentinel in ready:
                ended.append(rank)
        return messages, ended

    @property
    def ping_is_due(self) -> bool:
        return time.monotonic() - self._pinged_s >= self.ping_s

    @property
    def all_answered(self) -> bool:
        """The last ping."""
        return not self._silent

    def ping(self) -> None:
        """Asks all of them for a sign of life. Raises Silence if one has not answered the last time."""
        if self._silent:
            raise Silence(f"{self.named(sorted(self._silent))} gave no sign of life {self._within}")
        self._ping()

    def who_hangs(self) -> str:
        """Asked when an answer is overdue."""
        with contextlib.suppress(Silence, OSError):
            self._ping()
        deadline_s = time.monotonic() + PONG_S
        while self._silent and (remaining_s := deadline_s - time.monotonic()) > 0:
            _, ended = self.receive(self.wait(remaining_s))
            if ended:
                return self.endings(ended)
        if self._silent:
            return f"{self.named(sorted(self._silent))} gives no sign of life"
        return "every rank is alive; one computes, or waits for another, without end"

    def endings(self, ranks: Iterable[int]) -> str:
        """How the workers of ranks ended."""
        texts = []
        for rank in ranks:
            worker = self._workers[rank]
            ending = worker.ended() if worker.join(KILL_S) else "a closed pipe"
            texts.append(f"{self.named([rank])} ended with {ending}")
        return "; ".join(texts)

    def named(self, ranks: Sequence[int]) -> str:
        """How errors call them."""
        return ", ".join(f"rank {rank} ({self._workers[rank].name})" for rank in ranks)

    def end(self) -> None:
        """Lets them end by themselves, and kills those that do not."""
        if self._process_id != os.getpid():
            return
        for worker in self._workers:
            with contextlib.suppress(OSError):
                _limit_waits(worker.pipe, PONG_S)
                worker.pipe.send_bytes(pickle.dumps(None))
        deadline_s = time.monotonic() + GRACE_S
        for worker in self._workers:
            worker.join(max(0.0, deadline_s - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        """Ends them all; nothing is left of them. Not so in a process that was forked: they are not its own."""
        if self._process_id != os.getpid():
            return
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join(KILL_S)
            worker.pipe.close()
        self._launcher.close()

    @property
    def _within(self) -> str:
        return f"within {self._timeout_s:g} s (parallel.step_timeout_s)"

    def _ping(self) -> None:
        self._silent, self._pinged_s = set(range(len(self._workers))), time.monotonic()
        self.send(pickle.dumps(Ping()))


def _limit_waits(pipe: Connection, timeout_s: float) -> None:
    """Reading and writing wait no longer, and raise BlockingIOError then."""
    limit = struct.pack("ll", int(timeout_s), int(timeout_s % 1 * 1e6))
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            end.setsockopt(socket.SOL_SOCKET, option, limit)
