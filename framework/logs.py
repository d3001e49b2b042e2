"""Where log lines go, in whichever process. What is logged never holds a prompt, an output or a key."""

from __future__ import annotations

import logging
import threading

from tqdm import tqdm

LOGGER = logging.getLogger("framework")
"""The parent of all loggers here."""


def set_up_logging(level: int | str) -> None:
    """Lines of this level and above go to stderr, with time and process. level: of ``logging``, or its name in any case; trace,
    which only HTTP has, is debug here. Bars of progress stay among the threads of this process."""
    tqdm.set_lock(threading.RLock())  # its own is a file in /dev/shm, which a process that is killed leaves there
    name = level.upper() if isinstance(level, str) else level
    LOGGER.setLevel("DEBUG" if name == "TRACE" else name)
    if not LOGGER.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(processName)s %(name)s: %(message)s"))
        LOGGER.addHandler(handler)


def memory_size(num_bytes: float) -> str:
    """As people say it."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 0.05 * 2**30 else f"{num_bytes / 2**20:.1f} MiB"
