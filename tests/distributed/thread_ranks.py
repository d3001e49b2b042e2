"""Ranks as threads of this process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from framework.models.parallel import Parallel, Ranks
from triton_kernels.group import ThreadGroup

Result = TypeVar("Result")


def on_ranks(size: int, call: Callable[[ThreadGroup], Result]) -> list[Result]:
    """What each rank of a group returns."""

    def run(group: ThreadGroup) -> Result:
        with group:
            return call(group)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, ThreadGroup.make(size)))


def tensor_parallel(group: ThreadGroup, *, spread_experts: bool = False) -> Parallel:
    ranks = Ranks(group.rank, group.size, group)
    return Parallel(tp=ranks, **({"ep": ranks} if spread_experts else {}))


def same_on_all(found: list[Any]) -> Any:
    assert all(one == found[0] for one in found[1:]), "ranks differ"
    return found[0]
