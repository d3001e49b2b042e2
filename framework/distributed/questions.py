"""What all ranks are asked, while steps go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..engine.executor import LoadedAdapter
from ..failures import Failure
from .messages import DropAdapter

if TYPE_CHECKING:
    from .executor import DistributedExecutor


class Question:
    """found: by rank, what each answered, or failed with."""

    def __init__(self, executor: DistributedExecutor, size: int) -> None:
        self._executor, self.size = executor, size
        self.found: dict[int, Any] = {}

    @property
    def is_answered(self) -> bool:
        """By all."""
        return len(self.found) == self.size

    def done(self) -> bool:
        """Whether all have answered, with what has come by now."""
        if not self.is_answered:
            self._executor.receive(0.0)
        return self.is_answered


class RanksLoad:
    """An adapter that all ranks read. As AdapterLoad has it."""

    def __init__(self, executor: DistributedExecutor, path: str, question: Question) -> None:
        self._executor, self._path, self._question = executor, path, question
        self.done = question.done

    def result(self) -> LoadedAdapter:
        """Raises what the first rank failed with, and ValueError if ranks read different adapters; no rank holds it then."""
        while not self.done():
            self._executor.receive(None)
        found = sorted(self._question.found.items())
        failures = {rank: one for rank, one in found if isinstance(one, Failure)}
        loaded = {rank: one for rank, one in found if isinstance(one, LoadedAdapter)}
        keys = {one.key for one in loaded.values()}
        if not failures and len(keys) == 1:
            first = loaded[0]
            return LoadedAdapter(first.key, first.rank, sum(one.num_bytes for one in loaded.values()))
        for rank, one in loaded.items():
            self._executor.send(DropAdapter(one.key, [rank]))
        for rank, failure in failures.items():
            error = failure.error()
            error.add_note(f"This was on rank {rank} of {self._question.size}.")
            raise error
        raise ValueError(
            f"the ranks read {len(keys)} different adapters from {self._path}: it changed meanwhile, or is another folder on "
            "other machines; try again, or give one that is the same"
        )
