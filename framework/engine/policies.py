"""Who goes first. A policy is a sort key: smaller runs first, the largest is the first to be preempted."""

from __future__ import annotations

from typing import Protocol

from .request import Request

Order = tuple[float, ...]


class PolicyConfig(Protocol):
    """What policies read of the SchedulerConfig."""

    ageing: float
    ttft_slo_s: float | None


class Policy:
    """Gives each request its place when it enters the scheduler. ``index`` counts requests as they come. Raises ValueError for a
    config without what the policy needs."""

    def __init__(self, config: PolicyConfig) -> None:
        pass

    def order(self, request: Request, index: int) -> Order:
        raise NotImplementedError

    def postponed(self, request: Request, now_s: float) -> Order | None:
        """Asked of a waiting request when its turn comes: the later place that it is to have instead, or None: it may go. So that
        every request ends, none is postponed without end."""
        return None


class FirstComeFirstServed(Policy):
    """In the order in which requests were added; a preempted request keeps its place."""

    def order(self, request: Request, index: int) -> Order:
        return (index,)


class ByPriority(Policy):
    """Smaller ``priority`` first, then earlier arrival."""

    def order(self, request: Request, index: int) -> Order:
        return (request.priority, request.arrival_s, index)


class ShortestJob(Policy):
    """Fewest output tokens first, as far as ``max_tokens`` tells them. A second of waiting counts as ``ageing`` tokens less, so
    that none waits forever behind shorter ones; all that wait age alike, so that the key need not change."""

    def __init__(self, config: PolicyConfig) -> None:
        self._ageing = config.ageing

    def order(self, request: Request, index: int) -> Order:
        num_output_tokens = request.max_total - request.num_prompt_tokens
        return (num_output_tokens + self._ageing * request.arrival_s, request.arrival_s, index)


class ByDeadline(Policy):
    """Earliest deadline first: arrival + ``ttft_slo_s``. Who can hardly meet it any more, having waited for half of that time (the
    rest is for the prompt), goes behind all who can: in overload those in time would else pay for those who are late anyway, until
    all are late. Late ones go by arrival, and wait for as long as the overload lasts."""

    WAITING_SHARE = 0.5

    def __init__(self, config: PolicyConfig) -> None:
        if config.ttft_slo_s is None:
            raise ValueError("scheduler.policy=slo needs an objective: set scheduler.ttft_slo_s (scheduler=slo takes slo.ttft_s)")
        self._slo_s = config.ttft_slo_s

    def order(self, request: Request, index: int) -> Order:
        return (0, request.arrival_s + self._slo_s, index)

    def postponed(self, request: Request, now_s: float) -> Order | None:
        late, deadline_s, index = request.order
        if late or request.num_output_tokens or now_s <= deadline_s - (1 - self.WAITING_SHARE) * self._slo_s:
            return None
        return (1, deadline_s, index)


POLICIES: dict[str, type[Policy]] = {"fcfs": FirstComeFirstServed, "priority": ByPriority, "sjf": ShortestJob, "slo": ByDeadline}
