"""Models cut among simulated devices: what goes between them, and how steps pass through a pipeline."""

from __future__ import annotations

import math
from typing import Any

import pytest

from framework.build import build_engine
from framework.config import ParallelConfig, QuantConfig, SchedulerConfig
from framework.executor.calls import CallList
from framework.models.ranks import rank_architecture, stages
from framework.models.read import read_model
from framework.sampling_params import SamplingParams

from .simulations import EAGER, LLAMA_8B, LLAMA_70B, QWEN_MOE, decode_step, make_executor, prompt_step, simulated_config

LINK_BYTES_S = 450e9


def calls_of(architecture: dict[str, Any], **given: Any) -> list[list[tuple[str, int, dict[str, float], int]]]:
    """Per stage (op, how often, dims, elements)."""
    config = simulated_config(architecture, **given)
    model = read_model(config.model)
    assert model.architecture is not None
    calls = CallList(model, model.architecture, config, fused=True)
    found = [calls.stage(stage) for stage in stages(model.architecture, config.parallel.pp)]
    return [[(call.op, count, dict(call.dims), call.elements) for call, count in stage.items()] for stage in found]


def shapes(calls: list[tuple[str, int, dict[str, float], int]], op: str = "linear") -> dict[tuple[float, float], int]:
    return {(dims["in_features"], dims["out_features"]): count for name, count, dims, _ in calls if name == op}


def test_tensors_cut_among_8_devices() -> None:
    (calls,) = calls_of(LLAMA_70B, tp=8)
    assert shapes(calls) == {
        (8192, (64 + 2 * 8) * 128 // 8): 80,
        (8192 // 8, 8192): 80,
        (8192, 2 * 28672 // 8): 80,
        (28672 // 8, 8192): 80,
        (8192, 128256 // 8): 1,
    }
    between = {(op, count, elements) for op, count, dims, elements in calls if dims.get("num_ranks") == 8}
    assert between == {("all_reduce", 2 * 80 + 1, 8192), ("all_gather", 1, 128256)}
    attention = [dims for op, _, dims, _ in calls if op == "paged_attention_decode"]
    assert [(dims["num_heads"], dims["num_kv_heads"]) for dims in attention] == [(8, 1)]


@pytest.mark.parametrize("efficiency", [1.0, 0.5])
def test_what_goes_between_devices_takes_the_links_time(efficiency: float) -> None:
    """A ring: every device sends 2 (n - 1) / n of what is reduced, and (n - 1) / n of what is gathered."""
    executor = make_executor(LLAMA_70B, tp=8, efficiency=efficiency)
    executor.submit(decode_step(0, list(range(64)), 100))
    times, reached = executor.op_times(), efficiency * LINK_BYTES_S
    assert times["all_reduce"].seconds == pytest.approx(161 * 2 * 7 / 8 * 64 * 8192 * 2 / reached)
    assert times["all_gather"].seconds == pytest.approx(7 / 8 * 64 * 128256 * 2 / reached)


def test_measured_reduces_of_a_70b_model() -> None:
    """160 of 64 rows: 2.25 ms in recordings and 5.8 ms one by one (from the measured table of message sizes)."""
    taken = {}
    for graphs in ({}, {"graphs": EAGER}):
        executor = make_executor(LLAMA_70B, tp=8, calibration="h200", **graphs)
        executor.submit(decode_step(0, list(range(64)), 100))
        taken[bool(graphs)] = executor.op_times()["all_reduce"].seconds * 160 / 161
        assert executor.plan_report()["all_reduce"]["chosen"] == "calibrated"
    assert taken[False] == pytest.approx(2.25e-3, rel=0.15)
    assert taken[True] == pytest.approx(5.8e-3, rel=0.15)


def test_kv_heads_fewer_than_devices_are_repeated() -> None:
    config = simulated_config(QWEN_MOE, tp=8)
    whole = read_model(config.model).architecture
    assert whole is not None
    rank = rank_architecture(whole, config.parallel)
    assert (rank.num_heads, rank.num_kv_heads, rank.vocab_size) == (4, 1, math.ceil(151936 / 64) * 64 // 8)


def test_experts_are_cut_or_spread() -> None:
    def experts(**given: int) -> dict[str, float]:
        (calls,) = calls_of(QWEN_MOE, **given)
        assert sum(count for op, count, *_ in calls if op == "all_reduce") == 2 * 48 + 1
        (dims,) = [dims for op, _, dims, _ in calls if op == "moe_experts"]
        return {name: dims[name] for name in ("num_experts", "top_k", "intermediate_size", "ep", "tp")}

    assert experts(tp=4) == {"num_experts": 128, "top_k": 8, "intermediate_size": 192, "ep": 1, "tp": 4}
    assert experts(tp=4, ep=4) == {"num_experts": 128, "top_k": 8, "intermediate_size": 768, "ep": 4, "tp": 1}


def test_spread_experts_read_their_share() -> None:
    """So many tokens that every expert has work: a device of four reads and multiplies a quarter."""

    def seconds(**given: int) -> float:
        executor = make_executor(QWEN_MOE, **given)
        executor.submit(prompt_step(0, 0, 2048))
        return executor.op_times()["moe_experts"].seconds

    assert seconds(tp=4, ep=4) == pytest.approx(seconds() / 4, rel=0.05)
    assert seconds(tp=4) == pytest.approx(seconds() / 4, rel=0.05)


def test_layers_cut_among_stages() -> None:
    first, *middle, last = calls_of(LLAMA_8B, pp=5)
    linears = [sum(shapes(calls).values()) for calls in (first, *middle, last)]
    assert linears == [7 * 4, 7 * 4, 6 * 4, 6 * 4, 6 * 4 + 1]
    ops = [{op for op, *_ in calls} for calls in (first, *middle, last)]
    assert ["embedding" in found for found in ops] == [True, False, False, False, False]
    assert ["send" in found for found in ops] == [True, True, True, True, False]
    assert ["sample" in found for found in ops] == [False, False, False, False, True]
    executor = make_executor(LLAMA_8B, pp=5)
    executor.submit(decode_step(0, [0, 1, 2], 10))
    assert executor.op_times()["send"].seconds == pytest.approx(4 * 3 * 2 * 4096 * 2 / LINK_BYTES_S)
    assert (executor.num_stages, executor.in_flight_steps) == (5, 5)


def test_a_step_occupies_stage_after_stage() -> None:
    """By hand: stages of 2 s and 3 s, a host that takes 0.5 s per step; another request's step follows at once, and then one that
    needs the first one's token."""
    executor = make_executor(LLAMA_8B, pp=2, step_overhead_s=0.5)
    executor._placement.step = lambda work: [(2.0, 0), (3.0, 0)]  # type: ignore[method-assign]
    first, second = executor.submit(decode_step(0, [0], 10)), executor.submit(decode_step(1, [1], 10))
    third = executor.submit(decode_step(2, [0]))
    ends = []
    for step in (first, second, third):
        step.result()
        ends.append(executor.clock.now())
    # First stage: 0.5 to 2.5, 2.5 to 4.5, and 5.5 to 7.5, once the token is there. Second: 2.5 to 5.5, 5.5 to 8.5, 8.5 to 11.5.
    assert ends == [5.5, 8.5, 11.5]


def test_the_chunks_of_a_prompt_follow_each_other_through_the_stages() -> None:
    executor = make_executor(LLAMA_8B, pp=2)
    executor._placement.step = lambda work: [(2.0, 0), (2.0, 0)]  # type: ignore[method-assign]
    step = prompt_step(0, 0, 64)
    step.num_logits = [0]
    executor.submit(step)
    executor.submit(decode_step(1, [0])).result()
    assert executor.clock.now() == 6.0, "not 8: the second stage reads the first chunk's cache, not its token"


def test_stages_launch_beside_each_other() -> None:
    executor = make_executor(LLAMA_8B, pp=2, launch_s=1.0)
    executor._placement.step = lambda work: [(2.0, 5), (1.0, 7)]  # type: ignore[method-assign]
    handle = executor.submit(decode_step(0, [0], 10))
    assert executor.clock.now() == 5.0, "the first stage's launches hold up the engine"
    handle.result()
    assert executor.clock.now() == 12.0


def test_a_pipeline_serves_more_where_requests_are_many() -> None:
    """Of 2 stages each has half the work: alone a request is as slow as without, many are nearly twice as fast as on one device."""

    def tokens_per_s(pp: int, num_requests: int) -> float:
        config = simulated_config(LLAMA_8B, pp=pp, scheduler=SchedulerConfig(max_num_seqs=64))
        engine = build_engine(config)
        for i in range(num_requests):
            engine.add_request(str(i), [1 + i] * 10, SamplingParams(max_tokens=40, ignore_eos=True))
        while engine.has_unfinished():
            engine.step()
        return num_requests * 40 / engine.clock.now()

    assert tokens_per_s(2, 1) == pytest.approx(tokens_per_s(1, 1), rel=0.05)
    assert 1.6 < tokens_per_s(2, 64) / tokens_per_s(1, 32) < 2.1, "weights are read once for as many requests per step"


@pytest.mark.parametrize(
    ("architecture", "given", "complaint"),
    [
        (LLAMA_8B, {"tp": 3}, "parallel.tp=3 .* 8 KV heads, or be a multiple"),
        (LLAMA_8B, {"tp": 64}, "parallel.tp=64 .* divide the model's 32 attention heads"),
        ({**LLAMA_8B, "intermediate_size": 14337}, {"tp": 2}, "parallel.tp=2 .* 14337 inner columns of the MLP"),
        ({**QWEN_MOE, "moe_intermediate_size": 777}, {"tp": 2}, "parallel.tp=2 .* 777 inner columns of an expert"),
        ({**QWEN_MOE, "num_experts": 126}, {"tp": 4, "ep": 4}, "parallel.ep=4 .* 126 experts"),
        (LLAMA_8B, {"dp": 100_000}, "parallel.dp=100000 .* from 1 to 4096"),
        (LLAMA_8B, {"tp": 8192, "ep": 8192}, "parallel.tp=8192 .* from 1 to 4096"),
        (LLAMA_8B, {"pp": 33}, "parallel.pp=33 .* 32 layers"),
        ({**LLAMA_8B, "intermediate_size": 14400}, {"tp": 8, "quant": QuantConfig("rtn-int4")}, "128 does not divide its 1800"),
    ],
)
def test_what_cannot_be_cut_is_refused(architecture: dict[str, Any], given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        make_executor(architecture, **given)


def test_ranks_of_data_parallelism_are_engines_of_their_own() -> None:
    alone, beside = make_executor(LLAMA_8B), make_executor(LLAMA_8B, dp=4)
    for executor in (alone, beside):
        executor.submit(decode_step(0, [0], 10)).result()
    assert alone.clock.now() == beside.clock.now() and ParallelConfig().dp == 1
