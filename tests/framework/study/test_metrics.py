"""Metrics of a run small enough to work out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from framework.engine.metrics import DraftCounts
from framework.study.metrics import SLOConfig, compute_metrics, e2e_s, tpot_s, ttft_s
from framework.study.records import RequestRecord, RunRecord, StepStatistics

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


def statistics(*steps: tuple[float, float, int, int]) -> StepStatistics:
    found = StepStatistics()
    for step in steps:
        found.add(*step)
    return found


def test_the_state_is_weighted_by_time() -> None:
    steps = [statistics((1.0, 0.5, 1, 0), (2.0, 1.0, 3, 2), (5.0, 0.0, 0, 0))]
    metrics = compute_metrics(run(A, steps=steps, num_preemptions=3, prefix_query_tokens=40, prefix_hit_tokens=10), SLOConfig())
    expected = {
        "num_steps": 3,
        "kv_usage_mean": (0.5 * 1 + 1.0 * 3) / 4,
        "kv_usage_max": 1.0,
        "num_running_mean": (1 * 1 + 3 * 3) / 4,
        "num_running_max": 3,
        "num_waiting_mean": 2 * 3 / 4,
        "num_waiting_max": 2,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert (metrics["num_preemptions"], metrics["prefix_hit_rate"]) == (3, 0.25)


def test_a_rate_of_acceptance_is_of_the_drafts_at_its_position() -> None:
    """Three rows with 2, 1 and 2 drafts, of which 2, 0 and 1 are right; then one with 3, none of them right."""
    drafts = DraftCounts.of([2, 1, 0, 2], [2, 0, 0, 1]) + DraftCounts.of([3], [0])
    assert drafts == DraftCounts((4, 3, 1), (2, 1, 0))
    assert drafts.since(DraftCounts.of([3], [0])) == DraftCounts((3, 2, 0), (2, 1, 0))
    metrics = compute_metrics(run(A, drafts=drafts), SLOConfig())
    expected = {"acceptance_rate_pos0": 2 / 4, "acceptance_rate_pos1": 1 / 3, "acceptance_rate_pos2": 0.0}
    expected |= {"mean_acceptance_length": 1 + 3 / 4, "num_draft_tokens": 8}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert not [name for name in compute_metrics(run(A), SLOConfig()) if "accept" in name]
    assert DraftCounts.of([0, 0], [0, 0]) == DraftCounts.of([], []) == DraftCounts()


def test_gaps_between_outputs_are_apart_from_those_between_tokens_that_came_at_once() -> None:
    several = replace(A, token_times_s=[1.0, 1.0, 1.0, 3.0, 3.0])
    metrics = compute_metrics(run(several, drafts=DraftCounts((1,), (1,))), SLOConfig())
    assert (metrics["itl_mean_s"], metrics["itl_p50_s"]) == (0.5, 0.0)
    assert metrics["chunk_gap_mean_s"] == metrics["chunk_gap_p50_s"] == 2.0
    assert "chunk_gap_mean_s" not in compute_metrics(run(several), SLOConfig())


def test_one_step_is_told_by_the_state_that_it_left() -> None:
    metrics = compute_metrics(run(A, steps=[statistics((2.0, 0.25, 1, 0))]), SLOConfig())
    assert (metrics["kv_usage_mean"], metrics["kv_usage_max"]) == (0.25, 0.25)
    steps = [statistics((2.0, usage, 1, 0)) for usage in (0.25, 0.75)]
    metrics = compute_metrics(run(A, steps=steps), SLOConfig())
    assert (metrics["kv_usage_mean"], metrics["kv_usage_max"]) == (0.5, 0.75), "of two engines"


def test_steps_taken_at_once_count_as_if_one_by_one() -> None:
    one_by_one = statistics((1.0, 0.5, 2, 0), *((1.0 + i, 0.5, 2, 0) for i in range(1, 5)), (6.0, 0.25, 1, 0))
    at_once = statistics((1.0, 0.5, 2, 0))
    at_once.add(5.0, 0.5, 2, 0, count=4)
    at_once.add(6.0, 0.25, 1, 0)
    assert at_once == one_by_one


def test_engines_weigh_as_long_as_they_were_seen() -> None:
    """The first for 4 s, the second for 1 s, the third took no step."""
    first = statistics((0.0, 0.5, 1, 0), (4.0, 0.0, 0, 0))
    second = statistics((2.0, 0.0, 4, 1), (3.0, 0.0, 0, 0))
    record = run(A, A, replace(B, replica=1), steps=[first, second, StepStatistics()], num_engines=3)
    metrics = compute_metrics(record, SLOConfig())
    assert (metrics["kv_usage_mean"], metrics["num_running_mean"]) == (pytest.approx(2 / 5), pytest.approx(8 / 5))
    assert (metrics["num_steps"], metrics["num_running_max"], metrics["num_waiting_max"]) == (4, 4, 1)
    assert (metrics["replica_requests_min"], metrics["replica_requests_max"]) == (0, 2)


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


def test_images_are_those_of_the_requests_that_were_served() -> None:
    served = RequestRecord("a", 0, 0.0, 40, [1.0, 2.0], "length", num_images=2, num_image_tokens=30)
    refused = RequestRecord("b", 1, 0.0, 900, num_images=5, num_image_tokens=800, error="it is too long")
    found = compute_metrics(run(served, refused, num_image_queries=4, num_image_hits=1, num_images_encoded=3), SLOConfig())
    images = {"num_images": 2, "num_image_tokens": 30, "images_per_s": 1.0, "encoder_hit_rate": 0.25, "num_images_encoded": 3}
    assert {name: found[name] for name in images} == images
