"""The metrics of an engine, against numbers worked out by hand, and of a real one against what its caller counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from framework import LLM, SamplingParams
from framework.engine.engine import Engine
from framework.lora_request import LoraConfig, LoRARequest
from framework.metrics import TEXTS, Histogram, Metric, engine_metrics
from tests.framework.engines import finish, make_config, make_engine, token_params


def metrics_of(engine: Engine) -> dict[str, Any]:
    """name, or name with the labels beyond the usual two -> value, or histogram."""
    found: dict[str, Any] = {}
    for metric in engine_metrics({0: engine.metrics()}, "m"):
        labels = {key: value for key, value in metric.labels.items() if key not in ("model_name", "engine")}
        name = metric.name.removeprefix("vllm:") + "".join(f",{value}" for value in labels.values())
        found[name] = metric if isinstance(metric, Histogram) else metric.value  # type: ignore[attr-defined]
    return found


def buckets(histogram: Histogram) -> dict[str, int]:
    """Upper end -> how many, of the buckets that hold any."""
    ends, counts = list(histogram.buckets), list(histogram.buckets.values())
    return {f"{float(end):g}": more - less for end, less, more in zip(ends, [0, *counts], counts) if more > less}


def step(engine: Engine, now_s: float) -> None:
    """One step that ends at this time."""
    engine.clock.advance_to(now_s)
    engine.step()


@pytest.fixture
def engine() -> Engine:
    """Two prompts of 8 and 6 tokens that arrive at 0 and at 1 s, and share the first 4, one block. The second waits until the first
    has ended, at 3.25 s."""
    engine = make_engine(make_config(max_num_seqs=1, in_flight_steps=1))
    engine.add_request("a", {"prompt_token_ids": list(range(8))}, token_params(max_tokens=3, ignore_eos=True))
    step(engine, 2.0)
    engine.clock.advance_to(2.5)
    engine.add_request("b", {"prompt_token_ids": [0, 1, 2, 3, 9, 9]}, token_params(max_tokens=2, ignore_eos=True), arrival_s=1.0)
    return engine


def test_of_requests_that_ended(engine: Engine) -> None:
    for now_s in (3.0, 3.25, 4.25, 4.255):
        step(engine, now_s)
    assert not engine.has_unfinished()
    found = metrics_of(engine)
    assert (found["time_to_first_token_seconds"].count, found["time_to_first_token_seconds"].sum) == (2, 2.0 + 3.25)
    assert buckets(found["time_to_first_token_seconds"]) == {"2.5": 1, "5": 1}
    assert buckets(found["inter_token_latency_seconds"]) == {"0.005": 1, "0.3": 1, "1": 1}  # 5 ms, 250 ms, 1 s
    assert found["inter_token_latency_seconds"].sum == pytest.approx(1.255)
    assert found["request_time_per_output_token_seconds"].sum == pytest.approx(1.25 / 2 + 0.005)
    assert found["e2e_request_latency_seconds"].sum == pytest.approx(3.25 + 3.255)
    # The first is scheduled when it comes back: no time passes within a step here.
    assert found["request_queue_time_seconds"].sum == pytest.approx(2.0 + 3.25)
    assert found["request_prefill_time_seconds"].sum == 0
    assert found["request_decode_time_seconds"].sum == found["request_inference_time_seconds"].sum == pytest.approx(1.255)
    assert buckets(found["request_prompt_tokens"]) == {"10": 2} and found["request_prompt_tokens"].sum == 14
    assert buckets(found["request_generation_tokens"]) == {"2": 1, "5": 1}
    assert found["request_params_max_tokens"].sum == found["request_max_num_generation_tokens"].sum == 5
    assert found["request_prefill_kv_computed_tokens"].sum == 8 + 2
    assert buckets(found["request_num_preemptions"]) == {"0": 2}
    assert buckets(found["iteration_tokens_total"]) == {"1": 3, "8": 1, "16": 1}  # 8 + 1 and 2 + 1 with a prompt, then one each
    assert buckets(found["request_params_n"]) == {"1": 2}
    assert (found["prompt_tokens"], found["generation_tokens"], found["prompt_tokens_cached"]) == (14, 5, 4)
    assert (found["prompt_tokens_by_source,local_compute"], found["prompt_tokens_by_source,local_cache_hit"]) == (10, 4)
    assert (found["prefix_cache_queries"], found["prefix_cache_hits"]) == (14, 4)
    assert (found["request_success,length"], found["request_success,stop"]) == (2, 0)


@pytest.mark.parametrize("num_prompt", [8, 9])  # the last token of the second comes alone, as a token of a decode does
def test_every_first_token_counts_however_its_prompt_was_cut(num_prompt: int) -> None:
    engine = make_engine(make_config(max_num_batched_tokens=4, in_flight_steps=1))
    engine.add_request("a", {"prompt_token_ids": list(range(num_prompt))}, token_params(max_tokens=2, ignore_eos=True))
    for now_s in (1, 2, 3, 4):
        step(engine, now_s)
    first = metrics_of(engine)["time_to_first_token_seconds"]
    assert (first.count, first.sum) == (1, -(-num_prompt // 4))


def test_of_requests_that_run(engine: Engine) -> None:
    step(engine, 3.0)
    found = metrics_of(engine)
    assert (found["num_requests_running"], found["num_requests_waiting"]) == (1, 1)
    assert (found["num_requests_waiting_by_reason,capacity"], found["num_requests_waiting_by_reason,deferred"]) == (1, 0)
    assert found["kv_cache_usage_perc"] == pytest.approx(3 / 99)  # 10 tokens in blocks of 4
    assert buckets(found["inter_token_latency_seconds"]) == {"1": 1}, "the gaps of a request that goes on"
    assert found["e2e_request_latency_seconds"].count == 0
    step(engine, 3.25)
    assert buckets(metrics_of(engine)["inter_token_latency_seconds"]) == {"0.3": 1, "1": 1}, "each gap counts once"


def test_what_was_cut_short_counts_as_that_alone(engine: Engine) -> None:
    engine.abort(["a", "b"])
    found = metrics_of(engine)
    assert (found["request_success,abort"], found["request_success,length"]) == (2, 0)
    assert found["e2e_request_latency_seconds"].count == found["request_prompt_tokens"].count == 0
    assert found["num_requests_running"] == found["num_requests_waiting"] == found["kv_cache_usage_perc"] == 0


def test_completions_of_one_prompt_have_times_of_their_own() -> None:
    engine = make_engine(make_config(in_flight_steps=1))
    engine.add_request("a", {"prompt_token_ids": list(range(8))}, token_params(max_tokens=3, ignore_eos=True, n=2))
    outputs, now_s = [], 0.0
    while engine.has_unfinished():
        now_s += 1
        engine.clock.advance_to(now_s)
        outputs += engine.step()
    found = metrics_of(engine)
    assert buckets(found["inter_token_latency_seconds"]) == {"1": 4}
    assert found["request_generation_tokens"].count == found["request_success,length"] == 2
    assert buckets(found["request_params_n"]) == {"2": 1} and found["request_max_num_generation_tokens"].sum == 3
    assert outputs[-1].metrics.token_times_s == [1, 2, 2, 3, 3, 4]


def test_a_request_without_a_limit_may_have_all_that_the_model_has() -> None:
    engine = make_engine(max_model_len=20)
    engine.add_request("a", {"prompt_token_ids": list(range(8))}, token_params(max_tokens=None, ignore_eos=True))
    finish(engine)
    assert metrics_of(engine)["request_params_max_tokens"].sum == 12


def test_tokens_count_once_however_often_their_request_is_preempted() -> None:
    engine = make_engine(make_config(num_blocks=12, prefix_caching=False))
    for i in range(4):
        engine.add_request(str(i), {"prompt_token_ids": [i] * 6}, token_params(max_tokens=20, ignore_eos=True))
    finish(engine)
    found = metrics_of(engine)
    assert found["num_preemptions"] == found["request_num_preemptions"].sum > 0
    assert (found["prompt_tokens"], found["generation_tokens"]) == (24, 80)
    assert found["time_to_first_token_seconds"].count == 4 and found["inter_token_latency_seconds"].count == 76


def test_many_requests_are_all_counted() -> None:
    """More than are sorted into buckets at once."""
    engine = make_engine()
    for i in range(100):
        engine.add_request(str(i), {"prompt_token_ids": [i % 50, 1, 2]}, token_params(max_tokens=1 + i % 3, ignore_eos=True))
    now_s = 0.0
    while engine.has_unfinished():
        now_s += 0.25
        step(engine, now_s)
    found = metrics_of(engine)
    assert buckets(found["request_generation_tokens"]) == {"1": 34, "2": 33, "5": 33}
    assert found["generation_tokens"] == found["request_generation_tokens"].sum == 34 + 2 * 33 + 3 * 33
    assert found["inter_token_latency_seconds"].count == 33 + 2 * 33
    assert found["iteration_tokens_total"].count == engine.stats().num_steps


def test_of_an_llm_they_agree_with_its_outputs() -> None:
    llm = LLM("tiny", num_gpu_blocks_override=64, kernels={"sample": "torch"})
    outputs = llm.generate(["import os\n", "def f(x):", "class"], SamplingParams(max_tokens=20, seed=1), use_tqdm=False)
    found = metrics_of(llm.engine)
    completions = [output.outputs[0] for output in outputs]
    assert found["generation_tokens"] == sum(len(completion.token_ids) for completion in completions)
    assert found["prompt_tokens"] == sum(len(output.prompt_token_ids) for output in outputs)
    assert found["request_success,length"] + found["request_success,stop"] == 3
    times = [output.metrics.token_times_s for output in outputs if output.metrics is not None]
    assert found["request_decode_time_seconds"].sum == pytest.approx(sum(each[-1] - each[0] for each in times))
    infos = [metric.labels for metric in llm.get_metrics() if metric.name == "kernelswap:kernel_info"]
    plan = llm.plan()
    assert {labels["op"]: (labels["impl"], labels["version"]) for labels in infos} == {
        op: (entry["impl"], entry["version"]) for op, entry in plan.items()
    }
    assert ("sample", "torch") in [(labels["op"], labels["impl"]) for labels in infos]
    cache: Metric = next(metric for metric in llm.get_metrics() if metric.name == "vllm:cache_config_info")
    assert cache.labels["num_gpu_blocks"] == "64" and cache.labels["kv_cache_size_tokens"] == str(64 * 16)


def test_every_metric_has_a_text() -> None:
    engine = make_engine(replace(make_config(), lora=LoraConfig(True)))
    engine._recorder.observe([2, 1], [1, 0])
    names = {metric.name for metric in engine_metrics({0: engine.metrics()}, "m")}
    assert names | {"kernelswap:kernel_info", "kernelswap:structured_requests", "vllm:admission_rejections"} == set(TEXTS)


def test_adapters_of_requests_that_wait_and_run() -> None:
    engine = make_engine(replace(make_config(), lora=LoraConfig(True, 1)))
    for i in (1, 2, 2):
        lora = LoRARequest(f"adapter-{i}", i, f"/{i}")
        engine.add_request(f"{i}-{engine.num_waiting}", [1], token_params(max_tokens=5), lora_request=lora)
    engine.step()
    (found,) = (m for m in engine_metrics({0: engine.metrics()}, "m") if m.name == "vllm:lora_requests_info")
    told = {"max_lora": "1", "waiting_lora_adapters": "adapter-2", "running_lora_adapters": "adapter-1"}
    assert found.labels == {"model_name": "m", "engine": "0", **told}


def test_of_drafts_that_were_checked() -> None:
    engine = make_engine()
    assert not [name for name in metrics_of(engine) if "spec_decode" in name], "nothing was checked"
    engine._recorder.observe([3, 0, 1], [2, 0, 0])
    engine._recorder.observe([2], [2])
    found = metrics_of(engine)
    totals = [found[f"spec_decode_num_{what}"] for what in ("drafts", "draft_tokens", "accepted_tokens")]
    assert totals == [3, 6, 4]
    assert [found[f"spec_decode_num_accepted_tokens_per_pos,{i}"] for i in range(3)] == [2, 2, 0]
    assert [found[f"kernelswap:spec_decode_num_draft_tokens_per_pos,{i}"] for i in range(3)] == [3, 2, 1]
