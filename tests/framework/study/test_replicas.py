"""Simulated engines behind a router, and steps that are taken at once: the same times as one engine, step by step, gives."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.build import build_engine, build_replicas
from framework.config import CacheConfig, EngineConfig, ExecutorConfig, ModelConfig, ParallelConfig, SchedulerConfig
from framework.engine.engine import Engine
from framework.engine.router import ROUTERS
from framework.engine.run_ahead import RunAhead
from framework.sampling_params import SamplingParams
from framework.study.driver import run_workload
from framework.study.metrics import SLOConfig, compute_metrics
from framework.study.records import RunRecord
from framework.study.workload import Workload, WorkloadConfig, WorkloadRequest

SMALL = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "dtype": "bfloat16",
}
WINDOWED = SMALL | {"model_type": "mistral", "sliding_window": 48}


def config(architecture: dict[str, Any] = SMALL, noise: float = 0.0, dp: int = 1, **given: Any) -> EngineConfig:
    return EngineConfig(
        model=ModelConfig(load_format="dummy", architecture=architecture),
        cache=CacheConfig(block_size=16, num_blocks=given.pop("num_blocks", 200)),
        scheduler=SchedulerConfig(**{"max_num_seqs": 8, "max_num_batched_tokens": 256, **given}),
        executor=ExecutorConfig("simulated", calibration="roofline", noise=noise),
        parallel=ParallelConfig(dp=dp),
    )


def request(
    arrival_s: float, num_prompt: int, num_output: int, user: int = 0, think_time_s: float | None = None
) -> WorkloadRequest:
    sampling = SamplingParams(max_tokens=num_output, ignore_eos=True, detokenize=False, seed=user)
    return WorkloadRequest(arrival_s, [(user * 7 + i) % 1000 for i in range(num_prompt)], sampling, user, think_time_s)


def serve(engines: list[Engine], workload: list[WorkloadRequest], router: str = "round_robin") -> RunRecord:
    return run_workload(engines, workload, ROUTERS[router](3))


def by_steps(monkeypatch: pytest.MonkeyPatch, *given: Any) -> RunRecord:
    with monkeypatch.context() as patch:
        patch.setattr(RunAhead, "of", lambda *_: None)
        return serve(*given)


def assert_equal(one: RunRecord, other: RunRecord) -> None:
    assert [(r.request_id, r.replica, r.finish_reason) for r in one.requests] == [
        (r.request_id, r.replica, r.finish_reason) for r in other.requests
    ]
    for a, b in zip(one.requests, other.requests):
        assert a.arrival_s == pytest.approx(b.arrival_s, rel=0, abs=1e-9)
        assert list(a.token_times_s) == pytest.approx(list(b.token_times_s), rel=0, abs=1e-9)
    assert compute_metrics(one, SLOConfig(ttft_s=0.02)) == pytest.approx(compute_metrics(other, SLOConfig(ttft_s=0.02)), rel=1e-9)


arrivals = st.lists(
    st.tuples(st.floats(0, 0.3), st.integers(1, 300), st.integers(1, 150), st.integers(0, 3)), min_size=1, max_size=14
)


@settings(deadline=None, max_examples=25)
@given(
    arrivals=arrivals,
    closed=st.booleans(),
    architecture=st.sampled_from([SMALL, WINDOWED]),
    noise=st.sampled_from([0.0, 0.1]),
    in_flight_steps=st.sampled_from([1, 2, 3]),
    num_blocks=st.sampled_from([40, 400]),
    dp=st.sampled_from([1, 3]),
    router=st.sampled_from(sorted(ROUTERS)),
)
def test_steps_taken_at_once_end_when_steps_one_by_one_do(
    arrivals: list[tuple[float, int, int, int]],
    closed: bool,
    architecture: dict[str, Any],
    noise: float,
    in_flight_steps: int,
    num_blocks: int,
    dp: int,
    router: str,
) -> None:
    workload = [request(t, p, o, user, 0.01 if closed else None) for t, p, o, user in sorted(arrivals)]
    wanted = config(architecture, noise, dp, in_flight_steps=in_flight_steps, num_blocks=num_blocks)
    at_once = serve(build_replicas(wanted), workload, router)
    assert_equal(at_once, by_steps(pytest.MonkeyPatch(), build_replicas(wanted), workload, router))


def test_a_lone_request_takes_few_steps_of_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, calls = build_engine(config()), 0
    schedule = engine.scheduler.schedule

    def counted(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        return schedule(*given)

    monkeypatch.setattr(engine.scheduler, "schedule", counted)
    record = serve([engine], [request(0.0, 100, 800)])
    assert record.steps[0].num_steps == engine.stats().num_steps == engine.stats().num_output_tokens == 800
    assert calls < 0.4 * 800


def test_the_report_counts_steps_that_were_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = [request(0.0, 100, 300), request(0.1, 30, 200, 1)]
    reports = []
    for play in (serve, lambda *given: by_steps(monkeypatch, *given)):
        engine = build_engine(config())
        play([engine], workload)
        reports.append(
            {op: (entry["calls"], pytest.approx(entry["seconds"], rel=1e-9)) for op, entry in engine.plan_report().items()}
        )
    assert reports[0] == reports[1]


@pytest.mark.parametrize("router", ["round_robin", "random"])
def test_replicas_behind_a_router_that_does_not_look_are_engines_of_their_own(router: str) -> None:
    workload = [request(0.004 * i, 20 + 9 * (i % 5), 10 + i, i) for i in range(24)]
    together = serve(build_replicas(config(dp=2)), workload, router)
    assert {r.replica for r in together.requests} == {0, 1}
    for replica in (0, 1):
        own = [r for r in together.requests if r.replica == replica]
        alone = serve([build_engine(config())], [workload[int(r.request_id)] for r in own])
        for a, b in zip(own, alone.requests, strict=True):
            assert list(a.token_times_s) == pytest.approx(list(b.token_times_s), rel=0, abs=1e-9)


def test_a_router_sees_replicas_as_they_are_when_a_request_arrives() -> None:
    """The long one still runs when the second request comes, and is done when the third does."""
    engines = build_replicas(config(dp=2))
    first = serve([build_engine(config())], [request(0.0, 50, 200)]).requests[0].token_times_s[-1]
    workload = [
        request(0.0, 50, 200),
        request(first / 2, 50, 1000, 1),
        request(first * 1.1, 50, 5, 2),
        request(first * 1.2, 50, 5, 3),
    ]
    record = serve(engines, workload, "least_loaded")
    assert [r.replica for r in record.requests] == [0, 1, 0, 0]


def test_users_of_a_closed_loop_come_back_across_replicas() -> None:
    workload = [request(0.0, 40, 30, user, 0.002) for _ in range(5) for user in range(3)]
    record = serve(build_replicas(config(dp=2)), workload, "least_loaded")
    assert all(r.status == "ok" and len(r.token_times_s) == 30 for r in record.requests)
    for user in range(3):
        own = [r for r in record.requests if r.user == user]
        for before, after in pairwise(own):
            assert after.arrival_s == pytest.approx(before.token_times_s[-1] + 0.002, abs=1e-9)
    metrics = compute_metrics(record, SLOConfig())
    assert metrics["replica_requests_min"] + metrics["replica_requests_max"] == 15
    assert metrics["num_steps"] == sum(steps.num_steps for steps in record.steps)


def test_replicas_have_noise_of_their_own() -> None:
    record = serve(build_replicas(config(noise=0.2, dp=2)), [request(0.0, 40, 30, user) for user in range(2)])
    a, b = (list(r.token_times_s) for r in record.requests)
    assert a != pytest.approx(b, rel=1e-3)


def test_a_refused_request_holds_up_no_replica() -> None:
    record = serve(build_replicas(config(dp=2)), [request(0.0, 4100, 5), request(0.0, 40, 5, 1), request(0.1, 40, 5, 2)])
    assert [r.status for r in record.requests] == ["refused", "ok", "ok"]


def test_what_is_sent_where_its_prefix_is_comes_sooner() -> None:
    """The stand-in of Mooncake's trace on four replicas of a model whose caches hold it, at the trace's own rate. The experiment
    ``replicas`` does the same with the trace itself."""
    given = yaml.safe_load((Path(__file__).parents[3] / "conf/model/llama-3.1-8b.yaml").read_text())
    model = ModelConfig(given["name"], load_format="dummy", architecture=given["architecture"])
    workload = Workload(WorkloadConfig(source="trace", format="mooncake", arrivals="trace", num_requests=128), 128_256, None)
    found = {}
    for router in ("round_robin", "prefix_aware"):
        cache, scheduler = CacheConfig(memory_bytes=115_000_000_000), SchedulerConfig(max_num_batched_tokens=8192)
        config = EngineConfig(model, cache, scheduler, ExecutorConfig("simulated"), parallel=ParallelConfig(dp=4), router=router)
        found[router] = compute_metrics(serve(build_replicas(config), workload, router), SLOConfig())
    plain, aware = found["round_robin"], found["prefix_aware"]
    assert aware["prefix_hit_rate"] >= 1.3 * plain["prefix_hit_rate"] > 0
    assert aware["ttft_p50_s"] < plain["ttft_p50_s"]
    assert aware["num_completed"] == plain["num_completed"] == 128
