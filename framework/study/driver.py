"""Runs a workload through an engine and records when every token came. The same for real and for virtual time."""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tqdm import tqdm

from ..clock import Clock
from ..engine.inputs import EngineInput
from ..sampling_params import RequestOutputKind
from .workload import WorkloadRequest

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..outputs import RequestOutput


@dataclass
class RequestRecord:
    """What happened to one request. Times are seconds since the start of the run.

    token_times_s  when each output token came out of the engine
    finish_reason  stop, length, ...; None if it was refused
    error          why it was refused, or what failed while it ran; None otherwise
    num_known_tokens  as of a WorkloadRequest
    """

    request_id: str
    user: int
    arrival_s: float
    num_prompt_tokens: int
    token_times_s: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None
    priority: int = 0
    num_known_tokens: int | None = None

    @property
    def status(self) -> str:
        """ok, refused (it never ran), or failed (an error ended it)."""
        if self.error is None and self.finish_reason != "error":
            return "ok"
        return "refused" if self.finish_reason is None else "failed"


@dataclass
class StepRecord:
    """The state of the engine after one step.

    end_s     seconds since the start of the run
    kv_usage  fraction of the KV blocks that requests hold
    """

    end_s: float
    kv_usage: float
    num_running: int
    num_waiting: int


@dataclass
class RunRecord:
    """Everything that metrics are computed from."""

    requests: list[RequestRecord] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    num_preemptions: int = 0
    num_chunked_prefills: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0


class Arrivals:
    """Requests in the order in which they arrive; in a closed loop the next one is known only when the last one finished."""

    def __init__(self, workload: Sequence[WorkloadRequest]) -> None:
        self._workload = workload
        self._heap: list[tuple[float, int]] = []
        self._later: dict[int, deque[int]] = defaultdict(deque)
        seen: set[int] = set()
        for index, request in enumerate(workload):
            if request.think_time_s is not None and request.user in seen:
                self._later[request.user].append(index)
            else:
                self._heap.append((request.arrival_s, index))
            seen.add(request.user)
        heapq.heapify(self._heap)

    @property
    def next_s(self) -> float | None:
        return self._heap[0][0] if self._heap else None

    def pop(self) -> tuple[float, int]:
        return heapq.heappop(self._heap)

    def finished(self, index: int, now_s: float) -> None:
        if later := self._later[self._workload[index].user]:
            follower = later.popleft()
            heapq.heappush(self._heap, (now_s + (self._workload[follower].think_time_s or 0.0), follower))


def run_workload(engine: Engine, workload: Sequence[WorkloadRequest], clock: Clock, progress: bool = False) -> RunRecord:
    """Serves ``workload`` to the end. ``clock`` is the engine's. A request that the engine refuses is recorded with its error.

    TTFT counts from the intended arrival, so a request that arrives during a step has waited for that step."""
    record, arrivals = RunRecord(), Arrivals(workload)
    by_id: dict[str, tuple[int, RequestRecord]] = {}
    before = engine.stats()
    start_s = clock.now()
    with tqdm(total=len(workload), unit="req", disable=None if progress else True) as bar:
        while arrivals.next_s is not None or engine.has_unfinished():
            # Compared on the clock's scale: after advance_to(start + next), a difference could fall short of next by a rounding.
            while arrivals.next_s is not None and start_s + arrivals.next_s <= clock.now():
                arrival_s, index = arrivals.pop()
                request = _admit(engine, f"{index}", workload[index], arrival_s, start_s)
                record.requests.append(request)
                by_id[request.request_id] = index, request
                if request.error is not None:
                    arrivals.finished(index, clock.now() - start_s)
                    bar.update()
            if engine.has_unfinished():
                outputs = engine.step()
                now_s = clock.now() - start_s
                for output in outputs:
                    if output.finished:
                        index, request = by_id[output.request_id]
                        _finish(request, output, start_s)
                        arrivals.finished(index, now_s)
                        bar.update()
                stats = engine.stats()
                record.steps.append(StepRecord(now_s, stats.kv_usage, stats.num_running, stats.num_waiting))
            elif arrivals.next_s is not None:
                clock.advance_to(start_s + arrivals.next_s)
    after = engine.stats()
    for counter in ("num_preemptions", "num_chunked_prefills", "prefix_query_tokens", "prefix_hit_tokens"):
        setattr(record, counter, getattr(after, counter) - getattr(before, counter))
    return record


def _admit(engine: Engine, request_id: str, request: WorkloadRequest, arrival_s: float, start_s: float) -> RequestRecord:
    record = RequestRecord(
        request_id,
        request.user,
        arrival_s,
        len(request.prompt_token_ids),
        priority=request.priority,
        num_known_tokens=request.num_known_tokens,
    )
    sampling = replace(request.sampling, output_kind=RequestOutputKind.DELTA)
    try:
        given = EngineInput(request.prompt_token_ids)
        engine.add_request(request_id, given, sampling, arrival_s=start_s + arrival_s, priority=request.priority)
    except ValueError as error:
        record.error = str(error)
    return record


def _finish(record: RequestRecord, output: RequestOutput, start_s: float) -> None:
    assert output.metrics is not None, "a finished request has its metrics"
    (completion,) = output.outputs
    record.token_times_s = [time_s - start_s for time_s in output.metrics.token_times_s]
    record.finish_reason, record.error = completion.finish_reason, output.error
