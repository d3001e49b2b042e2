"""Workers as processes of this machine."""

from __future__ import annotations

import multiprocessing
import pickle
from multiprocessing.connection import Connection
from typing import Any

from ...failures import exit_text
from ...forks import keep_from_forks
from ...logs import LOGGER
from ..messages import Start
from ..rendezvous import LOCAL
from ..worker import run_worker


class ProcessLauncher:
    """Starts them with ``spawn``: a script that builds an engine needs the guard ``if __name__ == "__main__"``."""

    host = LOCAL

    def launch(self, start: Start) -> LaunchedProcess:
        context = multiprocessing.get_context("spawn")
        pipe, theirs = context.Pipe()
        arguments = (pickle.dumps(start), theirs, LOGGER.getEffectiveLevel())
        process = context.Process(target=run_worker, args=arguments, daemon=True, name=f"kernelswap-rank-{start.place.rank}")
        process.start()
        keep_from_forks(process)
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
