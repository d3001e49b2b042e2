"""What the driver asks of those who start workers."""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Protocol

from ..messages import Start


class Launched(Protocol):
    """A worker that was started, as the driver sees it.

    name      how an error calls it
    pipe      the driver's end; it closes when the worker ends
    sentinel  what ``multiprocessing.connection.wait`` finds ready once the worker has ended; None: the pipe alone tells
    """

    name: str
    pipe: Connection
    sentinel: int | None

    def join(self, timeout_s: float) -> bool:
        """Waits for its end; whether it has come."""

    def kill(self) -> None:
        """Ends it at once, as far as that is possible."""

    def ended(self) -> str:
        """How it ended, once it has."""


class Launcher(Protocol):
    """Places workers and starts them. They run ``Worker.run``.

    host  of this machine, as they reach it
    """

    host: str

    def launch(self, start: Start) -> Launched:
        """Starts one; does not wait until it is ready. Called for each rank in order. Raises ValueError where there is no place,
        DeviceLostError for one that ends before it can be spoken with."""

    def close(self) -> None:
        """Once all workers have ended: gives back what placed them. May be called again."""
