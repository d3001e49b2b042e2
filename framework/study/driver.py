"""Runs a workload through engines and records when every token came. The same for real and for virtual time."""

from __future__ import annotations

import heapq
import math
from array import array
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tqdm import tqdm

from ..clock import VirtualClock
from ..engine.prompts import EngineInput
from ..engine.router import Router
from ..engine.run_ahead import RunAhead, RunsAhead
from ..sampling_params import RequestOutputKind
from .records import RequestRecord, RunRecord, StepStatistics
from .workload import Arrival, Workload, WorkloadRequest

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..outputs import RequestOutput

_COUNTERS = (
    "num_preemptions",
    "num_chunked_prefills",
    "num_denoising_passes",
    "prefix_query_tokens",
    "prefix_hit_tokens",
    "num_image_queries",
    "num_image_hits",
    "num_images_encoded",
)
"""Of an engine's totals, those that a record keeps."""


class Arrivals:
    """Requests in the order in which they arrive; in a closed loop the next one is known only when the last one finished."""

    def __init__(self, workload: Sequence[WorkloadRequest]) -> None:
        if isinstance(workload, Workload):
            self._when = workload.arrivals
        else:
            self._when = [Arrival(r.arrival_s, r.user, r.think_time_s) for r in workload]
        self._heap: list[tuple[float, int]] = []
        self._later: dict[int, deque[int]] = defaultdict(deque)
        seen: set[int] = set()
        for index, request in enumerate(self._when):
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
        if later := self._later.get(self._when[index].user):
            follower = later.popleft()
            heapq.heappush(self._heap, (now_s + (self._when[follower].think_time_s or 0.0), follower))


class ServingEngine:
    """An engine in a run, which began for it at ``start_s`` of its own clock. Of others it learns nothing.

    places  where requests went, of one that stands for several (ReplicatedEngine), whose steps are not seen; None: it is one
    ahead   steps that will come if nothing else does; whoever adds a request calls ``catch_up`` before
    """

    def __init__(self, engine: Engine, index: int) -> None:
        self.engine, self.index, self.start_s = engine, index, engine.clock.now()
        self.steps = StepStatistics()
        self.ahead: RunAhead | None = None
        self.places: Mapping[str, int] | None = getattr(engine, "places", None)
        self._knows_ahead = self.places is None and isinstance(engine.executor, RunsAhead)
        self._before = engine.stats()
        self._served: dict[str, tuple[int, RequestRecord]] = {}

    def now_s(self) -> float:
        """Seconds since the start of the run."""
        return self.engine.clock.now() - self.start_s

    def known_to_s(self) -> float:
        """Until then, nothing will happen that others could see."""
        return self.now_s() if self.ahead is None else self.ahead.done_s[-1] - self.start_s

    def has_reached(self, time_s: float) -> bool:
        """Whether it is known to then. Compared on the clock's scale: after ``wait``, a difference could fall short of it."""
        return self.start_s + time_s <= (self.engine.clock.now() if self.ahead is None else self.ahead.done_s[-1])

    def wait(self, time_s: float) -> None:
        """Lets time pass, of an engine with nothing to do."""
        self.engine.clock.advance_to(self.start_s + time_s)

    def catch_up(self, time_s: float = math.inf) -> None:
        """Takes the steps ahead up to the first that ends at ``time_s`` or later: all of them, if none does."""
        if self.ahead is None:
            return
        until_s, done_s = self.start_s + time_s, self.ahead.done_s
        if until_s > self.engine.clock.now():
            count = min(bisect_left(done_s, until_s) + 1, len(done_s))
            self.ahead.take(count)
            self._add_steps(count)
        self.ahead = None

    def admit(self, index: int, request: WorkloadRequest, arrival_s: float) -> RequestRecord:
        """Adds request ``index`` of the workload. Its record has an error if the engine refuses it."""
        record = RequestRecord(
            f"{index}",
            request.user,
            arrival_s,
            len(request.prompt_token_ids),
            replica=self.index,
            priority=request.priority,
            num_known_tokens=request.num_known_tokens,
            num_images=len(request.images),
            num_image_tokens=sum(image.count for image in request.images),
        )
        # Under a virtual clock nothing is gained by telling every token as it comes.
        kind = RequestOutputKind.FINAL_ONLY if isinstance(self.engine.clock, VirtualClock) else RequestOutputKind.DELTA
        try:
            prompt = self.engine.inputs.made_up(request.prompt_token_ids, request.decoder_token_ids)
            if request.images:
                prompt = replace(prompt, images=request.images)
            record.num_prompt_tokens = len(prompt.token_ids)
            record.num_encoder_tokens = 0 if prompt.encoder_input is None else prompt.encoder_input.num_tokens
            self.engine.add_request(
                record.request_id,
                prompt,
                request.sampling,
                arrival_s=self.start_s + arrival_s,
                priority=request.priority,
                output_kind=kind,
                lora_request=request.lora_request,
            )
        except ValueError as error:
            record.error = str(error)
        else:
            self._served[record.request_id] = index, record
        return record

    def step(self, enough: int, until_s: float) -> list[int]:
        """Goes on, by a step or by many. Indices of the requests that ended, their records complete.

        enough, until_s  if it looks ahead, then so many steps are enough, or those up to that time if it is more"""
        if self.ahead is not None:
            self.catch_up()
            self._look_ahead(enough, until_s)
            if self.ahead is not None:
                return []
        ended = []
        for output in self.engine.step():
            if output.finished:
                index, record = self._served.pop(output.request_id)
                if self.places is not None:
                    record.replica = self.places[output.request_id]
                _finish(record, output, self.start_s)
                ended.append(index)
        self._add_steps(1)
        self._look_ahead(enough, until_s)
        return ended

    def _look_ahead(self, enough: int, until_s: float) -> None:
        if self._knows_ahead:
            self.ahead = RunAhead.of(self.engine, enough, self.start_s + until_s)

    def _add_steps(self, count: int) -> None:
        engine = self.engine
        if self.places is not None:
            return
        self.steps.add(self.now_s(), engine.kv_usage, engine.num_running, engine.num_waiting, count)

    def add_counters(self, record: RunRecord) -> None:
        """What this run adds to an engine's totals."""
        after = self.engine.stats()
        for counter in _COUNTERS:
            added = getattr(after, counter) - getattr(self._before, counter)
            setattr(record, counter, getattr(record, counter) + added)
        record.drafts += after.drafts.since(self._before.drafts)


def run_workload(
    engines: Sequence[Engine], workload: Sequence[WorkloadRequest], router: Router | None = None, progress: bool = False
) -> RunRecord:
    """Serves ``workload`` to the end. A request that its engine refuses is recorded with its error.

    engines  of this process, or one ReplicatedEngine
    router  chooses among several engines, each on a virtual clock of its own, when a request arrives: after all that are busy have
            been stepped up to that time. None: there is only one engine, on any clock

    TTFT counts from the intended arrival, so a request that arrives during a step has waited for that step."""
    assert router is not None or len(engines) == 1, "several engines need a router"
    replicas = [ServingEngine(engine, index) for index, engine in enumerate(engines)]
    steps = [replica.steps for replica in replicas if replica.places is None]
    record, arrivals = RunRecord(steps=steps, num_engines=len(replicas)), Arrivals(workload)
    known_to_s = [math.inf] * len(replicas)  # of the busy ones: the one that is furthest behind goes on
    with tqdm(total=len(workload), unit="req", disable=None if progress else True) as bar:
        while (earliest_s := min(known_to_s)) < math.inf or arrivals.next_s is not None:
            behind = replicas[known_to_s.index(earliest_s)] if earliest_s < math.inf else None
            if behind is None or (arrivals.next_s is not None and behind.has_reached(arrivals.next_s)):
                arrival_s, index = arrivals.pop()
                request = workload[index]
                # By which an encoder-decoder is chosen as well as any other.
                prompt = EngineInput(request.prompt_token_ids, images=request.images)
                chosen = replicas[0 if router is None else router.route(prompt, engines)]
                chosen.catch_up(arrival_s)
                if not chosen.engine.has_unfinished():
                    chosen.wait(arrival_s)
                admitted = chosen.admit(index, request, arrival_s)
                record.requests.append(admitted)
                if admitted.error is not None:
                    arrivals.finished(index, chosen.now_s())
                    bar.update()
            else:
                chosen = behind
                # A new request goes to this one of n engines once in n times: to look no further than n steps then is enough.
                for index in chosen.step(len(replicas), arrivals.next_s if arrivals.next_s is not None else math.inf):
                    arrivals.finished(index, chosen.now_s())
                    bar.update()
            known_to_s[chosen.index] = chosen.known_to_s() if chosen.engine.has_unfinished() else math.inf
    for replica in replicas:
        replica.add_counters(record)
    return record


def _finish(record: RequestRecord, output: RequestOutput, start_s: float) -> None:
    assert output.metrics is not None, "a finished request has its metrics"
    (completion,) = output.outputs
    record.token_times_s = array("d", [time_s - start_s for time_s in output.metrics.token_times_s])
    record.finish_reason, record.error = completion.finish_reason, output.error
