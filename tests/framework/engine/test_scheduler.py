"""Who runs in a step: budget, order, chunks, preemption, steps in flight."""

from __future__ import annotations

from typing import Any

import pytest

from framework.config import SchedulerConfig
from framework.engine.kv_cache.manager import KVCacheManager
from framework.engine.kv_cache.spec import group_layers
from framework.engine.request import Request, Status
from framework.engine.scheduled import ScheduledStep
from framework.engine.scheduler import Scheduler
from framework.engine.step import StepOutput

from ..engines import FULL, make_request


def make_scheduler(num_blocks: int = 1000, block_size: int = 16, max_model_len: int = 2048, **given: Any) -> Scheduler:
    config = SchedulerConfig(**{"max_num_batched_tokens": 1024, "max_num_seqs": 16, "in_flight_steps": 1, **given})
    manager = KVCacheManager(group_layers([FULL]), num_blocks, block_size, prefix_caching=False, check_invariants=True)
    return Scheduler(config, manager, max_model_len)


def add(scheduler: Scheduler, *lengths: int, **given: Any) -> list[Request]:
    """Requests whose prompts share no token."""
    requests = [make_request([i] * length, str(i), **given) for i, length in enumerate(lengths)]
    for request in requests:
        scheduler.add(request)
    return requests


def shape(step: ScheduledStep | None) -> dict[str, int]:
    """request id -> tokens."""
    assert step is not None
    rows = [*step.decodes, *(chunk.request for chunk in step.chunks)]
    return dict(zip([request.request_id for request in rows], step.step_input.num_tokens))


def run(scheduler: Scheduler, token: int = 7) -> dict[str, int]:
    """One synchronous step in which every row samples ``token``."""
    step = scheduler.schedule()
    found = shape(step)
    assert step is not None
    scheduler.commit(StepOutput(step.step_input.step_id, [token] * sum(step.step_input.num_logits)))
    return found


def test_all_prompts_that_fit_the_budget_run_in_one_step_in_order() -> None:
    scheduler = make_scheduler()
    add(scheduler, *[10] * 10)
    assert list(run(scheduler).items()) == [(str(i), 10) for i in range(10)]
    assert run(scheduler) == {str(i): 1 for i in range(10)}


def test_partial_prompts_share_the_budget() -> None:
    scheduler = make_scheduler(max_chunk_tokens=400)
    add(scheduler, 800, 800, 800)
    assert run(scheduler) == {"0": 400, "1": 400, "2": 224}
    assert run(scheduler) == {"0": 400, "1": 400, "2": 224}
    assert run(scheduler) == {"0": 1, "1": 1, "2": 352}
    assert scheduler.counters.num_chunked_prefills == 3


def test_decodes_come_before_prompts_and_take_their_budget_first() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=20)
    first, second = add(scheduler, 20, 50)
    assert run(scheduler) == {"0": 20}
    step = scheduler.schedule()
    assert step is not None and step.decodes == [first] and step.chunks[0].request is second
    assert step.step_input.num_tokens == [1, 19] and step.step_input.num_logits == [1, 0]


def test_without_chunks_a_prompt_waits_for_a_step_that_takes_it_whole() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=60, chunked_prefill=False)
    add(scheduler, 40, 30)
    assert run(scheduler) == {"0": 40}
    assert run(scheduler) == {"0": 1, "1": 30}
    with pytest.raises(ValueError, match="without chunked prefill"):
        scheduler.limits.longest_total(60, 5)


def test_no_more_requests_run_than_there_are_seats() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    requests = add(scheduler, 5, 5, 5)
    assert run(scheduler) == {"0": 5, "1": 5}
    scheduler.finish(requests[0], "abort")
    step = scheduler.schedule()
    assert step is not None and step.step_input.released == [step.step_input.new[0].seat] == [0]
    assert shape(step) == {"1": 1, "2": 5}


def test_the_last_request_is_preempted_and_nobody_enters_in_that_step() -> None:
    scheduler = make_scheduler(num_blocks=11, block_size=4)
    first, second = add(scheduler, 16, 16)
    run(scheduler)
    while not scheduler.counters.num_preemptions:
        scheduled = run(scheduler)
        if scheduler.counters.num_steps == 3:  # both hold five of the ten blocks
            scheduler.add(waiting := make_request([9], "waiting"))
    assert scheduled == {"0": 1}, "the freed blocks would do for the waiting request"
    assert second.status == Status.PREEMPTED and second.seat == -1 and not second.blocks
    assert first.status == Status.RUNNING and waiting.status == Status.WAITING
    assert second.token_ids[16:] == [7] * 5
    run(scheduler)
    assert second.status == Status.PREEMPTED and waiting.status == Status.WAITING, "who was preempted goes first"


def test_priority_decides_who_enters_and_who_is_preempted() -> None:
    scheduler = make_scheduler(num_blocks=7, block_size=4, policy="priority", max_num_seqs=2)
    low = make_request([1] * 8, "low", priority=5)
    high = make_request([2] * 8, "high", priority=-1)
    later = make_request([3] * 8, "later", priority=-1, arrival_s=1.0)
    for request in (low, later, high):
        scheduler.add(request)
    assert list(run(scheduler)) == ["high", "later"]
    while not scheduler.counters.num_preemptions:
        run(scheduler)
    assert later.status == Status.PREEMPTED and high.status == Status.RUNNING
    scheduler.finish(high, "abort")
    assert list(run(scheduler)) == ["later", "low"], "a preempted request goes before a lower priority"


def test_a_step_in_flight_leaves_a_placeholder() -> None:
    scheduler = make_scheduler(in_flight_steps=2)
    (request,) = add(scheduler, 5)
    first, second = scheduler.schedule(), scheduler.schedule()
    assert first is not None and second is not None and shape(second) == {"0": 1}
    assert request.num_tokens == 7 and request.num_output_tokens == 0
    scheduler.commit(StepOutput(0, [11]))
    scheduler.commit(StepOutput(1, [12]))
    assert request.token_ids[5:] == [11, 12]


def test_no_step_is_scheduled_past_the_last_token() -> None:
    scheduler = make_scheduler(in_flight_steps=3)
    request = Request("r", [1, 2], make_request([1]).params, max_total=4)
    scheduler.add(request)
    assert scheduler.schedule() and scheduler.schedule()
    assert scheduler.schedule() is None
    scheduler.commit(StepOutput(0, [5]))
    assert scheduler.schedule() is None
    scheduler.commit(StepOutput(1, [6]))
    assert request.finish_reason == "length" and request.token_ids == [1, 2, 5, 6] and not scheduler.requests


def test_a_token_in_flight_of_a_finished_request_is_dropped() -> None:
    scheduler = make_scheduler(in_flight_steps=2)
    stopping, going = add(scheduler, 3, 3)
    stopping.stop_ids = frozenset({42})
    scheduler.schedule()
    scheduler.schedule()
    scheduler.commit(StepOutput(0, [42, 5]))
    assert stopping.finish_reason == "stop" and stopping.stop_reason is None
    committed = scheduler.commit(StepOutput(1, [9, 6]))
    assert committed.requests == [going] and stopping.token_ids[3:] == [42] and going.token_ids[3:] == [5, 6]


def test_a_token_in_flight_of_a_preempted_request_is_delivered_before_it_resumes() -> None:
    scheduler = make_scheduler(num_blocks=5, block_size=4, in_flight_steps=2)
    first, second = add(scheduler, 7, 7)
    scheduler.schedule()  # each holds two of the four blocks
    scheduler.schedule()
    scheduler.commit(StepOutput(0, [1, 2]))
    scheduler.add(make_request([9], "waiting"))
    step = scheduler.schedule()  # needs a third block for the first request
    assert shape(step) == {"0": 1}, "a block is left for the waiting request, but nobody enters in a step that preempted"
    assert second.status == Status.PREEMPTED and second.num_stale_steps == 1
    assert second.num_output_tokens == 1
    scheduler.commit(StepOutput(1, [3, 4]))
    assert second.token_ids[7:] == [2, 4] and second.status == Status.PREEMPTED and first.token_ids[7:] == [1, 3]
    scheduler.finish(first, "abort")
    assert shape(scheduler.schedule()) == {"1": 9, "waiting": 1}


def test_a_step_input_does_not_change_after_it_was_submitted() -> None:
    scheduler = make_scheduler()
    (request,) = add(scheduler, 16)
    step = scheduler.schedule()
    assert step is not None
    (new,) = step.step_input.new
    scheduler.commit(StepOutput(0, [7]))
    scheduler.schedule()
    assert len(request.token_ids) == 17 and len(request.blocks[0]) == 2
    assert len(new.token_ids) == 16 and len(new.block_ids[0]) == 1


def test_followers_wait_for_the_leaders_prompt_or_its_end() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=8)
    leader, follower = make_request([1] * 16, "leader"), make_request([1] * 16, "follower")
    follower.leader = leader
    scheduler.add(leader)
    scheduler.add(follower)
    assert [run(scheduler), run(scheduler), run(scheduler)] == [{"leader": 8}, {"leader": 8}, {"leader": 1, "follower": 1}]
    assert scheduler.counters.num_forks == 1
    leader, follower = make_request([2] * 16, "leader"), make_request([2] * 16, "follower 2")
    follower.leader = leader
    scheduler.add(leader)
    scheduler.add(follower)
    scheduler.finish(leader, "abort")
    assert run(scheduler)["follower 2"] > 0


def test_nobody_forks_from_a_leader_that_computes_its_prompt_again() -> None:
    scheduler = make_scheduler(block_size=4, max_num_seqs=2, max_chunk_tokens=8)
    other, leader = add(scheduler, 8, 40)
    follower = make_request([1] * 40, "follower")
    follower.leader = leader
    scheduler.add(follower)
    while not leader.num_output_tokens:
        run(scheduler)
    scheduler._preempt(scheduler.running.pop())
    scheduler.finish(other, "abort")
    assert run(scheduler) == {"1": 8, "follower": 8}
    assert scheduler.counters.num_forks == 0


@pytest.mark.parametrize(("min_tokens", "length"), [(0, 1), (3, 4)])
def test_stop_tokens_count_only_after_min_tokens(min_tokens: int, length: int) -> None:
    scheduler = make_scheduler()
    (request,) = add(scheduler, 3)
    request.stop_ids, request.min_total = frozenset({7}), 3 + min_tokens
    for _ in range(length):
        assert request.finish_reason is None
        run(scheduler, token=7)
    assert request.finish_reason == "stop" and request.num_output_tokens == length


def test_a_row_without_a_token_ends_its_request_only() -> None:
    scheduler = make_scheduler()
    bad, good = add(scheduler, 3, 3)
    bad.stop_ids = good.stop_ids = frozenset({-1})
    scheduler.schedule()
    scheduler.commit(StepOutput(0, [-1, 5]))
    assert bad.finish_reason == "error" and bad.num_output_tokens == 0
    assert good.status == Status.RUNNING and good.token_ids[3:] == [5]


def test_lengths_that_can_never_fit_are_refused() -> None:
    scheduler = make_scheduler(num_blocks=6, block_size=4, max_model_len=100)
    with pytest.raises(ValueError, match="at most 100"):
        scheduler.limits.longest_total(100, 1)
    with pytest.raises(ValueError, match=r"needs up to 6 KV blocks .* has 5"):
        scheduler.limits.longest_total(10, 12)
    assert scheduler.limits.longest_total(10, 11) == 21, "the last token is never computed"
    assert scheduler.limits.longest_total(10, None) == 21, "as many as possible"
    assert make_scheduler(max_model_len=100).limits.longest_total(90, 50) == 100
