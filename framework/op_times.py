"""What the kernel calls of a run took: how an executor hands it to those who study it."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

HOST = "host"
"""Stands among ops for all that is no kernel call: the rest of a step."""
SOURCES = {
    "wall": "wall time of each call; those of recorded decode steps too, which are launched one by one for it",
    "device": "device time between events around each call; in a graph its own events; the host waits for every step",
    "model": "times of the cost model, on the virtual clock",
}
"""What ``OpTimes.source`` says of its times."""


@dataclass(frozen=True)
class OpCall:
    """A kernel call by what says how long it takes. dims, q_lens, ctx_lens: as the op's cost function takes them; options: what
    else a call of the same speed needs; dtype: of the activations; while_recorded: it was made once, for a recording to be made of
    it, which takes longer than any replay."""

    op: str
    impl: str
    dtype: str
    dims: tuple[tuple[str, float], ...]
    options: tuple[tuple[str, Any], ...] = ()
    q_lens: tuple[int, ...] = ()
    ctx_lens: tuple[int, ...] = ()
    while_recorded: bool = False

    @classmethod
    def of(cls, op: str, impl: str, dtype: str, dims: Mapping[str, float], **more: Any) -> OpCall:
        """With the names of dims in order, so that equal calls are equal."""
        return cls(op, impl, dtype, tuple(sorted(dims.items())), **more)


class OpTimes:
    """Calls in the order in which they were made. ``source``: what their times are, a key of ``SOURCES``. ``overhead_s``: what
    taking them cost in all."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.clear()

    def clear(self) -> None:
        """Forgets all calls."""
        self.overhead_s = 0.0
        self._index: dict[OpCall, int] = {}
        self._which, self._counts = array("q"), array("q")
        self._starts, self._seconds = array("d"), array("d")

    def add(self, call: OpCall, start_s: float, seconds: float, count: int = 1) -> None:
        """``count`` equal calls, one after the other, that took ``seconds`` together."""
        self._which.append(self._index.setdefault(call, len(self._index)))
        self._counts.append(count)
        self._starts.append(start_s)
        self._seconds.append(seconds)

    def __len__(self) -> int:
        return len(self._which)

    def __iter__(self) -> Iterator[tuple[OpCall, float, float, int]]:
        """(call, start_s, seconds, count) of all."""
        return self.between(0, len(self))

    def between(self, first: int, end: int) -> Iterator[tuple[OpCall, float, float, int]]:
        """Those from number ``first`` to before ``end``."""
        calls = list(self._index)
        for i in range(first, end):
            yield calls[self._which[i]], self._starts[i], self._seconds[i], self._counts[i]

    def total_s(self, first: int, end: int) -> float:
        """Seconds of those calls."""
        return sum(self._seconds[first:end])
