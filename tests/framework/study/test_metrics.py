"""Metrics of a run small enough to work out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from framework.study.driver import RequestRecord, RunRecord, StepRecord
from framework.study.metrics import SLOConfig, compute_metrics, e2e_s, tpot_s, ttft_s

# Arrives at 1, completions at 2, 3, 5: TTFT 1, TPOT 1.5, E2E 4.
A = RequestRecord("a", 0, 1.0, 10, [2.0, 3.0, 5.0], "length")
# Arrives at 2, one token at 2.5: TTFT 0.5, no TPOT, E2E 0.5.
B = RequestRecord("b", 0, 2.0, 20, [2.5], "stop")
REFUSED = RequestRecord("c", 0, 2.0, 9999, error="too long")


def run(*requests: RequestRecord, **fields: object) -> RunRecord:
    return RunRecord(list(requests), **fields)  # type: ignore[arg-type]


def test_latencies_of_single_requests() -> None:
    assert (ttft_s(A), tpot_s(A), e2e_s(A)) == (1.0, 1.5, 4.0)
    assert (ttft_s(B), e2e_s(B)) == (0.5, 0.5)
    assert math.isnan(tpot_s(B))
    assert math.isnan(ttft_s(REFUSED)) and math.isnan(e2e_s(REFUSED))


def test_means_percentiles_and_throughput() -> None:
    metrics = compute_metrics(run(A, B, REFUSED), SLOConfig())
    expected = {
        "num_completed": 2,
        "num_refused": 1,
        "num_prompt_tokens": 30,
        "num_output_tokens": 4,
        "ttft_mean_s": 0.75,
        "ttft_p50_s": 0.75,
        "ttft_p90_s": 0.95,
        "ttft_p99_s": 0.995,
        "tpot_mean_s": 1.5,
        "itl_mean_s": 1.5,
        "itl_p50_s": 1.5,
        "itl_p90_s": 1.9,
        "e2e_p50_s": 2.25,
        # From the first arrival (1) to the last token (5).
        "duration_s": 4.0,
        "requests_per_s": 0.5,
        "output_tokens_per_s": 1.0,
        "total_tokens_per_s": 8.5,
        "goodput_per_s": 0.5,
        "tokens_per_s_per_user": 1 / 1.5,
    }
    assert {key: metrics[key] for key in expected} == pytest.approx(expected)


def test_tpot_is_absent_when_every_completion_has_one_token() -> None:
    metrics = compute_metrics(run(B), SLOConfig(tpot_s=0.001))
    assert not [name for name in metrics if name.startswith(("tpot", "itl", "tokens_per_s_per_user"))]
    assert metrics["goodput_per_s"] == pytest.approx(1 / 0.5)


@pytest.mark.parametrize(
    ("slo", "num_good"),
    [
        (SLOConfig(ttft_s=0.9), 1),
        (SLOConfig(ttft_s=1.0), 2),
        (SLOConfig(tpot_s=1.4), 1),
        (SLOConfig(e2e_s=0.4), 0),
        (SLOConfig(ttft_s=2.0, tpot_s=2.0, e2e_s=2.0), 1),
    ],
)
def test_goodput_counts_requests_within_every_objective(slo: SLOConfig, num_good: int) -> None:
    assert compute_metrics(run(A, B, REFUSED), slo)["goodput_per_s"] == pytest.approx(num_good / 4.0)


def test_cache_use_is_weighted_by_time() -> None:
    steps = [StepRecord(1.0, 0.5, 1, 0), StepRecord(2.0, 1.0, 1, 0), StepRecord(5.0, 0.0, 0, 0)]
    metrics = compute_metrics(run(A, steps=steps, num_preemptions=3, prefix_query_tokens=40, prefix_hit_tokens=10), SLOConfig())
    assert metrics["kv_usage_mean"] == pytest.approx((0.5 * 1 + 1.0 * 3) / 4)
    assert (metrics["kv_usage_max"], metrics["num_preemptions"], metrics["prefix_hit_rate"]) == (1.0, 3, 0.25)


def test_the_bound_of_the_hit_rate_is_that_of_the_traces_own_blocks() -> None:
    known = [replace(A, num_known_tokens=0), replace(B, num_known_tokens=12)]
    assert compute_metrics(run(*known), SLOConfig())["prefix_hit_rate_bound"] == pytest.approx(12 / 30)
    assert "prefix_hit_rate_bound" not in compute_metrics(run(A, B), SLOConfig())


def test_several_priorities_are_told_apart() -> None:
    metrics = compute_metrics(run(A, replace(B, priority=1)), SLOConfig())
    assert (metrics["ttft_priority_0_p50_s"], metrics["ttft_priority_1_p50_s"]) == (1.0, 0.5)
    assert not [name for name in compute_metrics(run(A, B), SLOConfig()) if "priority" in name]


def test_a_request_that_failed_while_it_ran_is_neither_served_nor_refused() -> None:
    broken = RequestRecord("d", 0, 2.0, 10, [1.0, 9.0], "error", "out of memory")
    not_a_number = RequestRecord("e", 0, 2.0, 10, [1.0], "error")
    with_them, without = (compute_metrics(run(*requests), SLOConfig()) for requests in ((A, B, broken, not_a_number), (A, B)))
    assert with_them["num_failed"] == 2 and with_them["num_refused"] == 0
    assert {**with_them, "num_failed": 0} == without


def test_a_run_in_which_all_were_refused() -> None:
    metrics = compute_metrics(run(REFUSED), SLOConfig())
    assert (metrics["num_completed"], metrics["num_refused"]) == (0, 1)
    assert "ttft_mean_s" not in metrics and "requests_per_s" not in metrics
