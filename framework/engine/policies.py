"""Who goes first. A policy is a sort key: smaller runs first, the largest is the first to be preempted."""

from __future__ import annotations

from typing import Protocol

from .request import Request


class Policy(Protocol):
    """Gives each request its place once, when it enters the scheduler. ``index`` counts requests as they come."""

    def order(self, request: Request, index: int) -> tuple[float, ...]: ...


class FirstComeFirstServed:
    """In the order in which requests were added; a preempted request keeps its place."""

    def order(self, request: Request, index: int) -> tuple[float, ...]:
        return (index,)


class ByPriority:
    """Smaller ``priority`` first, then earlier arrival."""

    def order(self, request: Request, index: int) -> tuple[float, ...]:
        return (request.priority, request.arrival_s, index)


POLICIES: dict[str, type[Policy]] = {"fcfs": FirstComeFirstServed, "priority": ByPriority}
