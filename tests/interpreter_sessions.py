"""Test sessions in Triton's interpreter, one child process after the other, beside the session that starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path


class InterpreterSessions:
    """One session per file, begun in the background; ``result`` waits for one."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._running: subprocess.Popen[str] | None = None
        self._closed = False
        self._results: dict[Path, Future[tuple[int, str]]] = {file: self._pool.submit(self._run, file) for file in files}

    def result(self, file: Path) -> tuple[int, str]:
        """Exit code and output of a file's session."""
        return self._results[file].result()

    def close(self) -> None:
        """Ends what nobody waits for any more."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._running is not None:
            self._running.terminate()
        self._pool.shutdown()

    def _run(self, file: Path) -> tuple[int, str]:
        command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", str(file)]
        environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        self._running = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if self._closed:
            self._running.terminate()
        output, _ = self._running.communicate()
        return self._running.returncode, output
