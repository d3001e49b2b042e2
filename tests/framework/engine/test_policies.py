"""Who goes first under each policy, and that everybody gets a turn."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.config import EngineConfig, SchedulerConfig
from framework.engine.kv_cache.manager import KVCacheManager
from framework.engine.kv_cache.spec import group_layers
from framework.engine.policies import POLICIES
from framework.engine.request import Request, Status
from framework.engine.scheduler import Scheduler
from framework.engine.step import StepOutput

from ..engines import FULL, token_params

STEP_S = 0.1


def make_scheduler(policy: str, num_blocks: int = 100, **given: object) -> Scheduler:
    values = {"max_num_batched_tokens": 16, "max_num_seqs": 2, "in_flight_steps": 1, "ttft_slo_s": 2.0, **given}
    manager = KVCacheManager(group_layers([FULL]), num_blocks, 4, prefix_caching=False, check_invariants=True)
    return Scheduler(SchedulerConfig(policy=policy, **values), manager, 2048)  # type: ignore[arg-type]


def make_request(name: str, num_outputs: int, arrival_s: float = 0.0, num_prompt: int = 4, priority: int = 0) -> Request:
    return Request(name, [1] * num_prompt, token_params(), num_prompt + num_outputs, arrival_s, priority)


def serve(scheduler: Scheduler, requests: list[Request], max_steps: int = 5000) -> dict[str, float]:
    """Runs requests, given by arrival, to their ends; a step takes STEP_S. Returns when each got its first token, in that order.
    Holds every step to the rule of preemption: who lost its seat comes after all who kept theirs."""
    queue, first_s, now_s = list(requests), dict[str, float](), 0.0
    for _ in range(max_steps):
        while queue and queue[0].arrival_s <= now_s:
            scheduler.add(queue.pop(0))
        before = set(scheduler.running)
        step = scheduler.schedule(now_s)
        victims = [request for request in before if request.status == Status.PREEMPTED]
        kept = [request for request in before if request.status == Status.RUNNING]
        assert all(other < victim for victim in victims for other in kept)
        assert scheduler.running == sorted(scheduler.running)
        now_s += STEP_S
        if step is not None:
            for request in scheduler.commit(StepOutput(step.step_input.step_id, [7] * sum(step.step_input.num_logits))).requests:
                first_s.setdefault(request.request_id, now_s)
        elif not queue and not scheduler.requests:
            return first_s
    raise AssertionError(f"{len(scheduler.requests)} requests did not end")


def a_request() -> st.SearchStrategy[tuple[int, int, float, int]]:
    return st.tuples(st.integers(1, 20), st.integers(1, 20), st.floats(0, 5), st.integers(0, 2))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    requests=st.lists(a_request(), min_size=1, max_size=25),
    policy=st.sampled_from(list(POLICIES)),
    seats=st.sampled_from([1, 3, 16]),
    num_blocks=st.sampled_from([11, 16, 100]),
    slo_s=st.sampled_from([0.05, 0.5, 5.0]),
    ageing=st.sampled_from([0.0, 3.0]),
)
def test_every_request_ends(
    requests: list[tuple[int, int, float, int]], policy: str, seats: int, num_blocks: int, slo_s: float, ageing: float
) -> None:
    made = [
        make_request(str(i), output, arrival_s, prompt, priority)
        for i, (prompt, output, arrival_s, priority) in enumerate(sorted(requests, key=lambda request: request[2]))
    ]
    serve(make_scheduler(policy, num_blocks, max_num_seqs=seats, ttft_slo_s=slo_s, ageing=ageing), made)
    assert all(request.num_output_tokens == request.max_total - request.num_prompt_tokens for request in made)


def test_sjf_goes_by_output_and_by_arrival_where_that_is_equal() -> None:
    made = [make_request("long", 30), make_request("short", 3), make_request("middle", 10), make_request("later", 3, 0.01)]
    scheduler = make_scheduler("sjf", max_num_seqs=1, ageing=0.0)
    assert list(serve(scheduler, [make_request("alone", 2, -1.0), *made])) == ["alone", "short", "later", "middle", "long"]


def test_sjf_counts_no_prompt_tokens() -> None:
    scheduler = make_scheduler("sjf", max_num_seqs=1)
    made = [make_request("long answer", 9, num_prompt=1), make_request("long prompt", 2, num_prompt=15)]
    assert list(serve(scheduler, made)) == ["long prompt", "long answer"]


@pytest.mark.parametrize(("ageing", "starves"), [(0.0, True), (10.0, False)])
def test_a_long_job_starves_behind_short_ones_unless_it_ages(ageing: float, starves: bool) -> None:
    """One seat, and for 40 s always a short job that waits for it. A long one is 50 tokens longer: 5 s at 10 tokens per s."""
    short = [make_request(f"short {i}", 2, i * 1.9 * STEP_S) for i in range(200)]
    long = make_request("long", 52, 0.01)
    scheduler = make_scheduler("sjf", max_num_seqs=1, ageing=ageing)
    waited_s = serve(scheduler, [short[0], long, *short[1:]])["long"]
    assert (waited_s > 39) if starves else (4.5 < waited_s < 5.6)


def test_the_key_of_sjf_is_static_because_all_age_alike() -> None:
    """At any time, ordering by tokens left after ageing is the order of the keys."""
    policy = POLICIES["sjf"](SchedulerConfig(ageing=4.0))
    requests = [make_request(str(i), 5 + 17 * i % 40, i / 8) for i in range(40)]
    by_key = sorted(requests, key=lambda request: policy.order(request, 0)[0])
    for now_s in (14.0, 100.0):
        aged = sorted(requests, key=lambda r: r.max_total - r.num_prompt_tokens - 4.0 * (now_s - r.arrival_s))
        assert [r.request_id for r in aged] == [r.request_id for r in by_key]


def test_slo_lets_those_in_time_by_those_who_are_late() -> None:
    """One seat, 1 s of work each, objective 2 s: who waits for more than 1 s is late."""
    arrivals = {"a": 0.0, "b": 0.0, "late": 0.0, "later": 0.05, "fresh": 1.5}
    made = [make_request(name, 10, arrival_s) for name, arrival_s in arrivals.items()]
    assert list(serve(make_scheduler("slo", max_num_seqs=1), made)) == ["a", "b", "fresh", "late", "later"]
    again = [make_request(name, 10, arrival_s) for name, arrival_s in arrivals.items()]
    assert list(serve(make_scheduler("slo", max_num_seqs=1, ttft_slo_s=1000.0), again)) == list(arrivals)


def test_slo_keeps_the_place_of_one_that_has_its_first_token() -> None:
    policy = POLICIES["slo"](SchedulerConfig(ttft_slo_s=2.0))
    request = make_request("r", 10)
    request.order = policy.order(request, 0)
    assert policy.postponed(request, 1.0) is None and policy.postponed(request, 1.01) == (1, 2.0, 0)
    request.token_ids.append(7)
    assert policy.postponed(request, 100.0) is None, "it was preempted after its objective was met"


def test_in_overload_slo_keeps_some_in_time_where_fcfs_makes_all_late() -> None:
    """Twice as many as can be served, for 40 s."""

    def share_in_time(policy: str) -> float:
        requests = [make_request(str(i), 2, i * STEP_S) for i in range(400)]
        first_s = serve(make_scheduler(policy, max_num_seqs=1), requests)
        return sum(first_s[r.request_id] - r.arrival_s <= 2.0 for r in requests) / len(requests)

    assert share_in_time("fcfs") < 0.15
    assert share_in_time("slo") > 0.45, "the seat has time for half of them"


def test_slo_is_refused_without_an_objective() -> None:
    with pytest.raises(ValueError, match=r"scheduler.policy=slo needs .* scheduler.ttft_slo_s"):
        EngineConfig(scheduler=SchedulerConfig(policy="slo")).validate()


@pytest.mark.parametrize("given", [{"ageing": -1.0}, {"ageing": math.inf}, {"ttft_slo_s": 0.0}])
def test_parameters_that_cannot_work_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"scheduler.{next(iter(given))}="):
        EngineConfig(scheduler=SchedulerConfig(**given)).validate()  # type: ignore[arg-type]
