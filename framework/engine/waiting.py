"""Requests that wait for a seat."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from .request import Request


class WaitingQueue:
    """In the policy's order, all of them able to go on as soon as there is room and they are ready.

    num_not_ready  how many let others by when they were last asked
    unready        those whose ``is_ready`` raised, and what; whoever schedules takes them away and ends them
    """

    def __init__(self) -> None:
        self._requests: list[Request] = []  # sorted
        self.num_not_ready = 0
        self.unready: list[tuple[Request, Exception]] = []

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: Request) -> None:
        """Puts a request in its place."""
        if not self._requests or self._requests[-1] < request:
            self._requests.append(request)
        else:
            insort(self._requests, request)

    def discard(self, request: Request) -> None:
        """Takes a request out; nothing if it is not here."""
        index = bisect_left(self._requests, request)
        if index < len(self._requests) and self._requests[index] is request:
            del self._requests[index]

    def ready(self) -> Iterator[Request]:
        """Those that are ready, in order; each is to be discarded before the next one is asked for."""
        self.num_not_ready = 0
        while self.num_not_ready < len(self._requests):
            request = self._requests[self.num_not_ready]
            if request.is_ready is None or self._is_ready(request):
                yield request
            else:
                self.num_not_ready += 1

    def _is_ready(self, request: Request) -> bool:
        assert request.is_ready is not None
        try:
            return request.is_ready()
        except Exception as error:
            self.unready.append((request, error))
            return False
