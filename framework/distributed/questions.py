"""What all ranks are asked, while steps go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..engine.executor import LoadedAdapter
from ..failures import Failure
from .messages import DropAdapter


class Question:
    """found: by rank, what each answered, or failed with."""

    def __init__(self, size: int, receive: Callable[[float | None], None]) -> None:
        """size: how many ranks there are. receive: as ``DistributedExecutor.receive``."""
        self.size, self.receive = size, receive
        self.found: dict[int, Any] = {}

    @property
    def is_answered(self) -> bool:
        """By all."""
        return len(self.found) == self.size

    def done(self) -> bool:
        """Whether all have answered, with what has come by now."""
        if not self.is_answered:
            self.receive(0.0)
        return self.is_answered


class RanksLoad:
    """An adapter that all ranks read. As AdapterLoad has it."""

    def __init__(self, path: str, question: Question, send: Callable[[Any], None]) -> None:
        """send: as ``DistributedExecutor.send``."""
        self._path, self._question, self._send = path, question, send
        self.done = question.done

    def result(self) -> LoadedAdapter:
        """Raises what the first rank failed with, and ValueError if ranks read different adapters; no rank holds it then."""
        while not self.done():
            self._question.receive(None)
        found = sorted(self._question.found.items())
        failures = {rank: one for rank, one in found if isinstance(one, Failure)}
        loaded = {rank: one for rank, one in found if isinstance(one, LoadedAdapter)}
        keys = {one.key for one in loaded.values()}
        if not failures and len(keys) == 1:
            first = loaded[0]
            return LoadedAdapter(first.key, first.rank, sum(one.num_bytes for one in loaded.values()))
        for rank, one in loaded.items():
            self._send(DropAdapter(one.key, [rank]))
        for rank, failure in failures.items():
            error = failure.error()
            error.add_note(f"This was on rank {rank} of {self._question.size}.")
            raise error
        raise ValueError(
            f"the ranks read {len(keys)} different adapters from {self._path}: it changed meanwhile, or is another folder on "
            "other machines; try again, or give one that is the same"
        )
