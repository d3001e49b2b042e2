"""Workers as processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from ...failures import exit_text
from ...logs import LOGGER, set_up_logging
from ..messages import Start
from ..worker import Worker, end_process

THREAD_VARIABLE = "OMP_NUM_THREADS"


class ProcessLauncher:
    """Starts them with ``spawn``: a script that builds an engine needs the guard ``if __name__ == "__main__"``."""

    def launch(self, start: Start) -> LaunchedProcess:
        context = multiprocessing.get_context("spawn")
        pipe, theirs = context.Pipe()
        arguments = (pickle.dumps(start), theirs, LOGGER.getEffectiveLevel())
        process = context.Process(target=_run, args=arguments, daemon=True, name=f"kernelswap-rank-{start.place.rank}")
        process.start()
        theirs.close()
        return LaunchedProcess(process, pipe)

    def close(self) -> None:
        """Nothing placed them."""


class LaunchedProcess:
    """One process."""

    def __init__(self, process: Any, pipe: Connection) -> None:
        self.pipe, self.sentinel, self.name = pipe, process.sentinel, f"process {process.pid}"
        self.pid: int = process.pid
        self._process = process

    def join(self, timeout_s: float) -> bool:
        self._process.join(timeout_s)
        return not self._process.is_alive()

    def kill(self) -> None:
        self._process.kill()

    def ended(self) -> str:
        return exit_text(self._process.exitcode)


def _run(start: bytes, pipe: Connection, log_level: int) -> None:
    """In the worker's process. It unpickles its start only when the driver has been told its versions."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides when to end
    os.environ.setdefault(THREAD_VARIABLE, "1")  # ranks share the processor
    set_up_logging(log_level)
    Worker(pipe, end_process).run(partial(pickle.loads, start))
