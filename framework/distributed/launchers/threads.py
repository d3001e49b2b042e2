"""Workers as threads of this process: for tests and for debugging. They speak by pipes as processes do; the factory is shared, so
that it can bring what connects them."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

from ..messages import Start
from ..rendezvous import LOCAL
from ..worker import Worker


class ThreadLauncher:
    """Starts them."""

    host = LOCAL

    def launch(self, start: Start) -> LaunchedThread:
        pipe, theirs = multiprocessing.Pipe()
        name = f"kernelswap-rank-{start.place.rank}"
        thread = threading.Thread(target=Worker(theirs).run, args=(lambda: start,), daemon=True, name=name)
        thread.start()
        return LaunchedThread(thread, pipe, getattr(start.factory, "abort", None))

    def close(self) -> None:
        """Nothing placed them."""


class LaunchedThread:
    """One thread."""

    sentinel = None

    def __init__(self, thread: threading.Thread, pipe: Connection, abort: Callable[[str], None] | None) -> None:
        """abort: ends what threads of this factory wait for each other."""
        self.pipe, self.name = pipe, f"thread {thread.name}"
        self._thread, self._abort = thread, abort

    def join(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def kill(self) -> None:
        """A thread ends by itself, once it finds its pipe closed and waits for no other."""
        if self._abort is not None:
            self._abort("the engine was ended")
        self.pipe.close()

    def ended(self) -> str:
        return "an exception; the output says why"
