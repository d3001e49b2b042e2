"""Ranks as threads of the test."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from triton_kernels.group import WAIT_S, ThreadGroup

Result = TypeVar("Result")


def run_ranks(size: int, work: Callable[[ThreadGroup], Result], timeout_s: float = WAIT_S) -> list[Result]:
    """What ``work`` returns on each rank, in rank order. Raises what the first rank raised, by number."""

    def run(group: ThreadGroup) -> Result:
        with group:
            return work(group)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, ThreadGroup.make(size, timeout_s)))
