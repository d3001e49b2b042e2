"""The driver in virtual time, with an engine whose every step takes a second and gives each request a token."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from framework.clock import VirtualClock
from framework.engine.inputs import InputProcessor
from framework.engine.metrics import DraftCounts
from framework.outputs import CompletionOutput, RequestMetrics, RequestOutput
from framework.sampling_params import SamplingParams
from framework.study.driver import run_workload
from framework.study.records import RunRecord
from framework.study.workload import WorkloadRequest


class OneSecondEngine:
    """Serves ``seats`` requests at once, in order of arrival; refuses prompts of more than 100 tokens."""

    def __init__(self, clock: VirtualClock, seats: int = 8) -> None:
        self.clock, self.seats = clock, seats
        self.open: dict[str, int] = {}
        self.arrivals: dict[str, float] = {}
        self.priorities: dict[str, int] = {}
        self.times: dict[str, list[float]] = {}
        self.steps = 0

    def add_request(self, request_id: str, prompt: Any, params: SamplingParams, **given: Any) -> None:
        if len(prompt.token_ids) > 100:
            raise ValueError("prompt too long")
        self.open[request_id] = params.max_tokens or 1
        self.arrivals[request_id], self.priorities[request_id] = given["arrival_s"], given["priority"]
        self.times[request_id] = []

    def has_unfinished(self) -> bool:
        return bool(self.open)

    def step(self) -> list[Any]:
        self.clock.advance_to(self.clock.now() + 1)
        self.steps += 1
        outputs = []
        for name in list(self.open)[: self.seats]:
            self.open[name] -= 1
            done = not self.open[name]
            self.times[name].append(self.clock.now())
            completion = CompletionOutput(0, "", [7], finish_reason="length" if done else None)
            metrics = RequestMetrics(self.arrivals[name], token_times_s=self.times[name]) if done else None
            outputs.append(RequestOutput(name, None, [], None, [completion], done, metrics=metrics))
            if done:
                del self.open[name]
        return outputs

    @property
    def num_running(self) -> int:
        return len(self.open)

    num_waiting, kv_usage, executor = 0, 0.5, None
    inputs = InputProcessor(None, {}, ())

    def stats(self) -> Any:
        return SimpleNamespace(
            num_preemptions=self.steps,
            num_chunked_prefills=0,
            num_denoising_passes=2 * self.steps,
            prefix_query_tokens=10 * self.steps,
            prefix_hit_tokens=self.steps,
            num_image_queries=0,
            num_image_hits=0,
            num_images_encoded=0,
            drafts=DraftCounts((self.steps,), (self.steps,)),
        )


def request(
    arrival_s: float, num_output: int, user: int = 0, think_time_s: float | None = None, num_prompt: int = 4
) -> WorkloadRequest:
    return WorkloadRequest(arrival_s, [1] * num_prompt, SamplingParams(max_tokens=num_output), user, think_time_s)


def drive(*requests: WorkloadRequest, start_s: float = 0.0, **options: Any) -> tuple[RunRecord, OneSecondEngine]:
    clock = VirtualClock()
    clock.advance_to(start_s)
    engine = OneSecondEngine(clock, **options)
    return run_workload([engine], requests), engine  # type: ignore[list-item]


def times(record: RunRecord) -> dict[str, list[float]]:
    return {r.request_id: list(r.token_times_s) for r in record.requests}


def test_tokens_are_stamped_and_idle_time_is_skipped() -> None:
    record, engine = drive(request(0.0, 2), request(10.0, 1), start_s=100.0)
    assert times(record) == {"0": [1.0, 2.0], "1": [11.0]}
    assert engine.steps == 3
    assert engine.arrivals == {"0": 100.0, "1": 110.0}
    assert [r.finish_reason for r in record.requests] == ["length", "length"]


def test_rounding_of_the_clock_holds_up_nothing() -> None:
    # For about a third of such pairs, (start + arrival) - start is less than the arrival.
    for i in range(50):
        record, _ = drive(request(0.1 + i / 7, 1), start_s=1 / 3 + i)
        assert len(record.requests[0].token_times_s) == 1


def test_a_request_that_arrives_during_a_step_waits_for_its_end() -> None:
    record, _ = drive(request(0.0, 3), request(0.5, 1))
    assert times(record) == {"0": [1.0, 2.0, 3.0], "1": [2.0]}
    assert record.requests[1].arrival_s == 0.5


def test_closed_loop_users_wait_for_their_completions() -> None:
    record, _ = drive(request(0, 2, 0, 0.0), request(0, 1, 1, 0.0), request(0, 1, 0, 5.0), request(0, 1, 1, 0.0))
    # User 0 has its completion at 2, thinks for 5; user 1 has its completion at 1 and asks again at once.
    assert [(r.request_id, r.arrival_s) for r in record.requests] == [("0", 0), ("1", 0), ("3", 1.0), ("2", 7.0)]
    assert times(record) == {"0": [1.0, 2.0], "1": [1.0], "3": [2.0], "2": [8.0]}


def test_queueing_counts() -> None:
    record, _ = drive(request(0, 2), request(0, 1), seats=1)
    assert times(record) == {"0": [1.0, 2.0], "1": [3.0]}


def test_refused_requests_are_recorded_and_release_their_user() -> None:
    record, _ = drive(request(0, 1, 0, 0.0, num_prompt=101), request(0, 1, 0, 2.0))
    refused, served = record.requests
    assert refused.error == "prompt too long" and not refused.token_times_s and refused.finish_reason is None
    assert (served.arrival_s, list(served.token_times_s)) == (2.0, [3.0])


def test_priorities_reach_the_engine_and_the_record() -> None:
    record, engine = drive(replace(request(0, 1), priority=2), request(0, 1))
    assert list(engine.priorities.values()) == [request.priority for request in record.requests] == [2, 0]


def test_counters_are_of_this_run_alone() -> None:
    clock = VirtualClock()
    engine = OneSecondEngine(clock)
    run_workload([engine], [request(0, 3)])  # type: ignore[list-item]
    record = run_workload([engine], [request(0, 2)])  # type: ignore[list-item]
    assert (record.num_preemptions, record.prefix_query_tokens, record.prefix_hit_tokens) == (2, 20, 2)
    assert record.drafts == DraftCounts((2,), (2,))
    (steps,) = record.steps
    # From the end of the first step to that of the second the engine ran one request.
    assert (steps.num_steps, steps.first_s, steps.last_s) == (2, 1.0, 2.0)
    assert (steps.areas, steps.maxima) == ((0.5, 1.0, 0.0), (0.5, 1.0, 0.0))


@pytest.mark.parametrize("progress", [True, False])
def test_an_empty_workload_ends_at_once(progress: bool) -> None:
    engine = OneSecondEngine(VirtualClock())
    assert run_workload([engine], [], progress=progress).requests == []  # type: ignore[list-item]
