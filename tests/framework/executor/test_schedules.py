"""The engine schedules alike whatever runs its steps: the simulated device without time, no device, and the real one."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from framework.build import build_engine
from framework.clock import VirtualClock
from framework.config import CacheConfig, EngineConfig, ExecutorConfig, ModelConfig, SchedulerConfig
from framework.engine.engine import Engine
from framework.engine.executor import Executor
from framework.engine.inputs import InputProcessor
from framework.engine.prompts import EngineInput
from framework.sampling_params import SamplingParams

Schedule = list[list[tuple[str, int, int]]]
"""Per step its rows: request, its last token in the step, number of tokens."""

MOST_BLOCKS = 40

REQUESTS = st.lists(
    st.tuples(
        st.integers(0, 12),  # arrives at this step
        st.integers(0, 2),  # begins like those of the same number
        st.integers(1, 70),  # prompt
        st.integers(1, 20),  # output
    ),
    min_size=1,
    max_size=8,
)
SCHEDULERS = st.builds(
    SchedulerConfig,
    policy=st.sampled_from(["fcfs", "priority"]),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(8, 96),
    max_chunk_tokens=st.sampled_from([0, 5, 16]),
    in_flight_steps=st.sampled_from([1, 2]),
)


def schedule_of(engine: Engine, requests: list[tuple[int, int, int, int]]) -> tuple[Schedule, list[int]]:
    """All steps of a workload, and [steps, preemptions, prefix hits]."""
    found: Schedule = []
    schedule = engine.scheduler.schedule

    def recording():  # type: ignore[no-untyped-def]
        scheduled = schedule()
        if scheduled is not None:
            rows = [(request.request_id, request.num_computed, 1) for request in scheduled.decodes]
            found.append(rows + [(chunk.request.request_id, chunk.end, chunk.num_tokens) for chunk in scheduled.chunks])
        return scheduled

    engine.scheduler.schedule = recording  # type: ignore[method-assign]
    engine.scheduler.release_all_seats()  # the executor may have served others
    waiting, step = sorted(enumerate(requests), key=lambda item: item[1][0]), 0
    while waiting or engine.has_unfinished():
        while waiting and waiting[0][1][0] <= step:
            number, (_, group, num_prompt, num_output) = waiting.pop(0)
            params = SamplingParams(max_tokens=num_output, ignore_eos=True, temperature=0.0, seed=number, detokenize=False)
            prompt = [5 + group] * (num_prompt // 2) + [20 + number] * (num_prompt - num_prompt // 2)
            engine.add_request(str(number), EngineInput(prompt), params, priority=-number)
        engine.step()
        step += 1
    counters = engine.stats()
    return found, [counters.num_steps, counters.num_preemptions, counters.prefix_hit_tokens]


def config(kind: str, scheduler: SchedulerConfig, num_blocks: int, prefix_caching: bool) -> EngineConfig:
    cache_config = CacheConfig(16, num_blocks, prefix_caching=prefix_caching)
    executor = ExecutorConfig(kind, calibration="free") if kind == "simulated" else ExecutorConfig(kind)
    return EngineConfig(ModelConfig("tiny", max_model_len=128), cache_config, scheduler, executor, num_threads=1, device="cpu")


@cache
def tiny() -> tuple[Executor, InputProcessor]:
    """A real executor with as many blocks and seats as any test needs."""
    engine = build_engine(config("local", SchedulerConfig(max_num_seqs=6, max_num_batched_tokens=96), MOST_BLOCKS, True))
    return engine.executor, engine.inputs


@settings(max_examples=30, deadline=None)
@given(REQUESTS, SCHEDULERS, st.integers(7, 30), st.booleans())
def test_without_time_as_without_device(
    requests: list[tuple[int, int, int, int]], scheduler: SchedulerConfig, num_blocks: int, prefix_caching: bool
) -> None:
    schedules = [
        schedule_of(build_engine(config(kind, scheduler, num_blocks, prefix_caching)), requests) for kind in ("null", "simulated")
    ]
    assert schedules[0] == schedules[1]


@settings(max_examples=8, deadline=None)
@given(REQUESTS, SCHEDULERS, st.integers(7, 30), st.booleans())
def test_without_time_as_on_the_real_device(
    requests: list[tuple[int, int, int, int]], scheduler: SchedulerConfig, num_blocks: int, prefix_caching: bool
) -> None:
    assert_like_the_real_device(requests, scheduler, num_blocks, prefix_caching)


def test_preemptions_and_prefix_hits_are_the_real_ones_too() -> None:
    requests = [(i, i % 2, 60, 20) for i in range(8)]
    scheduler = SchedulerConfig(max_num_seqs=6, max_num_batched_tokens=64, in_flight_steps=2)
    _, preemptions, hits = assert_like_the_real_device(requests, scheduler, 14, True)
    assert preemptions >= 3 and hits > 16


def assert_like_the_real_device(
    requests: list[tuple[int, int, int, int]], scheduler: SchedulerConfig, num_blocks: int, prefix_caching: bool
) -> list[int]:
    executor, inputs = tiny()
    executor.num_blocks = num_blocks
    real = Engine(config("local", scheduler, num_blocks, prefix_caching), executor, inputs, VirtualClock())
    simulated = build_engine(config("simulated", scheduler, num_blocks, prefix_caching))
    found, expected = schedule_of(simulated, requests), schedule_of(real, requests)
    assert found == expected
    return found[1]


def test_time_does_not_pass_when_it_is_free() -> None:
    engine = build_engine(config("simulated", SchedulerConfig(), 40, True))
    schedule_of(engine, [(0, 0, 50, 10)])
    assert engine.clock.now() == 0.0


@pytest.mark.parametrize("num_stages", [2, 3])
def test_a_pipeline_has_a_request_in_one_step_at_a_time_and_steps_of_equal_shares(num_stages: int) -> None:
    scheduler = SchedulerConfig(max_num_seqs=12, in_flight_steps=num_stages + 1)
    engine = build_engine(config("null", scheduler, 200, True))
    engine.executor.num_stages = num_stages
    engine = Engine(engine.config, engine.executor, engine.inputs, engine.clock)
    found, _ = schedule_of(engine, [(0, 0, 10, 12)] * 12)
    decoding = [{request for request, _, count in rows} for rows in found[2:-num_stages]]
    assert all(len(rows) <= -(-12 // num_stages) for rows in decoding)
    assert all(not rows & later for rows, later in pairwise(decoding))
    alone, _ = schedule_of(build_engine(config("null", replace(scheduler, in_flight_steps=1), 200, True)), [(0, 0, 10, 12)] * 12)
    assert sorted(row for rows in found for row in rows) == sorted(row for rows in alone for row in rows), "the same tokens"
